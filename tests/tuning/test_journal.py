"""Evaluations on disk: what was written is read, whatever killed the writer."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vq_plugin.tuning.journal import Evaluation, Journal
from vq_plugin.tuning.metric import Metric

ROOT = Path(__file__).parents[2]
FINITE = st.floats(allow_nan=False, allow_infinity=False)
# Surrogates too: they come with file names that are no UTF-8.
TEXTS = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
VECTORS = st.lists(st.booleans() | st.sampled_from([0.0, 1.0]), min_size=2, max_size=40) | st.lists(
    FINITE, min_size=2, max_size=10
)


@st.composite
def evaluations(draw: st.DrawFn) -> Evaluation:
    seconds = draw(st.floats(0, 1e6))
    kind = draw(st.sampled_from(["error", "number", "vector"]))
    if kind == "error":
        return Evaluation(None, seconds, draw(TEXTS))
    if kind == "number":
        return Evaluation(Metric(draw(FINITE)), seconds)
    samples = torch.tensor(draw(VECTORS), dtype=torch.float64)
    return Evaluation(Metric(draw(FINITE), samples), seconds)


RUNS = st.dictionaries(st.text(min_size=1, max_size=10), evaluations(), max_size=5)


def same(first: Evaluation | None, second: Evaluation | None) -> bool:
    if first is None or second is None or (first.metric is None) != (second.metric is None):
        return first is second
    if (first.seconds, first.error) != (second.seconds, second.error):
        return False
    if first.metric is None or second.metric is None:
        return True
    a, b = first.metric.samples, second.metric.samples
    alike = a is b is None or (a is not None and b is not None and torch.equal(a, b))
    return alike and first.metric.mean == second.metric.mean


def write(folder: Path, run: dict[str, Evaluation]) -> Path:
    with Journal(folder) as journal:
        for key, evaluation in run.items():
            journal.add(key, evaluation)
    return folder / "journal.jsonl"


@given(run=RUNS)
def test_what_was_added_is_there_again(
    tmp_path_factory: pytest.TempPathFactory, run: dict[str, Evaluation]
) -> None:
    folder = tmp_path_factory.mktemp("run") / "new"
    write(folder, run)
    with Journal(folder) as journal:
        assert journal.resumed == 0
        assert all(same(journal.get(key), evaluation) for key, evaluation in run.items())
        assert journal.get("") is None
        assert journal.resumed == len(run)
        assert journal.spent == 0


def example(count: int = 3) -> dict[str, Evaluation]:
    bits, values = torch.rand(9).round().double(), torch.rand(5).double()
    some = [
        Evaluation(Metric(0.1), 1.5),
        Evaluation(Metric(float(bits.mean()), bits), 0.5),
        Evaluation(Metric(float(values.mean()), values), 0.5),
        Evaluation(None, 0.25, "ValueError: ä\n"),
    ]
    return {f"key {i}": some[i % 4] for i in range(count)}


def test_cut_at_any_byte_the_lines_before_survive(tmp_path: Path) -> None:
    run = example(4)
    path = write(tmp_path, run)
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    assert len(ends) == 4
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        complete = sum(end <= length for end in ends)
        with Journal(tmp_path) as journal:
            found = [journal.get(key) for key in run]
            expected = [*run.values()][:complete] + [None] * (4 - complete)
            assert all(map(same, found, expected))
        # What is added next must not end up on the line that was cut.
        if length % 37 == 0:
            write(tmp_path, {"next": run["key 0"]})
            with Journal(tmp_path) as journal:
                assert same(journal.get("next"), run["key 0"])
                assert all(map(same, [journal.get(key) for key in run], expected))


@pytest.mark.parametrize(
    "line",
    ["{", "null", "[]", "{}", '"x"', "\x00\x00", "\xff", '{"format": 1}',
     '{"format": 1, "key": "a", "mean": 1.0, "samples": {"count": 2, "bits": false, "data": "x"}, '
     '"seconds": 1, "error": null}'],
)  # fmt: skip
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_damaged_journal_is_a_clear_error(tmp_path: Path, line: str, place: str) -> None:
    path = write(tmp_path, example())
    bad = line.encode("latin-1") + b"\n"
    path.write_bytes(bad + path.read_bytes() if place == "before" else path.read_bytes() + bad)
    for _ in range(2):  # the folder is free again after the error
        with pytest.raises(ValueError, match=r"journal\.jsonl is damaged .*delete it"):
            Journal(tmp_path).__enter__()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_disk_that_is_full_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        (tmp_path / "journal.jsonl").symlink_to("/dev/full")
        with pytest.raises(OSError, match=r"No space left.*journal\.jsonl"):
            journal.add("a", Evaluation(Metric(0.5), 1.0))


def test_what_the_disk_ended_goes_on_from_there(tmp_path: Path) -> None:
    def run(kind: type[Exception]) -> None:
        with Journal(tmp_path) as journal:
            journal.add("a", Evaluation(Metric(0.5), 1.0))
            raise kind("full")

    def ended(kind: type[Exception]) -> Exception:
        with pytest.raises(kind) as raised:
            run(kind)
        return raised.value

    assert ended(OSError).__notes__ == [
        f"1 evaluations are in {tmp_path}: to go on from there, start the same again"
    ]
    assert not hasattr(ended(ValueError), "__notes__")


def test_lines_of_another_format_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path, example())
    path.write_text(json.dumps({"format": 2, "key": "key 9"}) + "\n" + path.read_text())
    with Journal(tmp_path) as journal:
        assert journal.get("key 9") is None
        assert journal.get("key 0") is not None


def test_only_what_came_from_an_interrupted_run_counts_as_resumed(tmp_path: Path) -> None:
    write(tmp_path, example(2))
    with Journal(tmp_path) as journal:
        for _ in range(2):
            journal.get("key 1")
        journal.add("own", Evaluation(Metric(0.5), 2.0))
        journal.get("own")
        assert journal.resumed == 1
        assert journal.spent == 2.0


def test_finish_removes_it(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.add("a", Evaluation(Metric(0.5), 1.0))
        journal.finish()
    assert not (tmp_path / "journal.jsonl").exists()
    with Journal(tmp_path) as journal:
        assert journal.get("a") is None
        journal.finish()


def test_without_a_folder_it_is_kept_in_memory() -> None:
    with Journal(None) as journal:
        journal.add("a", Evaluation(Metric(0.5), 1.0))
        assert journal.get("a") == Evaluation(Metric(0.5), 1.0)
        assert journal.resumed == 0
        journal.finish()


HOLD = """
import sys, time
from pathlib import Path
from vq_plugin.tuning.journal import Evaluation, Journal
from vq_plugin.tuning.metric import Metric
with Journal(Path(sys.argv[1])) as journal:
    journal.add("a", Evaluation(Metric(0.5), 1.0))
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_folder_belongs_to_one_process_until_it_ends_or_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = f"another run is using {tmp_path}"
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "ready\n"
            # At once, and not when the other ends.
            with monkeypatch.context() as patch:
                patch.setattr("time.sleep", lambda _: pytest.fail("it waits"))
                with pytest.raises(ValueError, match=message):
                    Journal(tmp_path).__enter__()
        finally:
            os.kill(other.pid, signal.SIGKILL)
            other.wait()
    with Journal(tmp_path) as journal:
        assert journal.get("a") == Evaluation(Metric(0.5), 1.0)
        with pytest.raises(ValueError, match="another run"):
            Journal(tmp_path).__enter__()
    with Journal(tmp_path):
        pass
