"""Both pipelines run as scripts, and two lines tell them apart."""

import ast
import difflib
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("neural_compressor", reason="Intel Neural Compressor is not installed")

HERE = Path(__file__).parent


def run(script: str) -> dict[str, tuple[float, int]]:
    """Accuracy and bytes by model, from what the script prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", f"integration.inc.{script}"],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"(\w+): accuracy ([\d.]+), (\d+) bytes", done.stdout)
    return {name: (float(accuracy), int(size)) for name, accuracy, size in lines}


def statements(script: str) -> list[str]:
    """The statements of a script's main function."""
    body = ast.parse((HERE / f"{script}.py").read_text()).body
    main = next(node for node in body if isinstance(node, ast.FunctionDef))
    return [line for node in main.body for line in ast.unparse(node).splitlines()]


def test_two_lines_differ():
    diff = list(difflib.ndiff(statements("rtn_autotune"), statements("codebook_autotune")))
    assert sum(line.startswith("- ") for line in diff) == 2
    assert sum(line.startswith("+ ") for line in diff) == 1


@pytest.mark.parametrize(("script", "rate"), [("rtn_autotune", 6), ("codebook_autotune", 20)])
def test_pipeline(script, rate):
    models = run(script)
    accuracy, size = models["tuned"]
    assert accuracy >= models["float"][0] - 0.015
    assert size * rate <= models["float"][1]
