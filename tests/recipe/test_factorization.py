"""Recipes that factorize before the search, as PENNI does."""

import json
from pathlib import Path
from typing import Any

import pytest

import vq_plugin as vq
from vq_plugin.recipe import RecipeError, run_recipe
from vq_plugin.workloads import digits

RECIPE = f"""\
version: 1
model: {digits.__name__}:model
factorization:
  loader: {digits.__name__}:training_batches
  optype_wise:
    Conv2d: {{factor: basis(d=5)}}
  op_wise:
    features.0: {{factor: null}}
  epochs: 4
quantization:
  model_wise: {{scheme: ["km(k=9,keep_zeros=true)", "km(k=33,keep_zeros=true)"]}}
  calibration: {digits.__name__}:calibration
evaluation:
  tuning: {digits.__name__}:evaluate
tuning:
  accuracy_criterion: {{relative: 0.05}}
  exit_policy: {{max_trials: 2}}
output: unused
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_sparse_products_are_coded_and_counted(tmp_path: Path) -> None:
    outcome = run_recipe(written(tmp_path, RECIPE), tmp_path / "run")
    assert outcome.result.passed
    report = json.loads(outcome.report_path.read_text(encoding="utf-8"))
    before, after = report["result"]["float_work"], report["result"]["work"]
    assert before["multiplications"] == vars(
        vq.count_work(digits.model(), digits.calibration())
    )["multiplications"]  # fmt: skip
    assert after["nonzero_weights"] < before["nonzero_weights"]
    assert after["nonzero_multiplications"] < 0.7 * before["nonzero_multiplications"]
    assert {"features.3.basis", "features.3.coefficients"} <= {
        layer["name"] for layer in report["layers"]
    }
    assert "fewer" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")

    assert outcome.model_path is not None
    again = vq.load(outcome.model_path, digits.model())
    assert digits.evaluate(again) == outcome.result.score
    assert not [*(tmp_path / "run").glob("prun*")]


def test_channels_without_a_coefficient_are_gone(tmp_path: Path) -> None:
    text = RECIPE.replace("epochs: 4", "epochs: 4\n  deviations: 2.5")
    text = text.replace("relative: 0.05", "relative: 0.95")
    outcome = run_recipe(written(tmp_path, text), tmp_path / "run")
    report = json.loads(outcome.report_path.read_text(encoding="utf-8"))
    before, after = report["result"]["float_work"], report["result"]["work"]
    assert outcome.model_path is not None
    again: Any = vq.load(outcome.model_path, digits.model())
    assert again.features[0].out_channels < 16
    assert again.features[3].basis.weight.shape == (5, 1, 3, 3)
    # Not only those by zeros, which run all the same.
    assert after["multiplications"] < before["multiplications"]
    assert report["sizes"]["float_nbytes"] == vq.summary(
        vq.compress(digits.model(), vq.KM())
    ).model_float_nbytes  # fmt: skip
    assert digits.evaluate(again) == outcome.result.score


@pytest.mark.parametrize(
    ("before", "after", "line", "message"),
    [
        ("factor: basis(d=5)", "factor: basis(d=10)", 3, "features.3"),
        ("factor: basis(d=5)", "factor: basis(d=0)", 6, "factorization.optype_wise"),
        ("factor: basis(d=5)", "factor: km(k=4)", 6, "factorization.optype_wise"),
        ("    features.0:", "    featuers.0:", 8, "factorization.op_wise: "),
        ("  epochs: 4", "  epochs: 1", 9, "factorization.epochs"),
        ("quantization:", "pruning: {loader: 'a:b', sparsity: 0.9}\nquantization:", None, "one of"),
    ],
)
def test_errors_have_the_line(
    before: str, after: str, line: int | None, message: str, tmp_path: Path
) -> None:
    path = written(tmp_path, RECIPE.replace(before, after))
    with pytest.raises(RecipeError) as error:
        run_recipe(path, tmp_path / "run")
    assert message in str(error.value)
    assert line is None or f"recipe.yaml:{line}" in str(error.value).replace(", line ", ":")
