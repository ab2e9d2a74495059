"""The shell scripts of docs/mlops.md, run as a pipeline would, and its workflow, read."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from vq_plugin.cli import main
from vq_plugin.workloads import digits

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "mlops.md").read_text(encoding="utf-8")
RECIPE = """\
version: 1
model: vq_plugin.workloads.digits:model
quantization:
  calibration: vq_plugin.workloads.digits:calibration
  model_wise:
    scheme: [{scheme}]
evaluation:
  tuning: vq_plugin.workloads.digits:evaluate
  test: vq_plugin.workloads.digits:test
tuning:
  accuracy_criterion: {{relative: 0.01}}
  exit_policy: {{max_trials: 3}}
output: unused
"""


def script(title: str) -> str:
    found = re.search(rf'^```bash title="{title}"\n(.*?)^```$', PAGE, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """``vq-plugin`` and ``python3`` are those of this run, and the model is trained once."""
    folder = tmp_path_factory.mktemp("bin")
    command = folder / "vq-plugin"
    command.write_text(
        f"#!/bin/sh\nexec '{sys.executable}' -c "
        "'import sys; from vq_plugin.cli import main; sys.exit(main())' \"$@\"\n"
    )
    command.chmod(0o755)
    (folder / "python3").symlink_to(sys.executable)
    digits.model()
    return {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }


def run_script(
    title: str, folder: Path, environment: dict[str, str], *arguments: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script(title), title, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_gate_lets_a_model_within_the_budget_pass(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(scheme="km(k=32)"))
    gate = run_script("gate.sh", tmp_path, environment, "recipe.yaml")
    assert gate.returncode == 0, gate.stderr
    written = tmp_path / "runs" / "release" / "model.vq"
    assert (tmp_path / "dist" / "model.vq").read_bytes() == written.read_bytes()
    verdict = run_script("verdict.sh", tmp_path, environment)
    assert re.fullmatch(r"\d+\.\dx smaller, metric 0\.9\d+ -> 0\.9\d+\n", verdict.stdout), verdict


def test_the_gate_stops_a_model_over_the_budget(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(scheme="km(k=1)"))
    gate = run_script("gate.sh", tmp_path, environment, "recipe.yaml")
    assert gate.returncode == 3, gate.stderr
    assert "over the budget" in gate.stderr
    assert (tmp_path / "runs" / "release" / "report.html").exists()
    assert not (tmp_path / "dist").exists()
    verdict = run_script("verdict.sh", tmp_path, environment)
    assert verdict.stdout.startswith("not compressed: "), verdict


def test_the_gate_tells_bad_input_from_a_verdict(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    gate = run_script("gate.sh", tmp_path, environment, "missing.yaml")
    assert gate.returncode == 2
    assert "no verdict" in gate.stderr
    assert not (tmp_path / "dist").exists()


def test_the_workflow_reads_and_its_steps_come_in_order() -> None:
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    workflow = YAML(typ="safe").load(text)
    steps = {step["name"]: step for step in workflow["jobs"]["compress"]["steps"] if "name" in step}
    assert list(steps)[-1] == "Publish"
    # A step without a condition runs only if no step before it failed: that is the gate.
    assert "if" not in steps["Publish"]
    assert "continue-on-error" not in steps["Compress"]
    assert steps["Report"]["if"] == "always()"


def test_options_on_the_page_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["tune", "--help"])
    shown = capsys.readouterr().out
    named = {
        option
        for line in re.findall(r"vq-plugin tune (.*)$", PAGE, re.MULTILINE)
        for option in re.findall(r"--[a-z-]+", line)
    }
    assert {"--output", "--mlflow", "--workers"} <= named
    assert [option for option in sorted(named) if option not in shown] == []
