"""Accumulators of the byte-plane kernels stay in registers, which no other test would notice."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from integration.benchmarks.instructions import inner_loops

CSRC = Path(__file__).parents[2] / "vq_plugin" / "ops" / "csrc"
OPTIONS = ["-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-w", "-c"]  # as in setup.py
# Instructions for a look-up in one plane, by the bits of an entry: what g++ 12 makes, and a few
# more. Arrays that spill took a fifth more.
X86 = {
    "avx2": {8: 0.125, 16: 0.095, 24: 0.106},
    "avx512": {8: 0.071, 16: 0.053, 24: 0.05},
}
NEON = {8: 0.24, 16: 0.28, 24: 0.28}


def check(isa: str, bounds: dict[int, float], compiler: str, objdump: str, compiled: Path) -> None:
    for tool in (compiler, objdump):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    source = CSRC / f"isa_{isa}.cpp"
    subprocess.run([compiler, *OPTIONS, str(source), "-o", str(compiled)], check=True)
    loops = inner_loops(compiled, objdump)
    assert {loop.bits for loop in loops} == set(bounds)
    most = max(loop.blocks for loop in loops)
    for loop in loops:
        assert loop.on_stack == 0, loop
        if loop.blocks == most:
            assert loop.per_lookup <= bounds[loop.bits], loop


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="for x86-64 alone")
@pytest.mark.parametrize("isa", X86)
def test_instructions_on_x86(isa: str, tmp_path: Path) -> None:
    check(isa, X86[isa], "g++", "objdump", tmp_path / f"{isa}.o")


def test_instructions_on_arm(tmp_path: Path) -> None:
    tools = ("aarch64-linux-gnu-g++", "aarch64-linux-gnu-objdump")
    check("neon", NEON, *tools, tmp_path / "neon.o")
