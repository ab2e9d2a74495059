"""Layers and fits on a device that is not the CPU."""

import subprocess
import sys
from pathlib import Path


def test_a_device_without_kernels() -> None:
    # In a process of its own: torch has one place for such a device, and keeps it.
    cases = Path(__file__).with_name("cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", cases]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    assert " passed" in run.stdout
    assert " skipped" not in run.stdout
