"""The JSON Schema for editors: as published, and of one mind with the reader."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

import vq_plugin as vq
from vq_plugin.cli import main
from vq_plugin.nn import layer_types
from vq_plugin.recipe import json_schema
from vq_plugin.recipe.reading import parse_recipe

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "recipe.schema.json"
VALIDATOR = jsonschema.Draft202012Validator(json_schema())

START = "version: 1\nmodel: a:b\nevaluation: {tuning: a:c}\noutput: out\n"


def load(text: str) -> Any:
    return YAML(typ="safe").load(text)


def test_the_published_file_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["recipe", "schema"]) == 0
    text = PUBLISHED.read_text(encoding="utf-8")
    assert capsys.readouterr().out == text, (
        "write it anew: vq-plugin recipe schema > docs/recipe.schema.json"
    )
    assert json.loads(text) == json_schema()


def test_it_is_a_schema_and_every_key_says_what_it_means() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    schema = json_schema()
    definitions = schema["$defs"]
    for definition in (schema, *definitions.values()):
        assert definition["additionalProperties"] is False
        for key in definition["properties"].values():
            name = key.get("$ref", "").removeprefix("#/$defs/")
            assert key.get("description") or definitions[name]["description"]
    names = definitions["Quantization"]["properties"]["optype_wise"]["propertyNames"]["enum"]
    assert names == [name for name in layer_types() if hasattr(torch.nn, name)]


@pytest.mark.parametrize("recipe", sorted(ROOT.glob("recipes/*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_of_the_project_names_the_schema_and_fits_it(recipe: Path) -> None:
    text = recipe.read_text(encoding="utf-8")
    first = text.splitlines()[0]
    assert first == "# yaml-language-server: $schema=../docs/recipe.schema.json"
    assert (recipe.parent / first.partition("=")[2]).resolve() == PUBLISHED
    VALIDATOR.validate(load(text))


def test_the_recipe_with_every_key_fits(every_key: str) -> None:
    VALIDATOR.validate(load(every_key))
    VALIDATOR.validate(load(every_key.replace("version: 1", "version: 1.0")))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("approach", "aproach"),
        ("version: 1", "version: 2"),
        ("digits:model", "digits.model"),
        ("km(k=4)", "int8"),
        ("km(k=4)", "7"),
        ('[km(k=4), "pq(k=16,dim=4)", null]', "[]"),
        ("Conv2d:", "Conv:"),
        ("strategy: frontier", "strategy: {name: basic}"),
        ("relative: 0.02", "relative: 1"),
        ("relative: 0.02", "relative: '0.02'"),
        ("relative: 0.02", "relative: 0.02\n    absolute: 0.1"),
        ("    relative: 0.02\n", ""),
        ("confidence: 0.9", "confidence: 0.4"),
        ("max_trials: 7", "max_trials: 0"),
        ("output: out", ""),
        ("sparsity: 0.9", "sparsity: 1"),
        ("sparsity: 0.9", "sparsity: -0.1"),
        ("learning_rate: 1e-3", "learning_rate: 0"),
        ("max_trials: 3", "max_trials: 0"),
    ],
)
def test_a_bad_recipe_does_not_fit(every_key: str, old: str, new: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(load(every_key.replace(old, new, 1)))


SCHEMES: st.SearchStrategy[vq.Scheme] = st.one_of(
    st.builds(vq.KM, k=st.integers(1, 256), group=st.none() | st.integers(1, 9)),
    st.builds(
        vq.PQ,
        k=st.integers(1, 256),
        dim=st.integers(1, 16),
        axis=st.sampled_from(["in", "out"]),
        codebooks=st.sampled_from(["subspace", "tensor"]),
        codebook_dtype=st.sampled_from(["float16", "int8"]),
    ),
    st.builds(vq.RQ, stages=st.integers(1, 4), dim=st.none() | st.integers(1, 16)),
    st.builds(vq.Binary, scale=st.sampled_from([None, "row"])),
)


@given(st.one_of(SCHEMES, st.lists(st.none() | SCHEMES, min_size=1).filter(any)))
def test_every_scheme_fits_and_is_read(choice: Any) -> None:
    entries = choice if isinstance(choice, list) else [choice]
    lines = ["null" if entry is None else f'"{entry}"' for entry in entries]
    value = f"[{', '.join(lines)}]" if isinstance(choice, list) else lines[0]
    text = START + f"quantization: {{model_wise: {{scheme: {value}}}}}\n"
    VALIDATOR.validate(load(text))
    assert parse_recipe(text, "recipe.yaml")[0].candidates() == {"*": choice}
