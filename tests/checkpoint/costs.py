"""What it takes to read a file in every way there is."""

import resource
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch import nn

import vq_plugin as vq
from vq_plugin import reader
from vq_plugin.checkpoint import read_header

# docs/format.md, "What a file may cost". Tests run beside others: more seconds than stand there.
SECONDS_OF_A_FILE, SECONDS_OF_A_BYTE = 2.0, 100e-6
BYTES_OF_A_FILE, BYTES_OF_A_BYTE = 1 << 27, 1 << 10


def read_all(path: Path, fresh: nn.Module) -> bool:
    """Reads a file by both readers, into a model, and as ``inspect`` does; whether all refuse it.

    Anything but a ``CheckpointError`` is raised.
    """
    refused = []
    for read in (_numpy, _torch, lambda path: vq.load(path, fresh), read_header):
        refused.append(True)
        with suppress(vq.CheckpointError):
            read(path)
            refused[-1] = False
    return all(refused)


def _numpy(path: Path) -> None:
    file = reader.open_file(path)
    for layer in file.layers.values():
        layer.decode()
    for name in file.tensors:
        file.tensors[name]


def _torch(path: Path) -> None:
    file = vq.open_file(path)
    for layer in file.layers.values():
        layer.decode()
    for name in file.tensors:
        file.tensors[name]


def assert_cheap(path: Path, call: Callable[[], object], what: str = "") -> None:
    """Makes sure that a call took no more than its file allows."""
    size = path.stat().st_size
    before, start = _most_memory(), time.process_time()
    call()
    # Torch's memory is not traced, but seen by the system.
    seconds, grown = time.process_time() - start, _most_memory() - before
    tracemalloc.start()
    try:
        call()
        grown = max(grown, tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    most = BYTES_OF_A_FILE + BYTES_OF_A_BYTE * size
    assert seconds < SECONDS_OF_A_FILE + SECONDS_OF_A_BYTE * size, f"{what}: {seconds:.1f} s"
    assert grown < most, f"{what}: {grown >> 20} MB of {most >> 20}"


def _most_memory() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
