"""The page on recipes shows a right recipe, true messages, and every key there is."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from vq_plugin.cli import main
from vq_plugin.recipe import RecipeError, json_schema
from vq_plugin.recipe.reading import parse_recipe
from vq_plugin.workloads import digits

PAGE = (Path(__file__).parents[2] / "docs" / "recipes.md").read_text(encoding="utf-8")
RECIPE = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)[0]
MESSAGES = re.findall(r"^    (my_model\.yaml:\d+: .*)$", PAGE, re.MULTILINE)


def keys(schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """The keys that hold a value, written with dots."""
    for name, value in schema["properties"].items():
        references = [part.get("$ref", "") for part in (value, *value.get("anyOf", []))]
        below = next(
            (json_schema()["$defs"][ref.split("/")[-1]] for ref in references if ref), None
        )
        if below is None:
            yield path + name
        else:
            yield from keys(below, f"{path}{name}.")


def test_the_table_has_every_key_and_no_other() -> None:
    assert set(re.findall(r"^\| `([a-z_.]+)` \|", PAGE, re.MULTILINE)) == set(keys(json_schema()))


def test_the_recipe_is_right() -> None:
    recipe, _ = parse_recipe(RECIPE, "my_model.yaml")
    patterns = {str(pattern) for pattern in recipe.candidates()}
    assert patterns == {"classifier.6", "re:features.*", str(nn.Conv2d), "*"}


def test_the_messages_are_those_of_the_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(RECIPE.replace("relative: 0.01", "relative: 1"), "my_model.yaml")
    shown = [str(caught.value)]
    monkeypatch.chdir(tmp_path)
    text = re.sub(r"my_package\.metrics:\w+", f"{digits.__name__}:evaluate", RECIPE)
    text = re.sub(r"my_package[\w.]*:\w+", f"{digits.__name__}:model", text)
    Path("my_model.yaml").write_text(text.replace("classifier.6", "clasifier.0"))
    assert main(["recipe", "check", "my_model.yaml"]) == 2
    shown += capsys.readouterr().err.splitlines()
    assert sorted(MESSAGES) == sorted(shown)
