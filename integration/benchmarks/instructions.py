"""Instructions for each look-up, counted in the compiled inner loops.

    python -m integration.benchmarks.instructions [OBJECT ...]

Says how many instructions one look-up takes in ``Planes::add`` of vq_plugin/ops/csrc/planes_*.h and
its relatives (``add_codes``, ``add_position``, ``add_positions``), from the objects that ``setup.py
build_ext`` leaves in ``build``, or from the extension; an object for 64-bit Arm needs
``aarch64-linux-gnu-objdump``. A look-up is one code of one sample in one
plane. Vectors that a loop reads from the stack or writes there are those for which the compiler ran
out of registers.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Codes that one instruction of each kind looks up, in one plane.
_LOOKED_UP = {"vpshufb": 32, "vpermb": 64, "tbl": 16}


@dataclass(frozen=True)
class Loop:
    """The innermost loop of ``Planes::function<bits, blocks, samples>``.

    ``width`` is of a vector, in bytes.
    """

    function: str
    bits: int
    blocks: int
    samples: int
    instructions: int
    lookups: int
    on_stack: int
    width: int

    @property
    def per_lookup(self) -> float:
        """Instructions for each look-up in one plane."""
        return self.instructions / self.lookups


def inner_loops(compiled: Path, objdump: str = "objdump") -> list[Loop]:
    """The busiest loop of every ``Planes::add`` and its relatives in an object file or a library.

    Raises:
        ValueError: If there is none.
    """
    command = [objdump, "--disassemble", "--demangle", "--no-show-raw-insn", str(compiled)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = []
    for function in text.split("\n\n"):
        title = function.partition(":\n")[0]
        name = re.search(r"Planes::(add\w*)<(\d+), (\d+)(?:, (\d+))?>", title)
        if name is None:
            continue
        loops = list(_innermost(function))
        if not loops:
            raise ValueError(f"{compiled}: no loop with look-ups in {name[0]}")
        bits, blocks, samples = (int(number or 1) for number in name.groups()[1:])
        # What is left of an odd number of columns is a loop of its own.
        counts = max(loops, key=lambda loop: loop[1] / loop[0])
        found.append(Loop(name[1], bits, blocks, samples, *counts))
    if not found:
        raise ValueError(f"{compiled} holds no Planes::add")
    return sorted(found, key=lambda loop: (loop.function, loop.bits, -loop.blocks, -loop.samples))


def _innermost(function: str) -> Iterator[tuple[int, int, int, int]]:
    """Instructions, look-ups, vectors on the stack and their width, of loops that hold no other."""
    lines = re.findall(r"^\s*([0-9a-f]+):\s+(\S+)[ \t]*(.*)$", function, re.MULTILINE)
    place = {address: i for i, (address, _, _) in enumerate(lines)}
    spans = []
    for end, (_, name, operands) in enumerate(lines):
        target = re.match(r"(?:\w+, )?([0-9a-f]+) <", operands)
        jumps = name.startswith(("j", "b.", "cb", "tb")) and target is not None
        if jumps and target is not None and place.get(target[1], end + 1) <= end:
            spans.append((place[target[1]], end))
    for start, end in spans:
        inside = [span for span in spans if span != (start, end)]
        if any(start <= first and last <= end for first, last in inside):
            continue
        body = lines[start : end + 1]
        looked_up = [_LOOKED_UP[name] for _, name, _ in body if name in _LOOKED_UP]
        if looked_up:
            stack = re.compile(r"\((?:%rsp|%rbp)\)|\[sp|\[x29")
            vector = re.compile(r"%[xyz]mm|\b[qv]\d")
            on_stack = sum(bool(stack.search(o) and vector.search(o)) for _, _, o in body)
            yield len(body), sum(looked_up), on_stack, max(looked_up)


def main() -> None:
    """Prints a table for every object."""
    build = Path(__file__).parents[2] / "build"
    objects = [Path(name) for name in sys.argv[1:]] or sorted(build.glob("**/isa_avx*.o"))
    for compiled in objects:
        arm = compiled.read_bytes()[18:20] == b"\xb7\x00"  # EM_AARCH64
        print(
            f"{compiled.name}: bits, row blocks, samples; instructions for a look-up; on the stack"
        )
        for loop in inner_loops(compiled, "aarch64-linux-gnu-objdump" if arm else "objdump"):
            sizes = f"{loop.function:13}  {loop.bits:2} {loop.blocks} {loop.samples}"
            print(f"  {sizes}  {loop.per_lookup:.3f}  {loop.on_stack}")


if __name__ == "__main__":
    main()
