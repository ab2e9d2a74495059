"""The tests of hosts, layers and operators with several releases of torch and Python.

    python -m integration.torchao.compatibility [--versions 2.13.0:3.11 2.15.0:3.13] [--folder DIR]

A version is a release of torch, a colon, and the Python that has it, ``python3.13`` on the path for
3.13. Every environment has torchao and INC beside it, the newest that pip finds, and the checkout
itself with the native module that is built there: one serves all of them. It is removed when its
tests have run, as a build of torch for CUDA, which runs on a CPU too, takes 8 GB of disk;
PIP_FIND_LINKS or PIP_INDEX_URL can lead pip to a CPU build, and PIP_CACHE_DIR to a cache.

The exit code is 1 if a test fails with any release, or none passes.
"""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

from integration.inc.compatibility import ROOT, TOOLS, Releases, execute, run

RELEASES = ("2.10.0", "2.11.0", "2.12.1", "2.13.0", "2.14.1", "2.15.0")
VERSIONS = tuple(f"{torch}:{python}" for python in ("3.11", "3.13") for torch in RELEASES)
TESTS = (
    "tests/torchao", "tests/torch_ao", "tests/hosting", "tests/inc", "tests/nn", "tests/ops",
    "tests/tuning/test_host.py", "vq_plugin/torchao", "vq_plugin/torch_ao", "vq_plugin/inc",
    # Of packages, which each release loads by code of its own.
    "tests/export/test_aoti.py",
    # Of the kernels alone, without torch.
    "--ignore=tests/ops/test_csrc.py", "--ignore=tests/ops/test_assembly.py",
)  # fmt: skip


def build(folder: Path, version: str) -> Path:
    """An environment with what this project needs and one release of torch; its Python.

    Raises:
        FailedError: If there is no such Python, or pip cannot install it.
    """
    torch, _, python = version.partition(":")
    shutil.rmtree(folder, ignore_errors=True)
    execute(f"python{python}", "-m", "venv", folder)
    found = folder / "bin" / "python"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = (*project["dependencies"], *extras["torchao"], *extras["inc"])
    # AOTInductor builds with setuptools; a test loads models of transformers.
    packages = (f"torch=={torch}", *needed, "setuptools", "transformers", *TOOLS)
    execute(found, "-m", "pip", "install", "--quiet", "--no-compile", *packages)
    (site,) = folder.glob("lib/python3*/site-packages")
    (site / "checkout.pth").write_text(f"{ROOT}\n")
    return found


def main() -> None:
    title = "Releases of torch"
    run(__doc__, Releases("torch", title, "torch_releases", VERSIONS, build, TESTS, keep=False))


if __name__ == "__main__":
    main()
