"""The project's recipes: those on digits run to the end, all others fit their models."""

import json
from pathlib import Path

import pytest
from torch import nn

import vq_plugin as vq
from integration.workloads import fashion_mnist_cnn, fashion_mnist_resnet20
from vq_plugin.cli import main
from vq_plugin.recipe import read_recipe
from vq_plugin.workloads import digits

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
ON_DIGITS = [path for path in RECIPES if "workloads.digits:model" in path.read_text()]
ON_FASHION_MNIST = [path for path in RECIPES if "workloads.fashion_mnist" in path.read_text()]


def stem(path: Path) -> str:
    return path.stem


def test_there_are_recipes_for_both_and_no_others() -> None:
    assert len(RECIPES) >= 5
    assert len(ON_DIGITS) >= 3
    assert sorted(ON_DIGITS + ON_FASHION_MNIST) == RECIPES


@pytest.mark.parametrize("path", ON_DIGITS, ids=stem)
def test_a_recipe_on_digits_reaches_its_budget(path: Path, tmp_path: Path) -> None:
    assert main(["tune", str(path), "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["result"]["passed"] is True
    small = vq.load(tmp_path / "model.vq", digits.DigitsCNN().eval())
    recipe, _ = read_recipe(path)
    budget = recipe.tuning.accuracy_criterion.budget()
    float_model = digits.model()
    for metric in (digits.evaluate, digits.test):
        assert budget.holds(metric(float_model), metric(small))
    float_bytes = sum(4 * value.numel() for value in float_model.state_dict().values())
    assert (tmp_path / "model.vq").stat().st_size < float_bytes / 15


def test_deep_compression_is_the_smallest_by_far(tmp_path: Path) -> None:
    path = next(path for path in ON_DIGITS if path.stem == "deep_compression_digits")
    assert main(["tune", str(path), "--output", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["sizes"]["file_rate"] > 80


def test_the_rules_of_digits_layers_are_kept(tmp_path: Path) -> None:
    path = next(path for path in ON_DIGITS if path.stem == "digits_layers")
    assert main(["tune", str(path), "--output", str(tmp_path)]) == 0
    small = vq.load(tmp_path / "model.vq", digits.DigitsCNN().eval())
    schemes = {row.name: str(row.scheme) for row in vq.summary(small).rows}
    assert "features.0" not in schemes
    assert schemes["features.3"] == "km(k=16)"
    assert all(scheme.startswith("km(") for scheme in schemes.values())


@pytest.mark.parametrize("path", ON_FASHION_MNIST, ids=stem)
def test_a_recipe_on_fashion_mnist_fits_its_model(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def untrained(_: str, model: nn.Module, train: object) -> nn.Module:
        return model.eval()

    # The check looks at names and types of layers, for which nobody has to train for minutes.
    for workload in (fashion_mnist_cnn, fashion_mnist_resnet20):
        monkeypatch.setattr(workload, "trained", untrained)
    assert main(["recipe", "check", str(path)]) == 0
    assert "to search" in capsys.readouterr().out


@pytest.mark.parametrize("path", RECIPES, ids=stem)
def test_a_confidence_goes_with_results_per_sample(path: Path) -> None:
    recipe, _ = read_recipe(path)
    sure = recipe.tuning.accuracy_criterion.confidence is not None
    for reference in (recipe.evaluation.tuning, recipe.evaluation.test):
        assert reference is not None
        assert reference.endswith("_samples") == sure
