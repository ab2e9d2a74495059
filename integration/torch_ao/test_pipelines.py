"""The pipelines run as scripts, and three lines tell those with codebooks from those without."""

import ast
import difflib
from pathlib import Path

import pytest

from integration.pipelines import run

HERE = Path(__file__).parent


def statements(script: str) -> list[str]:
    """The lines of a script without its docstring, imports and empty lines."""
    text = (HERE / script).read_text()
    skip: set[int] = set()
    for node in ast.parse(text).body:
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or isinstance(node, ast.Import | ast.ImportFrom):
            skip.update(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(text.splitlines(), start=1)
    return [line for number, line in lines if line.strip() and number not in skip]


@pytest.mark.parametrize("kind", ["float", "train"])
def test_three_lines_differ(kind):
    before, after = statements(f"{kind}_to_int8.py"), statements(f"{kind}_to_codebook.py")
    diff = list(difflib.ndiff(before, after))
    assert sum(line.startswith("- ") for line in diff) == 3
    assert sum(line.startswith("+ ") for line in diff) == 3


@pytest.mark.parametrize(
    ("script", "rate", "loss"),
    [
        ("float_to_int8.py", 3, 0.015),
        ("float_to_codebook.py", 12, 0.015),
        ("train_to_int8.py", 3, 0.015),
        ("train_to_codebook.py", 40, 0.03),
    ],
)
def test_pipeline(script, rate, loss):
    models = run(f"integration.torch_ao.{script.removesuffix('.py')}")
    accuracy, size = models["converted"]
    assert accuracy >= models["float"][0] - loss
    assert size * rate <= models["float"][1]
