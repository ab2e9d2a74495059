"""The tests of hosts, layers and operators with several releases of torch, each by itself.

    python -m integration.torchao.compatibility [--versions 2.13.0 2.15.0] [--folder DIR]

Every environment gets a release of torch and the newest torchao that pip finds for it. They stay in
DIR and are brought up to date by the next run. pip decides where torch comes from: a build for CUDA
runs on a CPU too, and takes 8 GB of disk; PIP_FIND_LINKS or PIP_INDEX_URL can lead it to a CPU
build.

The exit code is 1 if a test fails with any release, or none passes.
"""

from __future__ import annotations

import os
import venv
from pathlib import Path

from integration.inc.compatibility import ROOT, TOOLS, Releases, execute, run

VERSIONS = ("2.10.0", "2.11.0", "2.12.0", "2.13.0", "2.14.0", "2.15.0")
TESTS = (
    "tests/torchao", "tests/torch_ao", "tests/hosting", "tests/nn", "tests/ops",
    "vq_plugin/torchao", "vq_plugin/torch_ao",
)  # fmt: skip


def build(folder: Path, torch: str) -> Path:
    """An environment with this project and one release of torch; its Python.

    Raises:
        FailedError: If pip cannot install it.
    """
    venv.create(folder, symlinks=os.name != "nt", with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    # AOTInductor builds with setuptools.
    packages = ("--editable", f"{ROOT}[torchao]", f"torch=={torch}", "setuptools", *TOOLS)
    execute(python, "-m", "pip", "install", "--quiet", *packages)
    return python


def main() -> None:
    run(__doc__, Releases("torch", "Releases of torch", "torch_releases", VERSIONS, build, TESTS))


if __name__ == "__main__":
    main()
