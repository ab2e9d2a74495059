"""A search among many models must not pass one that was only lucky."""

import numpy as np
import pytest
import torch
from torch import Tensor

from vq_plugin import LossBudget
from vq_plugin.tuning.confidence import Judge
from vq_plugin.tuning.metric import Metric, loss_bound, mismatch, p_value

LIMIT = 0.02
SURE = LossBudget(absolute=LIMIT, confidence=0.95)
N = 1000


def metric(samples: Tensor) -> Metric:
    samples = samples.double()
    return Metric(float(samples.mean()), samples)


def models(
    rng: np.random.Generator, count: int, lost: float, won: float
) -> tuple[Metric, list[Metric]]:
    """A baseline of 80 %, and models that lose and win some of its answers by chance."""
    baseline = rng.random(N) < 0.8
    chance = rng.random((count, N))
    others = np.where(baseline, chance >= lost / 0.8, chance < won / 0.2)
    return metric(torch.from_numpy(baseline)), [metric(torch.from_numpy(row)) for row in others]


def accepted(judge: Judge, candidates: list[Metric]) -> list[int]:
    """Indexes of the models that a search over all of them may return."""
    found = dict(enumerate(candidates))
    return judge.confirmed(found, {i: -i for i in found})


def test_many_models_just_over_the_budget_rarely_pass() -> None:
    rng, runs = np.random.default_rng(0), 150
    plain = LossBudget(absolute=LIMIT)
    wrong = {"sure": 0, "mean": 0}
    for _ in range(runs):
        # Every model loses 2.05 points for sure: whatever is accepted is wrong.
        baseline, candidates = models(rng, 30, lost=0.0305, won=0.01)
        wrong["sure"] += bool(accepted(Judge(SURE, baseline), candidates))
        wrong["mean"] += bool(accepted(Judge(plain, baseline), candidates))
    noise = 3 * np.sqrt(0.05 * 0.95 / runs)
    assert wrong["sure"] / runs <= 0.05 + noise
    assert wrong["mean"] / runs > 0.9


def test_a_model_that_is_well_within_the_budget_passes() -> None:
    rng, runs = np.random.default_rng(0), 100
    passed = 0
    for _ in range(runs):
        baseline, candidates = models(rng, 1, lost=0.004, won=0.004)
        passed += bool(accepted(Judge(SURE, baseline), candidates))
    assert passed / runs > 0.9


def vector(judge: Judge, lost: tuple[int, int]) -> Metric:
    """A model that loses so many samples of the first and of the second part."""
    assert judge.baseline.samples is not None
    samples = judge.baseline.samples.clone()
    # The parts are found from outside: a loss that moves the level is one of the first part.
    first = [i for i in range(len(samples)) if _moves(judge, i)]
    second = sorted(set(range(len(samples))) - set(first))
    samples[first[: lost[0]]] = 0
    samples[second[: lost[1]]] = 0
    return metric(samples)


def _moves(judge: Judge, index: int) -> bool:
    assert judge.baseline.samples is not None
    changed = judge.baseline.samples.clone()
    changed[index] = 0
    level = judge.outcome(metric(judge.baseline.samples)).level
    return judge.outcome(metric(changed)).level != level


def test_the_second_part_confirms_from_the_largest_to_the_smallest() -> None:
    judge = Judge(LossBudget(absolute=0.1, confidence=0.95), metric(torch.ones(450)))
    # The first part finds 2 much worse than 1, which is smaller; 4 would pass, but comes after 0.
    lost = [(8, 45), (3, 12), (14, 0), (2, 18), (9, 0), (0, 2)]
    nbytes = dict(enumerate([30, 50, 55, 60, 20, 70]))
    found = {i: vector(judge, pair) for i, pair in enumerate(lost)}
    second = judge._parts()[1]
    passing = {
        i: p_value(judge.budget, torch.ones(300).double(), m.samples[second]) <= 0.05  # type: ignore[index]
        for i, m in found.items()
    }
    assert passing == {0: False, 1: True, 2: True, 3: True, 4: True, 5: True}
    for given in (found, dict(reversed(found.items()))):
        assert judge.confirmed(given, nbytes) == [5, 3, 1]
    assert judge.confirmed({4: found[4]}, nbytes) == [4]
    assert judge.confirmed({0: found[0]}, nbytes) == []
    assert judge.confirmed({}, {}) == []


def test_a_lucky_small_model_does_not_hide_a_safe_one() -> None:
    judge = Judge(LossBudget(absolute=0.03, confidence=0.95), metric(torch.ones(900)))
    found = {"big": vector(judge, (1, 2)), "small": vector(judge, (0, 14))}
    assert judge.confirmed(found, {"big": 100, "small": 50}) == ["big"]


def test_what_was_trained_is_not_held_up_by_what_does_not_hold() -> None:
    judge = Judge(LossBudget(absolute=0.1, confidence=0.95), metric(torch.ones(450)))
    found = {
        "untrained": vector(judge, (12, 40)),
        "trained": vector(judge, (9, 9)),
        "same, untrained": vector(judge, (10, 40)),
    }
    outcomes = [judge.outcome(m) for m in found.values()]
    assert outcomes[0].level - outcomes[0].doubt < outcomes[1].level
    assert [outcome.held for outcome in outcomes] == [False, True, True]
    nbytes = {"untrained": 100, "trained": 90, "same, untrained": 90}
    assert judge.confirmed(found, nbytes) == ["trained"]
    del found["trained"]
    assert judge.confirmed(found, nbytes) == []


@pytest.mark.parametrize("first", [40, 25])
def test_what_is_not_within_the_budget_on_all_samples_is_never_accepted(first: int) -> None:
    judge = Judge(LossBudget(absolute=0.01, confidence=0.95), metric(torch.ones(5000)))
    unlucky = vector(judge, (first, 18))
    second = judge._parts()[1]
    assert unlucky.samples is not None
    assert p_value(judge.budget, torch.ones(3333).double(), unlucky.samples[second]) < 0.05
    assert judge.confirmed({0: unlucky}, {0: 1}) == []


def test_the_doubt_is_how_far_the_parts_are_apart() -> None:
    rng, runs = np.random.default_rng(0), 300
    apart, doubts = [], []
    for _ in range(runs):
        baseline, (model,) = models(rng, 1, lost=0.03, won=0.01)
        judge = Judge(SURE, baseline)
        outcome = judge.outcome(model)
        second = judge._parts()[1]
        assert baseline.samples is not None
        assert model.samples is not None
        apart.append(
            outcome.level - loss_bound(SURE, baseline.samples[second], model.samples[second])
        )
        doubts.append(outcome.doubt)
    assert np.std(apart) == pytest.approx(np.mean(doubts), rel=0.15)


def test_a_third_is_for_the_search_and_both_parts_are_mixed() -> None:
    """A data set sorted by class must not be split by class."""
    judge = Judge(SURE, metric(torch.ones(600)))
    first = [i for i in range(600) if _moves(judge, i)]
    assert len(first) == 200
    assert 70 < sum(i < 300 for i in first) < 130


def test_samples_too_few_for_any_proof_are_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"100 samples cannot show.*about \d+ samples") as error:
        Judge(SURE, metric(torch.arange(100) % 2))
    enough = int(str(error.value).partition("about ")[2].split()[0])
    Judge(SURE, metric(torch.arange(enough) % 2))


def test_without_a_confidence_the_mean_decides() -> None:
    judge = Judge(LossBudget(absolute=0.1), Metric(0.9))
    held, failed = judge.outcome(Metric(0.8)), judge.outcome(Metric(0.79))
    assert (held.held, failed.held) == (True, False)
    assert held.level == pytest.approx(0.1)
    found = {1: Metric(0.8), 0: Metric(0.85), 2: Metric(0.79)}
    assert judge.confirmed(found, {0: 5, 1: 6, 2: 4}) == [1, 0]
    assert held.doubt == 0
    lower = Judge(LossBudget(absolute=0.1, higher_is_better=False), Metric(0.9))
    assert lower.outcome(Metric(1.0)).held
    assert not lower.outcome(Metric(1.01)).held


def test_with_a_confidence_the_bound_decides() -> None:
    judge = Judge(SURE, metric(torch.arange(300) % 2))
    samples = judge.baseline.samples
    assert samples is not None
    changed = samples.clone()
    changed[1:9:2] = 0  # 4 of 300: 1.3 % in the mean, more for sure
    assert LossBudget(absolute=LIMIT).holds(judge.baseline.mean, float(changed.mean()))
    outcome = judge.outcome(metric(changed))
    assert outcome.level > LIMIT
    assert not outcome.held


def test_a_failed_evaluation_does_not_hold() -> None:
    outcome = Judge(SURE, metric(torch.ones(500))).outcome(None)
    assert not outcome.held
    assert np.isnan(outcome.level)


def test_a_confidence_needs_one_result_per_sample() -> None:
    with pytest.raises(ValueError, match=r"let evaluate return a vector.*not its mean"):
        Judge(SURE, Metric(0.9))


@pytest.mark.parametrize("confidence", [None, 0.95])
def test_a_relative_budget_needs_a_baseline_other_than_zero(confidence: float | None) -> None:
    with pytest.raises(ValueError, match="use absolute="):
        Judge(LossBudget(relative=0.01, confidence=confidence), metric(torch.zeros(10)))


def test_results_of_another_length_are_told() -> None:
    ten = metric(torch.ones(10))
    assert mismatch(ten, metric(torch.ones(10)), "evaluate") is None
    assert mismatch(ten, metric(torch.ones(9)), "test") == (
        "test returned 9 results, and 10 for the float model"
    )
    assert "returned 1 results, and 10" in str(mismatch(ten, Metric(0.9), "test"))
    assert "returned 10 results, and 1" in str(mismatch(Metric(0.9), ten, "test"))
