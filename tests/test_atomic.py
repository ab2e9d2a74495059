import errno
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from vq_plugin.atomic import check_target, naming, remove, replace_folder, write_atomically


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


def test_a_link_stays_a_link_and_its_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "target").write_bytes(b"old")
    (tmp_path / "link").symlink_to("store/target")
    (tmp_path / "chain").symlink_to("link")
    for name in ("link", "chain"):
        write_atomically(tmp_path / name, name.encode())
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / "store" / "target").read_bytes() == name.encode()
    (tmp_path / "dangling").symlink_to("store/new")
    write_atomically(tmp_path / "dangling", b"new")
    assert (tmp_path / "store" / "new").read_bytes() == b"new"
    assert [path.name for path in sorted((tmp_path / "store").iterdir())] == ["new", "target"]


def test_links_that_lead_in_a_circle_stay_and_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("other")
    (tmp_path / "other").symlink_to("one")
    for work in (partial(write_atomically, data=b"new"), check_target, remove):
        with pytest.raises(OSError, match=r"symbolic links.*one"):
            work(tmp_path / "one")
    assert (tmp_path / "one").is_symlink()


def test_what_a_link_leads_to_is_removed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "link").symlink_to("file")
    for _ in range(2):
        remove(tmp_path / "link")
        assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755, 0o400])
def test_a_file_that_is_replaced_keeps_its_mode(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(mode)
    write_atomically(path, b"new")
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_mode_of_the_umask(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_atomically(tmp_path / "file", b"new")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_devices_are_written_to_and_not_replaced(tmp_path: Path) -> None:
    write_atomically(Path(os.devnull), b"new")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit((tmp_path / "pipe").read_bytes)
        write_atomically(tmp_path / "pipe", b"new")
        assert read.result() == b"new"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_errors_name_the_file_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match=r"No space left on device.*/dev/full"):
        write_atomically(Path("/dev/full"), b"new" * 100_000)
    with pytest.raises(FileNotFoundError, match=r"folder does not exist.*gone/file"):
        write_atomically(tmp_path / "gone" / "file", b"new")
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        write_atomically(tmp_path, b"new")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "file").write_bytes(b"old")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device.*/file'$"):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("number", "nameless"),
    [(signal.SIGTERM, True), (signal.SIGKILL, True), (signal.SIGTERM, False)],
)
def test_a_kill_leaves_no_other_file(
    number: signal.Signals, nameless: bool, tmp_path: Path
) -> None:
    """Where files can be without a name until they are whole; elsewhere not after SIGKILL."""
    if nameless and not hasattr(os, "O_TMPFILE"):
        pytest.skip("no files without names here")
    (tmp_path / "file").write_bytes(b"old")
    code = (
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from vq_plugin import atomic, console\n"
        f"{'' if nameless else 'os.O_TMPFILE = 0'}\n"
        "def flush(*_):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "os.chmod = flush\n"
        "with console.terminated_by_signal():\n"
        "    atomic.write_atomically(Path(sys.argv[1]), b'new')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, tmp_path / "file"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    process.communicate(timeout=60)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("system", ["has a swap", "has none"])
def test_a_folder_is_replaced_and_a_signal_brings_the_old_one_back(
    tmp_path: Path, system: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh, path, renamed = tmp_path / "beside" / "new", tmp_path / "package", []
    for folder, text in ((fresh, "new"), (path, "old")):
        folder.mkdir(parents=True)
        (folder / "file").write_text(text)
    rename = os.rename

    def interrupted(source: Path, target: Path) -> None:
        renamed.append(target)
        if target == path and len(renamed) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr("os.rename", interrupted)
    if system == "has none":
        monkeypatch.setattr("vq_plugin.atomic._swapped", lambda *_: False)
        with pytest.raises(KeyboardInterrupt):
            replace_folder(fresh, path)
        assert (path / "file").read_text() == "old"
    elif sys.platform == "linux":
        # Nobody finds nothing: there is no time between two steps.
        replace_folder(fresh, path)
        assert not renamed
        assert (path / "file").read_text() == "new"
        return
    replace_folder(fresh, path)
    assert (path / "file").read_text() == "new"


def test_a_folder_that_cannot_be_copied_names_the_one_that_was_asked_for(tmp_path: Path) -> None:
    """``copytree`` goes on after an error, and raises a list of all."""
    entry = ("/tmp/a/x", "/tmp/b/x", "[Errno 28] No space left on device: '/tmp/a/x' -> '/tmp/b/x'")
    with pytest.raises(OSError, match="No space left on device") as caught, naming(tmp_path):
        raise shutil.Error([entry, entry])
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path))
    assert len(str(caught.value)) < 100 + len(str(tmp_path))
