"""``vq-plugin recipe check`` finds what a run would stumble over, before the run."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vq_plugin.cli import main

Write = Callable[[str], Path]


@pytest.fixture
def check(
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    """Exit code, output and errors of the command."""

    def run(*files: Path) -> tuple[int, str, str]:
        status = main(["recipe", "check", *map(str, files)])
        shown = capsys.readouterr()
        return status, shown.out, shown.err

    return run


Check = Callable[..., tuple[int, str, str]]


def test_a_right_recipe_is_summed_up(write: Write, check: Check, every_key: str) -> None:
    path = write(every_key)
    assert check(path) == (0, f"{path}: right; 1 layer to search, 2 fixed, 1 left\n", "")


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("digits:model", "digits:modle", 2, ["no function 'modle'", "did you mean 'model'"]),
        ("digits:model", "digit:model", 2, ["model: ", "No module named"]),
        ("digits:model", "digits:load", 2, ["no torch.nn.Module"]),
        ("digits:calibration", "digits:calibrate", 5, ["did you mean 'calibration'"]),
        ("digits:evaluate", "digits:evaluates", 14, ["did you mean 'evaluate'"]),
        ("digits:test", "digits:tset", 15, ["evaluation.test: ", "did you mean 'test'"]),
        ("digits:model", "digits:evaluate", 2, ["is called without arguments", "'model'; write"]),
        (
            "digits:evaluate",
            "digits:load",
            14,
            ["is called with the model alone", "does not fit ()"],
        ),
        ("classifier.3", "clasifier.3", 11, ["'clasifier.3'", "nearest names are classifier.3"]),
        ("classifier.3", "classifier.*", 11, ["written 're:classifier.*'"]),
        ("re:features.*", "re:feature.*[0-9]x", 12, ["matches nothing", "nearest names"]),
        ("{scheme: null}", "{scheme: km}\n    features.2: {scheme: km}", 12, ["it is a ReLU"]),
        ("digits:training_batches", "digits:training", 30, ["pruning.loader: ", "no function"]),
        ("Conv2d", "Conv1d", 9, ["Conv1d matches nothing", "Conv2d, Linear"]),
        ("re:features.*", "re:features", 12, ["'features' cannot be compressed"]),
    ],
)
def test_what_does_not_fit_the_code_exits_2_with_its_line(
    write: Write, check: Check, every_key: str, old: str, new: str, line: int, words: list[str]
) -> None:
    path = write(every_key.replace(old, new, 1))
    status, shown, errors = check(path)
    assert (status, shown) == (2, "")
    assert f"{path}:{line}: " in errors
    for word in words:
        assert word in errors


def test_all_functions_and_then_all_patterns_are_reported_together(
    write: Write, check: Check, every_key: str
) -> None:
    path = write(every_key.replace("digits:", "digit:"))
    assert check(path)[2].count("No module named") == 6
    path = write(every_key.replace("classifier.3", "fc").replace("Conv2d", "Conv3d"))
    errors = check(path)[2].splitlines()
    assert [error.split(": ")[0] for error in errors] == [f"{path}:11", f"{path}:9"]


def test_a_recipe_that_leaves_everything_is_refused(write: Write, check: Check) -> None:
    path = write(
        "version: 1\nmodel: vq_plugin.workloads.digits:model\n"
        "quantization:\n  model_wise: {scheme: null}\n"
        "evaluation: {tuning: vq_plugin.workloads.digits:evaluate}\noutput: out\n"
    )
    status, _, errors = check(path)
    assert status == 2
    assert errors.startswith(f"{path}:3: quantization: ")


def test_every_file_is_checked_and_any_mistake_counts(
    tmp_path: Path, write: Write, check: Check, every_key: str
) -> None:
    right, missing = write(every_key), tmp_path / "missing.yaml"
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(every_key.replace("version: 1", "version: 9"))
    status, shown, errors = check(missing, wrong, right)
    assert status == 2
    assert shown.startswith(f"{right}: right")
    assert "missing.yaml" in errors
    assert f"{wrong}:1: version" in errors


USER_MODULE = """\
import torch
def broken():
    raise RuntimeError("no weights here")
def model():
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
def evaluate(model):
    raise AssertionError("a check evaluates nothing")
"""


def recipe_of(module: str, model: str = "model") -> str:
    return (
        f"version: 1\nmodel: {module}:{model}\nevaluation: {{tuning: {module}:evaluate}}\n"
        f"output: out\n"
    )


def test_modules_of_the_current_folder_are_found_and_nothing_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write, check: Check
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "user_of_check.py").write_text(USER_MODULE)
    status, shown, _ = check(write(recipe_of("user_of_check")))
    assert status == 0
    assert "2 layers to search, 0 fixed, 0 left" in shown
    assert not (tmp_path / "out").exists()
    text = recipe_of("user_of_check") + 'quantization: {op_wise: {"1": {scheme: km(k=4)}}}\n'
    assert "1 layer to search, 1 fixed, 0 left" in check(write(text))[1]


def test_what_the_users_code_raises_is_named_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write, check: Check
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "raising_user.py").write_text(USER_MODULE)
    status, _, errors = check(write(recipe_of("raising_user", "broken")))
    assert status == 2
    assert "recipe.yaml:2: model: 'raising_user:broken' raised RuntimeError" in errors
    assert "at raising_user.py:3: no weights here" in errors
    (tmp_path / "unreadable_user.py").write_text("def model(:\n")
    status, _, errors = check(write(recipe_of("unreadable_user")))
    assert status == 2
    assert "recipe.yaml:2: model: 'unreadable_user:model': the import raised SyntaxError" in errors


def test_functions_that_return_no_batches_are_named_with_their_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Write,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    no_batches = "def nothing(): pass\ndef one(): return torch.ones(4, 8)\n"
    (tmp_path / "user_without_data.py").write_text(USER_MODULE + no_batches)
    for name, said in (("nothing", "got a NoneType"), ("one", "put a single batch into a list")):
        reference = f"user_without_data:{name}"
        for keys in ("quantization: {calibration", "recovery: {epochs: 1, loader"):
            text = f"{recipe_of('user_without_data')}{keys}: {reference}}}\n"
            assert main(["tune", str(write(text))]) == 2
            errors = capsys.readouterr().err
            key = "quantization.calibration" if "calib" in keys else "recovery.loader"
            assert re.search(rf"recipe.yaml:\d+: {key}: what '{reference}' returns", errors)
            assert said in errors


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ("export: onnx", "export: "),
        ("export: [tflite]", "export[0]: target 'tflite': it can be onnx, "),
        ("export: [onnx, onnx]", "export: target 'onnx' is given twice"),
        ("export: [onnx]", "export: needs quantization.calibration"),
        (
            "export: [coreml]\nquantization: {calibration: digits:calibration, op_wise: "
            "{classifier.0: {scheme: 'rq(k=4,stages=2,dim=4)'}}}",
            "export: layer 'classifier.0' has no scheme that can be exported: rq(",
        ),
    ],
)
def test_what_cannot_be_exported_is_named_with_its_place(
    keys: str, message: str, write: Write, check: Check
) -> None:
    digits = "vq_plugin.workloads.digits"
    text = f"version: 1\nmodel: {digits}:model\nevaluation: {{tuning: {digits}:evaluate}}\n"
    text += f"output: out\n{keys.replace('digits:', f'{digits}:')}\n"
    status, _, errors = check(write(text))
    assert status == 2
    assert f"recipe.yaml:5: {message}" in errors
