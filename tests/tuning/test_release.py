"""Results of a run in a folder: whole before, whole after, whatever comes between."""

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vq_plugin.tuning.release import complete, release

NAMES = ("model.vq", "report.json", "report.html")
# What Python says before it changes a file system.
CHANGES = {"os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.copyfile"}


def write(folder: Path, text: str, names: tuple[str, ...] = NAMES) -> None:
    with release(folder) as new:
        for name in names:
            (new / name).write_text(text)


def found(folder: Path) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in NAMES if (folder / name).exists()}


def killed_writes(folder: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """The folder after writing anew was killed, before each change of a file in its turn."""
    change = 0
    while True:
        place = folder / str(change)
        place.mkdir()
        write(place, "first")
        write(place, "old")
        child = os.fork()
        if not child:
            left = change

            def kill(event: str, _: object) -> None:
                nonlocal left
                left -= event in CHANGES
                if left < 0:
                    os._exit(9)

            sys.addaudithook(kill)
            write(place, "new", names)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
            assert change > 10
            return
        yield place
        change += 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forks")
@pytest.mark.parametrize("names", [NAMES, NAMES[1:]], ids=["passed", "not reached"])
def test_a_kill_before_any_change_leaves_a_whole_release(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    old, new = dict.fromkeys(NAMES, "old"), dict.fromkeys(names, "new")
    for place in killed_writes(tmp_path, names):
        swapped = (place / "journal.whole").exists()
        assert found(place) in (old, new) or (swapped and found(place / "previous") == old)
        complete(place)
        first = dict.fromkeys(NAMES, "first")
        # What was whole comes; what was not leaves all as it was, or had come before.
        assert (found(place), found(place / "previous")) in [(new, old), (old, first)][
            : 2 - swapped
        ]
        write(place, "next")
        assert found(place) == dict.fromkeys(NAMES, "next")
        assert {path.name for path in place.iterdir()} == {*NAMES, "previous"}


def test_a_signal_within_the_swap_does_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "old")

    def interrupted(*_: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr("vq_plugin.tuning.release.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "new", NAMES[1:])
    assert found(tmp_path) == dict.fromkeys(NAMES[1:], "new")
    assert found(tmp_path / "previous") == dict.fromkeys(NAMES, "old")
    assert {path.name for path in tmp_path.iterdir()} == {*NAMES[1:], "previous"}


def test_a_disk_that_is_full_by_now_has_room_for_whole_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "old")
    rename = Path.rename

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def renamed(self: Path, target: Path) -> Path:
        if target.name == "journal.whole":
            monkeypatch.setattr("vq_plugin.tuning.release.shutil.copy2", full)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", renamed)
    write(tmp_path, "new")
    assert found(tmp_path) == dict.fromkeys(NAMES, "new")
    assert found(tmp_path / "previous") == dict.fromkeys(NAMES, "old")


def test_a_file_system_without_links_gets_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr("vq_plugin.tuning.release.os.link", none)
    write(tmp_path, "old")
    write(tmp_path, "new")
    assert found(tmp_path) == dict.fromkeys(NAMES, "new")


def test_results_that_are_not_whole_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.vq").write_bytes(b"old")

    def fails() -> None:
        with release(tmp_path) as new:
            (new / "model.vq").write_bytes(b"new")
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        fails()
    assert (tmp_path / "model.vq").read_bytes() == b"old"
    complete(tmp_path)
    assert (tmp_path / "model.vq").read_bytes() == b"old"
