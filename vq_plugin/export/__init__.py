"""What leaves Python: models as files of other runtimes, whose weights stay codes."""
