"""A recipe with a mistake names the file, the line and the remedy."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from vq_plugin.recipe import RecipeError, read_recipe
from vq_plugin.recipe.reading import parse_recipe

Write = Callable[[str], Path]

MINIMAL = "version: 1\nmodel: a:b\nevaluation: {tuning: a:c}\noutput: out\n"
CRITERION = MINIMAL + "tuning: {accuracy_criterion: {%s}}\n"


def error_of(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "recipe.yaml")
    return str(caught.value)


def key_lines(text: str) -> list[tuple[int, str]]:
    """The lines (from 0) with a key that the recipe's author cannot choose, and the key."""
    found = [(i, re.match(r" *([a-z_]+):", line)) for i, line in enumerate(text.splitlines())]
    return [(i, match[1]) for i, match in found if match]


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("km(k=4)", "km(K=4)", 7, ["'K' is unknown", "did you mean 'k'"]),
        ("km(k=4)", "km(k=0)", 7, ["scheme[0]: km: k must be a whole number of at least 1"]),
        ("km(k=4)", "int8", 7, ["'int8' is unknown", "known: km, uniform, binary, pq, rq"]),
        ('"pq(k=16,dim=4)"', "pq(k=16,dim=4)", 7, ["in quotes"]),
        ("km(k=4)", "7", 7, ["a scheme is a text", "got 7"]),
        ('[km(k=4), "pq(k=16,dim=4)", null]', "[]", 7, ["names no scheme", "write null"]),
        ('[km(k=4), "pq(k=16,dim=4)", null]', "[null]", 7, ["names no scheme", "write null"]),
        ("Conv2d:", "Conv2D:", 9, ["'Conv2D' is no layer type", "did you mean 'Conv2d'"]),
        ("Conv2d:", "features.0:", 9, ["names of layers go under op_wise"]),
        ("classifier.3:", '"*":', 11, ["write it as model_wise"]),
        ("classifier.3:", "3:", 11, ["the name 3 is a number", "in quotes"]),
        ("re:features.*", "re:features(", 12, ["'re:features('", "not a regular expression"]),
        ("{scheme: null}", "null", 11, ["mapping with the keys scheme", "got nothing"]),
        ("version: 1", "version: 3", 1, ["version: expected 1, got 3"]),
        ("version: 1", "version: true", 1, ["version: expected 1, got true"]),
        ("relative: 0.02", "relative: 1", 19, ["between 0 and 1", "1 % is 0.01"]),
        ("relative: 0.02", "relative: .nan", 19, ["between 0 and 1"]),
        ("relative: 0.02", "relative: true", 19, ["expected a number", "got true"]),
        ("relative: 0.02", "relative: 2%", 19, ["the text '2%'", "1 % is 0.01"]),
        ("relative: 0.02", "relative: 0.02\n    absolute: 0.1", 18, ["exactly one"]),
        ("    relative: 0.02\n", "", 18, ["exactly one", "'relative: 0.01'"]),
        ("higher_is_better: true", "higher_is_better: yes", 20, ["true or false", "'yes'"]),
        ("confidence: 0.9", "confidence: 90", 21, ["between 0.5 and 1", "95 % is 0.95"]),
        ("max_trials: 7", "max_trials: 7.5", 25, ["a whole number", "got 7.5"]),
        ("max_trials: 7", "max_trials: '7'", 25, ["the text '7'", "remove the quotes"]),
        ("timeout: 60", "timeout: 0", 26, ["above 0", "leave the key out"]),
        ("digits:evaluate", "digits.evaluate", 14, ["'module:function'", "digits.evaluate'"]),
        ("digits:model", "digits:model now", 2, ["'module:function'"]),
        ("output: out", "output: 2026", 28, ["expected a text, got 2026", "in quotes"]),
        ("output: out", "output: ''", 28, ["got an empty one", "the current folder is '.'"]),
        ("export: [onnx, coreml]", "export: onnx", 40, ["expected a list such as [onnx]"]),
        ("export: [onnx, coreml]", "export: 5", 40, ["expected a list, got 5"]),
        ("km(k=4)", "none", 7, ["'none' is written null"]),
        ("km(k=4)", "None", 7, ["'None' is written null"]),
        ("km(k=4)", "auto", 7, ["'auto' is a preset", "leave the key out"]),
        ("random_seed: 3", f"random_seed: {2**63}", 27, [f"64 bits, got {2**63}"]),
        ("random_seed: 3", f"random_seed: {-(2**63) - 1}", 27, ["64 bits, got -"]),
        ("output: out", "output: out\noutput: again", 29, ["duplicate key", "remove one"]),
        ("output: out", "", 1, ["'output' is missing", "'output: runs/my_model'"]),
        ("output: out", "output: out\n  x: : y", 29, []),
        ("output: out", "output: out\n7: x", 29, ["unknown key"]),
        ("output: out", "output: out\nrelative: 0.1", 29, ["tuning.accuracy_criterion.relative"]),
        ("sparsity: 0.9", "sparsity: 1", 31, ["below 1, got 1", "97 % is 0.97"]),
        ("sparsity: 0.9", "sparsity: -0.1", 31, ["at least 0"]),
        ("sparsity: 0.9", "sparsity: 90 %", 31, ["pruning.sparsity: ", "1 % is 0.01"]),
        ("  sparsity: 0.9\n", "", 29, ["'pruning.sparsity' is missing", "'sparsity: 0.9'"]),
        ("pruning:\n  loader: ", "pruning:\n  loder: ", 30, ["did you mean 'loader'"]),
        ("epochs: 2\n  learning_rate: 1e-3", "epochs: 0", 32, ["pruning.epochs: must be above 0"]),
        ("recovery:\n  loader: ", "recovery:\n  # ", 34, ["'recovery.loader' is missing"]),
        (
            "learning_rate: 0.02",
            "lr: 0.02",
            37,
            ["known here: method, loader, epochs"],
        ),
        ("learning_rate: 0.02", "learning_rate: -1", 37, ["must be above 0"]),
        ("max_trials: 3", "max_trials: many", 38, ["a whole number", "'many'"]),
        ("output: out", "output: out\nrecovry: {}", 29, ["did you mean 'recovery'"]),
    ],
)
def test_a_mistake_is_reported_with_its_line(
    write: Write, every_key: str, old: str, new: str, line: int, words: list[str]
) -> None:
    assert every_key.count(old) >= 1
    path = write(every_key.replace(old, new, 1))
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    assert f"{path}:{line}: " in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@given(data=st.data())
def test_a_typo_in_any_key_names_the_line_and_the_key_that_was_meant(
    every_key: str, data: st.DataObject
) -> None:
    line, key = data.draw(st.sampled_from(key_lines(every_key)))
    at = data.draw(st.integers(0, len(key) - 2))
    typo = data.draw(
        st.sampled_from(
            [
                key[:at] + key[at + 1 :],
                key[:at] + key[at] + key[at:],
                key[:at] + key[at + 1] + key[at] + key[at + 2 :],
                key[:at] + key[at].upper() + key[at + 1 :],
            ]
        ).filter(lambda typo: typo != key)
    )
    lines = every_key.splitlines()
    lines[line] = lines[line].replace(key, typo, 1)
    message = error_of("\n".join(lines))
    assert f"recipe.yaml:{line + 1}: unknown key" in message
    assert f"did you mean '{key}'?" in message


@given(st.floats(0, 1, exclude_min=True, exclude_max=True))
def test_a_number_may_be_written_as_python_writes_it_but_not_as_a_text(value: float) -> None:
    recipe, _ = parse_recipe(CRITERION % f"relative: {value!r}", "recipe.yaml")
    assert recipe.tuning.accuracy_criterion.budget().limit == value
    message = error_of(CRITERION % f"relative: '{value!r}'")
    assert "recipe.yaml:5: tuning.accuracy_criterion.relative: expected a number" in message
    assert "remove the quotes" in message


def test_exponents_are_numbers_as_yaml_1_2_has_it() -> None:
    recipe, _ = parse_recipe(CRITERION % "relative: 1e-3", "recipe.yaml")
    assert recipe.tuning.accuracy_criterion.relative == 0.001


@given(st.text(alphabet="aev:{}[]-?!&*#|>'\"%@` \n\t0.,~\\é\0", max_size=40))
def test_any_text_is_read_or_refused_with_a_place(text: str) -> None:
    assert error_of(text).startswith("recipe.yaml:")
    error = error_of(MINIMAL + text + "\nx: y\n")
    assert all(re.match(r"recipe\.yaml:\d+: ", line) for line in error.splitlines())


def test_all_mistakes_are_reported_at_once_in_the_order_of_the_file(every_key: str) -> None:
    text = every_key.replace("approach:", "aproach:").replace("relative: 0.02", "relative: 2")
    lines = error_of(text.replace("version: 1", "version: 0")).splitlines()
    assert [line.split(":")[1] for line in lines] == ["1", "4", "19"]


def test_a_section_that_was_commented_out_is_named() -> None:
    assert "recipe.yaml:5: tuning: expected a mapping" in error_of(MINIMAL + "tuning:\n  # x: 1\n")


def test_anchors_and_merges_work() -> None:
    text = MINIMAL + (
        "quantization:\n  op_wise:\n    a: &safe {scheme: km(k=16)}\n    b: *safe\n"
        "    c:\n      <<: *safe\n"
    )
    recipe, _ = parse_recipe(text, "recipe.yaml")
    assert len({str(layer.scheme) for layer in recipe.quantization.op_wise.values()}) == 1


@pytest.mark.parametrize("text", ["", "- version: 1\n", "version\n", "# nothing\n"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    assert error_of(text).startswith("recipe.yaml:1: a recipe is a mapping")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="UTF-8"):
        read_recipe(path)


def test_a_missing_recipe_is_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_recipe(tmp_path / "none.yaml")


def test_the_recipe_with_every_key_has_every_key(every_key: str) -> None:
    raw = YAML(typ="safe").load(every_key)
    recipe, _ = parse_recipe(every_key, "recipe.yaml")
    for keys, section in (
        # Exports and hosts exclude each other, and ways to zeros.
        (raw | {"host": None, "factorization": None}, recipe),
        (raw["quantization"], recipe.quantization),
        (raw["evaluation"], recipe.evaluation),
        (raw["tuning"], recipe.tuning),
        # The two limits, too, and ways to be sure.
        (
            raw["tuning"]["accuracy_criterion"] | {"absolute": None, "margin": None},
            recipe.tuning.accuracy_criterion,
        ),
        (raw["tuning"]["exit_policy"], recipe.tuning.exit_policy),
    ):
        assert keys.keys() == type(section).model_fields.keys()
