import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vq_plugin.atomic import write_atomically


def test_writers_at_the_same_time_leave_one_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    texts = [bytes([i]) * 100_000 for i in range(32)]
    write_atomically(path, texts[0])
    with ThreadPoolExecutor(8) as pool:
        writing = [pool.submit(write_atomically, path, text) for text in texts]
        while not all(job.done() for job in writing):
            assert path.read_bytes() in texts
    for job in writing:
        job.result()
    assert path.read_bytes() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.mkdir()
    with pytest.raises(OSError, match="file"):
        write_atomically(path, b"new")
    assert list(tmp_path.iterdir()) == [path]


def test_others_may_read_it_as_the_umask_says(tmp_path: Path) -> None:
    plain, atomic = tmp_path / "plain", tmp_path / "atomic"
    plain.write_bytes(b"")
    write_atomically(atomic, b"")
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (plain, atomic)]
    assert modes[0] == modes[1]
