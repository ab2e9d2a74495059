"""The key ``host``: the library that ships the model."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from torch.fx import GraphModule

from vq_plugin.cli import main
from vq_plugin.recipe import run_recipe

RECIPE = """\
version: 1
model: vq_plugin.workloads.digits:model
quantization:
  model_wise: {scheme: km(k=64)}
  calibration: vq_plugin.workloads.digits:calibration
evaluation: {tuning: vq_plugin.workloads.digits:evaluate}
tuning: {exit_policy: {max_trials: 1}}
host: HOST
output: unused
"""


def test_a_recipe_names_its_host(write: Callable[[str], Path], tmp_path: Path) -> None:
    path = write(RECIPE.replace("HOST", "torch_ao"))
    result = run_recipe(path, tmp_path / "out").result
    assert result.passed
    assert isinstance(result.model, GraphModule)


def test_a_host_that_is_missing(
    write: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in list(sys.modules):
        if name.startswith("vq_plugin.torchao"):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchao", None)
    path = write(RECIPE.replace("HOST", "pt2e"))
    assert main(["tune", str(path), "--output", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "recipe.yaml:8: host: vq_plugin.torchao needs torchao" in message
    assert "pip install" in message


def test_a_host_beside_exports(
    write: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(RECIPE.replace("HOST", "pt2e") + "export: [onnx]\n")
    assert main(["tune", str(path), "--output", str(tmp_path / "out")]) == 2
    assert "give one of export, which writes what compress makes" in capsys.readouterr().err
