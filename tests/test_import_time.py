"""What ``import vq_plugin`` loads: nothing heavy, and nothing of the hosts."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vq_plugin

PACKAGE = Path(vq_plugin.__file__).parent
HEAVY = (
    "coremltools",
    "faiss",
    "distributed",
    "jinja2",
    "joblib",
    "mlflow",
    "neural_compressor",
    "pandas",
    "pydantic",
    "ruamel",
    "scipy",
    "sklearn",
    "torch.ao",
    "torchao",
    "vq_plugin.inc",
    "vq_plugin.torch_ao",
    "vq_plugin.torchao",
    "vq_plugin.workloads",
)

# `import torch` loads parts of torch.ao by itself, so only what comes on top of it counts.
PROGRAM = """
import sys, torch
before = set(sys.modules)
import vq_plugin
print(*sorted(set(sys.modules) - before))
"""


def imported_names(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_import_loads_nothing_heavy() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    loaded = run.stdout.split()
    assert "vq_plugin.codebook" in loaded
    assert [name for name in loaded if any(within(name, heavy) for heavy in HEAVY)] == []
    assert run.stderr == ""


@pytest.mark.parametrize(
    ("host", "adapter"),
    [("torch.ao", "torch_ao"), ("neural_compressor", "inc"), ("torchao", "torchao")],
)
def test_hosts_are_imported_in_their_adapters_only(host: str, adapter: str) -> None:
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] != adapter
        for name in imported_names(path.read_text(encoding="utf-8"))
        if within(name, host)
    }
    assert found == set()
