"""Files: bit packing, entropy coding, save and load."""

from vq_plugin.checkpoint.file import load, read_header, save
from vq_plugin.checkpoint.header import CheckpointError

__all__ = ["CheckpointError", "load", "read_header", "save"]
