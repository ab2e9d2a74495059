"""Accumulators of the byte-plane kernels stay in registers, which no other test would notice."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from integration.benchmarks.instructions import Loop, inner_loops
from vq_plugin.ops import native

CSRC = Path(__file__).parents[2] / "vq_plugin" / "ops" / "csrc"
OPTIONS = ["-std=c++17", "-O3", "-fPIC", "-ffp-contract=off", "-w", "-c"]  # as in setup.py
# Instructions for a look-up in one plane, by the bits of an entry: what g++ 12 makes, and a few
# more. Arrays that spill took a fifth more.
AVX2 = {"add": {8: 0.125, 16: 0.095, 24: 0.106}, "add_position": {8: 0.125, 16: 0.095, 24: 0.106}}
AVX512 = {
    "add": {8: 0.071, 16: 0.053, 24: 0.05},
    "add_positions": {8: 0.071, 16: 0.058, 24: 0.05},
    "add_codes": {8: 0.1, 16: 0.065, 24: 0.055},
}
NEON = {"add": {8: 0.24, 16: 0.28, 24: 0.28}}


def need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


def check(loops: list[Loop], bounds: dict[str, dict[int, float]]) -> None:
    assert {(loop.function, loop.bits) for loop in loops} == {
        (function, bits) for function, some in bounds.items() for bits in some
    }
    most = max(loop.blocks for loop in loops)
    for loop in loops:
        assert loop.on_stack == 0, loop
        if loop.blocks == most:
            assert loop.per_lookup <= bounds[loop.function][loop.bits], loop


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="for x86-64 alone")
def test_instructions_on_x86() -> None:
    """In the extension as it is installed."""
    extension = native()
    if extension is None:
        pytest.skip("no extension here")
    need("objdump")
    loops = inner_loops(Path(extension.__file__))
    for width, bounds in ((32, AVX2), (64, AVX512)):
        check([loop for loop in loops if loop.width == width], bounds)


def test_instructions_on_arm(tmp_path: Path) -> None:
    tools = ("aarch64-linux-gnu-g++", "aarch64-linux-gnu-objdump")
    need(*tools)
    compiled = tmp_path / "neon.o"
    source = CSRC / "isa_neon.cpp"
    subprocess.run([tools[0], *OPTIONS, str(source), "-o", str(compiled)], check=True)
    check(inner_loops(compiled, tools[1]), NEON)
