"""Both pipelines run as scripts, and two lines tell them apart."""

import ast
import difflib
from pathlib import Path

import pytest

from integration.pipelines import run

pytest.importorskip("neural_compressor", reason="Intel Neural Compressor is not installed")

HERE = Path(__file__).parent


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
    models = run(f"integration.inc.{script}")
    accuracy, size = models["tuned"]
    assert accuracy >= models["float"][0] - 0.015
    assert size * rate <= models["float"][1]
