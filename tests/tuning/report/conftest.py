"""Results of searches, made by hand."""

import math
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.left_float import FloatWeight
from vq_plugin.summary import summary
from vq_plugin.tuning.budget import LossBudget
from vq_plugin.tuning.result import (
    Export,
    FrontierPoint,
    LayerCandidate,
    LayerLadder,
    Trial,
    TuneResult,
)

LADDER: tuple[vq.Scheme | None, ...] = (
    None,
    vq.KM(k=256),
    vq.KM(k=16),
    vq.KM(k=8),
    vq.KM(k=4),
    vq.PQ(k=16, dim=4, axis="out"),
    vq.PQ(k=16, dim=4, codebooks="tensor"),
    vq.PQ(k=16, dim=8, codebooks="tensor"),
)
NASTY = ('<script>alert("x")</script>', "a&b\"'>", "überlang_" * 30, "{{ 7 * 7 }}")


def network() -> nn.Module:
    """A float model of five layers."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU())
    classifier = nn.Sequential(
        nn.Linear(800, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10)
    )
    return nn.Sequential(OrderedDict(features=features, classifier=classifier))


def network_with_nasty_names() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict((name, nn.Linear(64, 64)) for name in NASTY))


def ladder_of(name: str, weight: torch.Tensor, sensitivity: float) -> LayerLadder:
    """Candidates whose harm grows as the bits shrink."""
    shape, nbytes = tuple(weight.shape), weight.nbytes
    sizes = [nbytes if s is None else s.geometry(shape).nbytes for s in LADDER]
    candidates = [
        LayerCandidate(
            scheme=scheme,
            nbytes=size,
            error=0.0 if scheme is None else 0.9 * (size / nbytes) ** 1.5,
            harm=0.0 if scheme is None else sensitivity * 1e-4 * (nbytes / size) ** 1.7,
        )
        for scheme, size in zip(LADDER, sizes, strict=True)
        if scheme is None or size < nbytes
    ]
    candidates.sort(key=lambda candidate: -candidate.nbytes)
    return LayerLadder(name, shape, nbytes, tuple(candidates))


def ladders_of(model: nn.Module) -> tuple[LayerLadder, ...]:
    weights = [
        (name, module.weight.detach())
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    return tuple(ladder_of(n, w, 1 + 3 * (i % 4)) for i, (n, w) in enumerate(weights))


def trials_of(
    model: nn.Module, ladders: tuple[LayerLadder, ...], budget: LossBudget, count: int
) -> list[Trial]:
    """Jumps along the ladders, then one layer at a time from the best setting so far.

    The fourth trial raises an error and the seventh gives NaN.
    """
    float_nbytes = sum(value.nbytes for value in model.state_dict().values())
    most_harm = sum(ladder.candidates[-1].harm for ladder in ladders)
    jumps = (2, 7, 5, 6, 3, 4, 4)
    best, trials = [1] * len(ladders), list[Trial]()
    for index in range(count):
        local = index >= len(jumps)
        levels = list(best) if local else [jumps[index]] * len(ladders)
        if local:
            levels[(2 * index) % len(ladders)] += 1
        levels = [min(lv, len(la.candidates) - 1) for lv, la in zip(levels, ladders, strict=True)]
        picked = [la.candidates[lv] for lv, la in zip(levels, ladders, strict=True)]
        nbytes = float_nbytes - sum(la.float_nbytes for la in ladders)
        nbytes += sum(candidate.nbytes for candidate in picked)
        harm = sum(candidate.harm for candidate in picked)
        failed = {3: "ValueError: evaluate raised", 6: "evaluate returned nan"}.get(index)
        noise = 0.0008 * math.sin(7 * index)
        loss = math.nan if failed else 0.08 * harm / most_harm - 0.001 + noise
        held = not failed and loss <= budget.limit
        if held:
            best = levels
        trials.append(
            Trial(
                schemes={la.name: c.scheme for la, c in zip(ladders, picked, strict=True)},
                nbytes=nbytes,
                rate=float_nbytes / nbytes,
                harm=harm,
                score=0.92 * (1 - loss),
                loss=loss,
                interval=None if failed else (loss - 0.0021, loss + 0.0024),
                held=held,
                phase="local" if local else "frontier",
                seconds=1.25 + 0.1 * index,
                error=failed,
            )
        )
    return trials


def passing(model: nn.Module | None = None, count: int = 25) -> TuneResult:
    model = network() if model is None else model
    budget = LossBudget(relative=0.01)
    ladders = ladders_of(model)
    trials = trials_of(model, ladders, budget, count)
    chosen = min((trial for trial in trials if trial.held), key=lambda trial: trial.nbytes)
    small = vq.compress(model, dict(chosen.schemes))
    sizes = summary(small)
    assert sizes.file_nbytes + sizes.other_nbytes == chosen.nbytes
    rest = chosen.nbytes - sizes.file_nbytes
    steps = [[la.candidates[i] for la in ladders if i < len(la.candidates)] for i in range(8)]
    frontier = [
        FrontierPoint(rest + sum(c.nbytes for c in step), sum(c.harm for c in step))
        for step in steps
    ]
    return TuneResult(
        model=small,
        schemes=dict(chosen.schemes),
        passed=True,
        baseline=0.92,
        score=chosen.score,
        loss=chosen.loss,
        interval=chosen.interval,
        rate=chosen.rate,
        trials=tuple(trials),
        layers=ladders,
        frontier=tuple(frontier),
        budget=budget,
        test_baseline=0.914,
        test_score=0.9069,
        test_loss=0.0078,
        test_interval=(0.0051, 0.0106),
        search_seconds=12.5,
    )


def missed(result: TuneResult, reason: str = "no setting holds the budget") -> TuneResult:
    return replace(
        result,
        model=network(),
        schemes=None,
        passed=False,
        score=result.baseline,
        loss=0.0,
        interval=None,
        rate=1.0,
        trials=tuple(
            replace(
                trial,
                loss=trial.loss + 0.01,
                interval=None
                if trial.interval is None
                else (trial.loss + 0.008, trial.loss + 0.012),
                held=False,
            )
            for trial in result.trials
        ),
        test_score=None,
        test_loss=None,
        test_interval=None,
        stopped=reason,
    )


def without_intervals(result: TuneResult) -> TuneResult:
    trials = tuple(replace(trial, interval=None) for trial in result.trials)
    return replace(result, trials=trials, interval=None, test_interval=None)


@pytest.fixture(scope="session")
def results() -> dict[str, TuneResult]:
    """One result of every kind."""
    full = passing()
    deep = nn.Sequential(*(nn.Linear(32 + 8 * (i % 5), 24 + 8 * (i % 3)) for i in range(100)))
    nasty = passing(network_with_nasty_names())
    return {
        "passed": full,
        "missed": missed(full),
        "missed on the test split": replace(
            missed(full),
            trials=full.trials,
            test_score=0.9,
            test_loss=0.0153,
            test_interval=(0.0122, 0.0184),
            stopped="the setting that held on the tuning split does not hold on the test split",
        ),
        "no trials": replace(
            missed(full, "timeout=1 s reached"), trials=(), frontier=(), layers=()
        ),
        "no intervals": without_intervals(full),
        "no test split": replace(
            full, test_baseline=None, test_score=None, test_loss=None, test_interval=None
        ),
        "absolute, with confidence": replace(
            full,
            budget=LossBudget(absolute=0.01, confidence=0.9),
            cut="max_trials=25 reached",
            resumed=3,
        ),
        "unsure": replace(
            missed(full, "no setting was confirmed"),
            budget=LossBudget(relative=0.01, confidence=0.95),
            trials=tuple(replace(trial, held=False) for trial in full.trials),
        ),
        "100 layers": passing(deep, count=60),
        "nasty names": replace(
            nasty,
            cut="<b>max_trials</b>",
            trials=tuple(
                replace(t, error=f"RuntimeError: <img src=x onerror=alert(1)> {'x' * 300}")
                if t.error
                else t
                for t in nasty.trials
            ),
        ),
        "one trial": passing(count=1),
        "left in float": replace(
            full,
            left_float=(
                FloatWeight("encoder.in_proj_weight", 123_456, "no candidate", True),
                FloatWeight("<b>tail</b>", 9_000, "k above the values & more", False),
            ),
        ),
        "exports": replace(
            full,
            exports=(
                Export("onnx", "model.onnx", 23_456, 1.0, 9e-7, "256 samples, ONNX Runtime 1.32.0"),
                Export("coreml", "model.mlpackage", 24_000, 1.0, None, "<b>5 of 5</b> weights"),
            ),
        ),
        "all failed": replace(
            missed(full),
            trials=tuple(
                replace(t, loss=math.nan, score=math.nan, interval=None, error="out of memory")
                for t in missed(full).trials
            ),
        ),
    }
