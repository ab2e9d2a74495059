"""Files: save and load."""

from vq_plugin.checkpoint.file import file_bytes, load, save
from vq_plugin.checkpoint.opened import open_file
from vq_plugin.checkpoint.rest import (
    Rest,
    check_rest,
    is_numbers,
    kept_rest,
    rest_tensors,
    round_rest,
    stored_rest,
)
from vq_plugin.format.container import read_header
from vq_plugin.format.header import CheckpointError

__all__ = [
    "CheckpointError",
    "Rest",
    "check_rest",
    "file_bytes",
    "is_numbers",
    "kept_rest",
    "load",
    "open_file",
    "read_header",
    "rest_tensors",
    "round_rest",
    "save",
    "stored_rest",
]
