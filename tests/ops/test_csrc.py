"""The kernels alone, without Python and torch; .ci/kernels runs the same with sanitizers."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parent / "csrc"


def test_kernels_compute_their_definitions(tmp_path: Path) -> None:
    for tool in ("make", "g++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    options = ["--silent", f"--jobs={os.cpu_count()}", f"BUILD={tmp_path}", "PROBLEMS=1500"]
    command = ["make", *options, "optimized"]
    done = subprocess.run(command, cwd=CSRC, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
