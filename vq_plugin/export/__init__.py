"""What leaves Python: files of other runtimes."""
