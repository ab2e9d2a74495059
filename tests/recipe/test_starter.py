"""``vq-plugin recipe init`` writes a recipe that is right as it stands."""

import errno
import os
from pathlib import Path

import pytest

from vq_plugin.cli import main
from vq_plugin.recipe import read_recipe

DIGITS = "vq_plugin.workloads.digits"
FUNCTIONS = {
    "--model": f"{DIGITS}:model",
    "--evaluate": f"{DIGITS}:evaluate",
    "--test": f"{DIGITS}:test",
    "--calibration": f"{DIGITS}:calibration",
}


def words(names: list[str]) -> list[str]:
    return [word for name in names for word in (name, FUNCTIONS[name])]


@pytest.mark.parametrize("names", [["--model", "--evaluate"], list(FUNCTIONS)])
def test_the_check_accepts_it_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], names: list[str]
) -> None:
    path = tmp_path / "mine.yaml"
    assert main(["recipe", "init", str(path), *words(names)]) == 0
    assert main(["recipe", "check", str(path)]) == 0
    assert "4 layers to search" in capsys.readouterr().out
    recipe, _ = read_recipe(path)
    assert recipe.model == FUNCTIONS["--model"]
    assert recipe.evaluation.tuning == FUNCTIONS["--evaluate"]
    given = {"--test": recipe.evaluation.test, "--calibration": recipe.quantization.calibration}
    assert given == {name: FUNCTIONS[name] if name in names else None for name in given}
    assert recipe.output == "runs/mine"


def test_the_comments_hold_right_keys_too(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    main(["recipe", "init", str(path)])
    text = path.read_text()
    examples = [line for line in text.splitlines() if line.strip().startswith("# ")]
    keys = ("optype_wise", "  Conv2d", "op_wise", "  classifier", '  "re:', "calibration:")
    keys += ("test:", "confidence:", "exit_policy:", "pruning:", "recovery:")
    for line in examples:
        if line.strip().removeprefix("# ").startswith(keys):
            text = text.replace(line, line.replace("# ", "", 1))
    path.write_text(text)
    recipe, _ = read_recipe(path)
    assert recipe.tuning.accuracy_criterion.confidence == 0.95
    assert recipe.tuning.exit_policy.timeout == 3600
    assert len(recipe.quantization.op_wise) == 2
    assert len(recipe.quantization.optype_wise) == 1
    assert recipe.evaluation.test == "my_package:test"
    assert recipe.pruning is not None
    assert recipe.recovery is not None
    assert recipe.quantization.calibration == "my_package:calibration"


def test_without_a_name_it_is_recipe_yaml_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["recipe", "init"]) == 0
    assert "vq-plugin recipe check recipe.yaml" in capsys.readouterr().out
    read_recipe("recipe.yaml")


def test_an_existing_file_stays_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("precious")
    assert main(["recipe", "init", str(path)]) == 2
    assert path.read_text() == "precious"
    assert "name another file" in capsys.readouterr().err


def test_a_recipe_that_cannot_be_written_leaves_no_part_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    assert main(["recipe", "init", str(tmp_path / "new.yaml")]) == 2
    assert str(tmp_path / "new.yaml") in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    (tmp_path / "link.yaml").symlink_to("gone")
    assert main(["recipe", "init", str(tmp_path / "link.yaml")]) == 2
    assert "stays as it is" in capsys.readouterr().err


@pytest.mark.parametrize("reference", ["model", "a:b:c", "a: b", "a:b # c", "{a:b"])
def test_a_reference_of_another_form_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reference: str
) -> None:
    path = tmp_path / "mine.yaml"
    assert main(["recipe", "init", str(path), "--model", reference]) == 2
    assert not path.exists()
    assert "module:function" in capsys.readouterr().err
