"""Files: bit packing, save and load."""

from vq_plugin.checkpoint.file import CheckpointError, load, read_header, save

__all__ = ["CheckpointError", "load", "read_header", "save"]
