"""``vq-plugin inspect``: what a compressed file holds."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from vq_plugin.commands.command import WITHIN_BUDGET, add_command, add_json, as_json
from vq_plugin.console import say
from vq_plugin.table import format_bytes, format_table


def add_inspect(commands: Any) -> None:
    """Adds ``inspect`` to a parser's sub-commands."""
    parser = add_command(
        commands,
        "inspect",
        _inspect,
        summary="show what a compressed file holds",
        description="Shows the layers of a file, and checks every checksum.",
        example="vq-plugin inspect model.vq",
    )
    parser.add_argument("file", metavar="FILE")
    add_json(parser)


def _inspect(options: argparse.Namespace) -> int:
    from vq_plugin.checkpoint import read_header
    from vq_plugin.coding.bits import code_bits
    from vq_plugin.format.header import FORMAT, LEAVES, join

    header, sizes = read_header(options.file)
    layers = []
    for name, stored in header.weights():
        layer, k = header.layers[stored], header.books(stored)[3]
        sizes_of = {leaf: sizes.get(join(stored, leaf), 0) for leaf in LEAVES}
        # Of coded codes the mean, with their tables.
        bits = 8 * sizes_of["codes"] / max(math.prod(layer.codes), 1)
        layers.append(
            {
                "name": name,
                "shape": list(layer.shape),
                "scheme": layer.scheme,
                "k": k,
                "bits_per_code": bits if layer.coding else code_bits(k),
                "nbytes": sum(sizes_of.values()),
                "tied_to": None if name == stored else stored,
            }
        )
    total = Path(options.file).stat().st_size
    found = {"format": FORMAT, "nbytes": total, "tensors": len(sizes), "layers": layers}
    say(as_json(found) if options.json else _table(found))
    return WITHIN_BUDGET


def _table(found: dict[str, Any]) -> str:
    rows = [
        [
            layer["name"] or "(model)",
            "x".join(map(str, layer["shape"])),
            layer["scheme"],
            str(layer["k"]),
            _bits(layer["bits_per_code"]),
            f"tied to {tied}" if (tied := layer["tied_to"]) else format_bytes(layer["nbytes"]),
        ]
        for layer in found["layers"]
    ]
    header = ["layer", "shape", "scheme", "k", "bits/code", "size"]
    return (
        f"{format_table(header, rows, right=(3, 4, 5))}\n"
        f"{len(rows)} codebook layers, {found['tensors']} tensors, "
        f"{format_bytes(found['nbytes'])}, format {found['format']}, checksums right"
    )


def _bits(bits: float) -> str:
    return f"{bits:.2f}" if isinstance(bits, float) else str(bits)
