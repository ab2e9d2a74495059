"""Files: save and load."""

from vq_plugin.checkpoint.file import load, read_header, save
from vq_plugin.checkpoint.header import CheckpointError
from vq_plugin.checkpoint.rest import Rest, check_rest, rest_tensors, round_rest, stored_rest
from vq_plugin.checkpoint.size import file_nbytes

__all__ = [
    "CheckpointError",
    "Rest",
    "check_rest",
    "file_nbytes",
    "load",
    "read_header",
    "rest_tensors",
    "round_rest",
    "save",
    "stored_rest",
]
