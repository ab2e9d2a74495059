"""Recipes that prune before the search and train after it."""

import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.recipe import RecipeError, run_recipe
from vq_plugin.tuning import TuneResult
from vq_plugin.workloads import digits
from vq_plugin.workloads.data import Batches

RECIPE = f"""\
version: 1
model: {digits.__name__}:model
pruning:
  loader: {__name__}:pruning_batches
  sparsity: 0.8
  epochs: 3
quantization:
  model_wise: {{scheme: ["km(k=3,keep_zeros=true)", "km(k=9,keep_zeros=true)"]}}
  calibration: {digits.__name__}:calibration
recovery:
  loader: {__name__}:recovery_batches
  epochs: 2
  learning_rate: 0.02
  max_trials: 2
evaluation:
  tuning: {__name__}:evaluate
tuning:
  accuracy_criterion: {{relative: 0.01}}
  exit_policy: {{max_trials: 4}}
  random_seed: 5
output: unused
"""


class Killed(Batches):
    """Batches of which one reading may be killed."""

    reads = 0
    kill = 0

    def __iter__(self) -> Any:
        type(self).reads += 1
        if self.reads == self.kill:
            raise KeyboardInterrupt
        return super().__iter__()


class Pruning(Killed):
    pass


class Recovering(Killed):
    pass


def pruning_batches() -> Batches:
    return Pruning(digits.load().train)


def recovery_batches() -> Batches:
    return Recovering(digits.load().train)


def evaluate(model: nn.Module) -> Tensor:
    return digits.evaluate_samples(model)


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    for batches in (Pruning, Recovering):
        batches.reads = batches.kill = 0
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


@pytest.mark.parametrize("rest", [None, "float16"])
def test_a_recipe_does_what_python_does(
    recipe: Path, tmp_path: Path, rest: Literal["float16"] | None
) -> None:
    if rest:
        recipe.write_text(f"{RECIPE}rest: {rest}\n", encoding="utf-8")
    outcome = run_recipe(recipe, tmp_path / "run")
    model = digits.model()
    sparse = vq.prune(model, pruning_batches(), 0.8, epochs=3, seed=5)
    candidates = [vq.KM(k=3, keep_zeros=True), vq.KM(k=9, keep_zeros=True)]
    result = vq.tune(
        model, evaluate, vq.LossBudget(relative=0.01), digits.calibration(),
        candidates=candidates, max_trials=4, seed=5, start=sparse, folder=tmp_path / "python",
        recovery=vq.Recovery(recovery_batches(), epochs=2, lr=0.02, max_trials=2), rest=rest,
    )  # fmt: skip
    assert result.passed
    models = [(tmp_path / run / "model.vq").read_bytes() for run in ("run", "python")]
    assert models[0] == models[1]
    report = json.loads(outcome.report_path.read_text(encoding="utf-8"))
    assert report["result"]["baseline"] == digits.evaluate(model)
    assert report["sizes"]["float_nbytes"] == sum(v.nbytes for v in model.state_dict().values())
    phases = [trial["phase"] for trial in report["result"]["trials"]]
    assert "recovery" in phases
    assert phases == [trial.phase for trial in result.trials]
    # The zeros of the pruning are zeros of what comes out.
    for name, weight in sparse.named_parameters():
        if weight.dim() > 1:
            decoded = outcome.result.model.get_submodule(name.removesuffix(".weight")).weight
            assert bool((decoded[weight == 0] == 0).all())  # type: ignore[index]


def test_a_recipe_learns_as_python_does(recipe: Path, tmp_path: Path) -> None:
    text = RECIPE.replace("recovery:\n", "recovery:\n  method: learn\n")
    text = text[: text.index("pruning:")] + text[text.index("quantization:") :]
    recipe.write_text(text, encoding="utf-8")
    outcome = run_recipe(recipe, tmp_path / "run")
    result = vq.tune(
        digits.model(), evaluate, vq.LossBudget(relative=0.01), digits.calibration(),
        candidates=[vq.KM(k=3, keep_zeros=True), vq.KM(k=9, keep_zeros=True)],
        max_trials=4, seed=5,
        recovery=vq.Learning(recovery_batches(), epochs=2, lr=0.02, max_trials=2),
    )  # fmt: skip
    report = json.loads(outcome.report_path.read_text(encoding="utf-8"))
    prices = [trial["rate_weight"] for trial in report["result"]["trials"]]
    assert prices == [trial.rate_weight for trial in result.trials]
    assert sum(price is not None for price in prices) == 2
    assert essence(outcome.result) == essence(result)


LEARNED = f"""\
version: 1
model: {digits.__name__}:model
recovery:
  method: learn
  loader: {__name__}:recovery_batches
  epochs: 2
  max_trials: 1
  model_wise: {{scheme: null}}
  optype_wise:
    Linear: {{scheme: "pq(k=16,dim=4,codebooks=tensor)"}}
  op_wise:
    classifier.3: {{scheme: null}}
quantization:
  calibration: {digits.__name__}:calibration
evaluation:
  tuning: {__name__}:evaluate
tuning:
  accuracy_criterion: {{relative: 0.1}}
  exit_policy: {{max_trials: 1}}
output: unused
"""


def test_layers_of_a_recipe_learn_vectors(recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(LEARNED, encoding="utf-8")
    outcome = run_recipe(recipe, tmp_path / "run")
    learned = [trial for trial in outcome.result.trials if trial.rate_weight is not None]
    assert len(learned) == 1
    schemes = {name: str(scheme) for name, scheme in learned[0].schemes.items()}
    vectors = {name for name, scheme in schemes.items() if scheme.startswith("pq(")}
    assert vectors == {"classifier.0"}
    assert all("keep_zeros" in schemes[name] for name in set(schemes) - vectors)


@pytest.mark.parametrize(
    ("before", "after", "line", "message"),
    [
        ("  method: learn\n", "", 3, "method: learn"),
        ("pq(k=16,dim=4,codebooks=tensor)", "pq(k=16,dim=4,scale=row)", 3, "does not learn"),
        ("pq(k=16,dim=4,codebooks=tensor)", "rq(k=16,stages=2)", 3, "does not learn"),
        ("pq(k=16,dim=4,codebooks=tensor)", "svd(rate=4)+km(k=16)", 10, "recovery.optype_wise"),
        ("classifier.3", "clasifier.3", 12, "recovery.op_wise"),
        ("Linear:", "Liner:", 10, "Linear"),
    ],
)
def test_what_cannot_be_learned_has_its_line(
    before: str, after: str, line: int, message: str, recipe: Path, tmp_path: Path
) -> None:
    assert before in LEARNED
    recipe.write_text(LEARNED.replace(before, after), encoding="utf-8")
    with pytest.raises(RecipeError) as error:
        run_recipe(recipe, tmp_path / "run")
    assert message in str(error.value)
    assert f"recipe.yaml:{line}" in str(error.value).replace(", line ", ":")


@pytest.mark.parametrize(("killed", "kill"), [(Pruning, 3), (Recovering, 2)])
def test_a_killed_recipe_does_nothing_twice(
    recipe: Path, tmp_path: Path, killed: type[Killed], kill: int
) -> None:
    whole = run_recipe(recipe, tmp_path / "whole").result
    reads = {batches: batches.reads for batches in (Pruning, Recovering)}
    Pruning.reads = Recovering.reads = 0
    killed.kill = kill
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "killed")
    found = run_recipe(recipe, tmp_path / "killed").result
    assert essence(found) == essence(whole)
    reads[killed] += 1
    assert reads == {batches: batches.reads for batches in (Pruning, Recovering)}
    folders = [tmp_path / "whole", tmp_path / "killed"]
    assert len({(folder / "model.vq").read_bytes() for folder in folders}) == 1
    for folder in folders:
        left = sorted(path.name for path in folder.iterdir())
        assert left == ["model.vq", "report.html", "report.json"]


def essence(result: TuneResult) -> list[tuple[object, ...]]:
    return [(t.schemes, t.score, t.phase, t.held) for t in result.trials]


def test_another_pruning_is_not_that_of_the_folder(recipe: Path, tmp_path: Path) -> None:
    Recovering.kill = 1
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path / "run")
    assert (tmp_path / "run/pruned.safetensors").exists()
    recipe.write_text(RECIPE.replace("0.8", "0.5"), encoding="utf-8")
    result = run_recipe(recipe, tmp_path / "run").result
    weights = [m.weight for m in result.model.modules() if hasattr(m, "codebooks")]
    zeros = torch.cat([(weight == 0).flatten() for weight in weights])  # type: ignore[operator]
    assert 0.5 <= float(zeros.double().mean()) < 0.75


def test_a_damaged_file_is_an_error(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/pruned.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"pruned\.safetensors is damaged .* delete it"):
        run_recipe(recipe, tmp_path / "run")
