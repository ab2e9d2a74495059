"""What a search tells while it goes on: lines, the user's function, how to go on."""

import io
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import vq_plugin as vq
from tests.tuning.conftest import Task
from vq_plugin.tuning.deadline import Deadline
from vq_plugin.tuning.result import Trial
from vq_plugin.tuning.watch import Watch

BUDGET = vq.LossBudget(relative=0.1)
TRIAL = Trial({}, 200, 12.34, 0.01, 0.9, 0.004, None, True, "frontier", 2.0)


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_the_log_has_a_line_for_every_stage_and_trial(
    task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vq_plugin")
    result = vq.tune(task.model, task.correct, BUDGET, **task.settings, max_trials=4)
    said = lines(caplog)
    assert said[0] == "evaluate the float model"
    trials = [line for line in said if line.startswith("trial ")]
    assert len(trials) == len(result.trials) == 4
    for line, trial in zip(trials, result.trials, strict=True):
        assert f": {trial.rate:.1f}x {'held' if trial.held else 'over'}, " in line
    assert said.index("search, at most 4 trials") < said.index(trials[0])
    assert said[-1] == "verdict"


def test_what_is_not_confirmed_is_not_said_to_be_over_or_held(
    task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    """The search goes by a part of the samples: "held, loss 1.06 %" of 1 % was a contradiction."""
    caplog.set_level(logging.INFO, "vq_plugin")
    watch = Watch(vq.LossBudget(relative=0.03, confidence=0.95), Deadline())
    trial = vq.tune(task.model, task.correct, BUDGET, **task.settings, max_trials=1).trials[0]
    caplog.clear()
    with watch:
        for held, loss in ((True, 0.01), (False, 0.01), (False, 0.04)):
            watch.trial(replace(trial, held=held, loss=loss), False)
    assert [line.split()[3] for line in lines(caplog)] == ["likely,", "unsure,", "over,"]


def test_nothing_is_printed_unless_somebody_listens(
    task: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    vq.tune(task.model, task.correct, BUDGET, **task.settings, max_trials=1)
    assert capsys.readouterr() == ("", "")


def test_the_callback_gets_every_trial_in_order(task: Task) -> None:
    seen: list[Trial] = []
    settings = {**task.settings, "max_trials": 4}
    result = vq.tune(task.model, task.correct, BUDGET, **settings, callback=seen.append)
    assert [trial.schemes for trial in seen] == [trial.schemes for trial in result.trials]
    assert [trial.score for trial in seen] == [trial.score for trial in result.trials]


def stop_at(count: int, error: BaseException) -> Callable[[Trial], None]:
    seen: list[Trial] = []

    def stop(trial: Trial) -> None:
        seen.append(trial)
        if len(seen) == count:
            raise error

    return stop


def test_an_interrupted_search_says_how_to_go_on_and_what_it_resumed(
    task: Task, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "vq_plugin")
    settings = {**task.settings, "max_trials": 4, "folder": tmp_path}
    callback = stop_at(3, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as stopped:
        vq.tune(task.model, task.correct, BUDGET, **settings, callback=callback)
    # The float model is evaluated twice.
    (note,) = stopped.value.__notes__
    assert note == (f"5 evaluations are in {tmp_path}: to go on from there, start the same again")
    caplog.clear()
    vq.tune(task.model, task.correct, BUDGET, **settings)
    said = lines(caplog)
    assert said[0] == "resumed: 5 evaluations of an interrupted run"
    assert [line.count("; resumed;") for line in said if line.startswith("trial ")] == [1, 1, 1, 0]


def test_what_a_callback_raises_reaches_the_caller(task: Task) -> None:
    with pytest.raises(LookupError, match="mine"):
        vq.tune(
            task.model,
            task.correct,
            BUDGET,
            **task.settings,
            callback=stop_at(1, LookupError("mine")),
        )


def test_the_time_that_is_left_goes_by_new_trials(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "vq_plugin")
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    with Watch(BUDGET, Deadline()) as watch:
        watch.stage("search", 10)
        watch.trial(TRIAL, resumed=True)
        for _ in range(2):
            now[0] += 60
            watch.trial(TRIAL, resumed=False)
        watch.trial(replace(TRIAL, error="raised ValueError at a.py:3:\n no"), resumed=False)
    said = lines(caplog)
    assert said[1] == "trial 1: 12.3x held, loss 0.40 %; resumed; best 12.3x"
    assert said[2].endswith("; 2.0 s; best 12.3x; at most 8 min left")
    assert said[3].endswith("; at most 7 min left")
    assert "12.3x failed: raised ValueError at a.py:3: no;" in said[4]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("level", [logging.NOTSET, logging.WARNING])
def test_a_bar_on_a_terminal_unless_the_logger_is_turned_down(
    level: int, task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(logging.getLogger("vq_plugin"), "level", level)
    vq.tune(task.model, task.correct, BUDGET, **task.settings, max_trials=2)
    shown = stream.getvalue()
    assert bool(re.search(r"verdict \|.*\| 2 trials", shown)) == (level == 0)
    assert bool(shown) == (level == 0)
