"""The commands of ``vq-plugin``, one a file."""
