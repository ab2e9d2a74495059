"""A recipe with a mistake names the file, the line and the remedy."""

from pathlib import Path

import pytest

import vq_plugin as vq
from vq_plugin.recipe import RecipeError, read_recipe

VALID = """\
version: 1
model: vq_plugin.workloads.digits:model
quantization:
  model_wise:
    scheme: [km(k=4), "pq(k=16,dim=4)"]
  op_wise:
    classifier.3: {scheme: null}
evaluation:
  tuning: vq_plugin.workloads.digits:evaluate
tuning:
  accuracy_criterion: {relative: 0.02}
output: out
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_valid_recipe_gives_candidates_and_budget(tmp_path: Path) -> None:
    recipe, _ = read_recipe(write(tmp_path, VALID))
    assert recipe.candidates() == [
        {"classifier.3": None, "*": vq.KM(k=4)},
        {"classifier.3": None, "*": vq.PQ(k=16, dim=4)},
    ]
    assert recipe.tuning.accuracy_criterion.budget() == vq.LossBudget(relative=0.02)


@pytest.mark.parametrize("recipe", sorted(Path("recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_of_the_project_is_valid(recipe: Path) -> None:
    read_recipe(recipe)


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("model_wise:", "modelwise:", 4, ["'quantization.modelwise'", "did you mean 'model_wise'"]),
        ("km(k=4)", "km(K=4)", 5, ["'K' is unknown", "did you mean 'k'"]),
        ("km(k=4)", "km(k=0)", 5, ["k must be a whole number of at least 1"]),
        ('"pq(k=16,dim=4)"', "pq(k=16,dim=4)", 5, ["in quotes"]),
        ("km(k=4)", "7", 5, ["a scheme is a text", "got 7"]),
        ("version: 1", "version: 3", 1, ["version"]),
        ("relative: 0.02", "relative: 1", 11, ["between 0 and 1", "1 % is 0.01"]),
        ("relative: 0.02", "relative: 0.02, absolute: 0.1", 11, ["exactly one"]),
        ("relative: 0.02", "relative: '0.02'", 11, ["valid number"]),
        ("digits:evaluate", "digits.evaluate", 9, ["'module:function'"]),
        ("output: out", "output: out\noutput: again", 13, ["duplicate key"]),
        ("output: out", "", 1, ["'output' is missing"]),
        ("output: out", "output: out\n  x: : y", 13, []),
    ],
)
def test_a_mistake_is_reported_with_its_line(
    tmp_path: Path, old: str, new: str, line: int, words: list[str]
) -> None:
    path = write(tmp_path, VALID.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert f"{path}:{line}:" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    text = VALID.replace("model_wise", "modelwise").replace("relative: 0.02", "relative: 2")
    with pytest.raises(RecipeError) as caught:
        read_recipe(write(tmp_path, text))
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_recipe_is_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_recipe(tmp_path / "none.yaml")
