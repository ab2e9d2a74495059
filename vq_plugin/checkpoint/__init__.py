"""Files: bit packing, entropy coding, save and load."""

from vq_plugin.checkpoint.file import load, read_header, save
from vq_plugin.checkpoint.header import CheckpointError
from vq_plugin.checkpoint.size import file_nbytes

__all__ = ["CheckpointError", "file_nbytes", "load", "read_header", "save"]
