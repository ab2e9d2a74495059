"""The terminal's table."""

from dataclasses import replace

import pytest

import vq_plugin as vq
from vq_plugin.tuning.report import format_result
from vq_plugin.tuning.result import TuneResult


def paragraphs(result: TuneResult) -> list[str]:
    return format_result(result).split("\n\n")


def test_trials_layers_totals_and_the_verdict_last(results: dict[str, TuneResult]) -> None:
    trials, layers, totals, splits, verdict = paragraphs(results["passed"])
    assert len(trials.splitlines()) == 2 + 25
    assert layers.count("\n") == 1 + 5
    assert "layer rate" in totals
    assert "0.51 to 1.06 %" in splits
    assert verdict.startswith("PASSED: 907.8 kB -> 58.2 kB, 15.6x smaller, loss 1.00 % of 1 %")
    assert "0.78 % (95 % interval 0.51 to 1.06 %)." in " ".join(verdict.split())


@pytest.mark.parametrize(
    "name", ["passed", "missed", "100 layers", "nasty names", "one trial", "no intervals"]
)
def test_no_line_is_wider_than_100_columns(results: dict[str, TuneResult], name: str) -> None:
    assert max(map(len, format_result(results[name]).splitlines())) <= 100


def test_what_a_trial_changed(results: dict[str, TuneResult]) -> None:
    lines = paragraphs(results["no intervals"])[0].splitlines()[2:]
    assert lines[0].endswith("held    km(k=16) in 3 layers, pq(k=16,dim=4,axis=out) in 2")
    # The large dense layer goes first: its bytes change most.
    assert lines[4].endswith("held    5 layers: classifier.0 -> km(k=8), ...")
    assert lines[6].endswith("failed  evaluate returned nan")
    assert lines[7].endswith("held    classifier.4 -> km(k=8)")
    assert sum("chosen" in line for line in lines) == 1


def test_not_reached_says_why_and_what_came_closest(results: dict[str, TuneResult]) -> None:
    verdict = " ".join(paragraphs(results["missed"])[-1].split())
    assert verdict.startswith("NOT REACHED: No setting holds the budget. Closest of 25 trials:")
    assert "115.3 kB, 7.9x smaller, loss 1.23 % of 1 % allowed" in verdict
    verdict = " ".join(paragraphs(results["missed on the test split"])[-1].split())
    assert "loss 1.00 % of 1 % allowed" in verdict
    assert "on the untouched test split 1.53 % (95 % interval 1.22 to 1.84 %)." in verdict


def test_one_trial_is_no_plural(results: dict[str, TuneResult]) -> None:
    missed = results["missed"]
    alone = replace(missed, trials=missed.trials[:1])
    assert "The only trial: " in format_result(alone)


def test_a_search_without_trials(results: dict[str, TuneResult]) -> None:
    splits, verdict = paragraphs(results["no trials"])
    assert "0.9200" in splits
    assert verdict == "NOT REACHED: timeout=1 s reached."


def test_a_loss_is_in_the_unit_of_the_budget(results: dict[str, TuneResult]) -> None:
    text = format_result(results["absolute, with confidence"])
    assert "of 0.01 allowed" in text
    assert "90 % interval" in text
    assert "The search was cut: max_trials=25 reached" in text
    sure = replace(results["no test split"], budget=vq.LossBudget(relative=0.01, confidence=0.975))
    assert "97.5 % interval" in format_result(sure)
    gain = replace(results["no test split"], loss=-0.002, interval=None)
    assert "loss -0.20 % of 1 % allowed." in format_result(gain)
    nothing = replace(results["no test split"], loss=-1e-9, interval=None)
    assert "loss 0.00 % of" in format_result(nothing)


def test_a_cut_that_is_the_verdict_is_told_once(results: dict[str, TuneResult]) -> None:
    reason = "timeout reached after 25 trials: no setting that holds had been found"
    cut = replace(results["missed"], stopped=reason, cut=reason)
    assert " ".join(format_result(cut).split()).count("timeout") == 0
    assert " ".join(format_result(cut).split()).count("Timeout reached after 25 trials") == 1


def test_within_the_limit_but_without_the_confidence_is_not_over(
    results: dict[str, TuneResult],
) -> None:
    full = results["absolute, with confidence"]
    first, *rest = full.trials
    result = replace(full, trials=(replace(first, held=False), *rest))
    assert " unsure  " in paragraphs(result)[0].splitlines()[2]


def test_a_reduced_k_is_noted(results: dict[str, TuneResult]) -> None:
    assert "k 16 -> 9" in paragraphs(results["one trial"])[1]


def test_the_text_needs_no_unicode_terminal(results: dict[str, TuneResult]) -> None:
    for name in ("passed", "missed", "absolute, with confidence"):
        format_result(results[name]).encode("ascii")


def test_weights_left_in_float_are_listed(results: dict[str, TuneResult]) -> None:
    left = paragraphs(results["left in float"])[3].splitlines()
    assert left[0].split() == ["left", "in", "float", "size", "why"]
    assert left[2].split() == ["encoder.in_proj_weight", "123.5", "kB", "no", "candidate"]
    assert "left in float" not in format_result(results["passed"])


def test_a_bare_layer_has_a_name(results: dict[str, TuneResult]) -> None:
    ladder = results["passed"].layers[4]
    trial = replace(results["passed"].trials[0], schemes={"": vq.KM(k=4)})
    result = replace(
        results["missed"], layers=(replace(ladder, name=""),), trials=(replace(trial), trial)
    )
    assert "the same setting" in format_result(replace(result, passed=False))
