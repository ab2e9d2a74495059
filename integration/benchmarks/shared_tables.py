"""What tables are of a layer's time, and what layers that read one input could save.

    python -m integration.benchmarks.shared_tables [--quick]

Square layers of random codes, exact, on one thread, by processor time, in turns, medians. A
layer of 16 outputs is its tables and the call, nearly. Three layers that read one input, as
queries, keys and values do, are set against one of three times the outputs, which has its tables
once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks.harness import (
    Report,
    Table,
    parse_arguments,
    race_of_processors,
    random_codes,
    torch_threads,
)
from vq_plugin.nn import CodebookLayer

_SCHEMES = (vq.PQ(k=16, dim=4), vq.PQ(k=16, dim=8))
_FEW = 16


def main() -> None:
    """Measures, prints and writes the report."""
    arguments = parse_arguments(__doc__.splitlines()[0])
    report = Report("shared_tables", {"quick": arguments.quick})
    table = Table(
        f"one thread, exact, {vq.ops.isa()}",
        {"scheme": "", "size": "d", "batch": "d", "layer us": ".0f", "tables and call": ".2f",
         "three / one of three times the outputs": ".2f"},
    )  # fmt: skip
    with torch_threads(1), torch.no_grad():
        for scheme in _SCHEMES:
            for size in (64,) if arguments.quick else (384, 768, 4096):
                layers = [
                    random_codes(nn.Linear(size, outputs), scheme)
                    for outputs in (_FEW, size, 3 * size)
                ]
                for batch in (1, 8, 32):
                    few, one, three = _medians(layers, torch.randn(batch, size))
                    table.rows.append({
                        "scheme": str(scheme), "size": size, "batch": batch, "layer us": one * 1e6,
                        "tables and call": few / one,
                        "three / one of three times the outputs": 3 * one / three,
                    })  # fmt: skip
    report.add(table)
    report.finish(arguments.output)


def _medians(layers: Sequence[CodebookLayer], x: Tensor) -> list[float]:
    """Seconds of the layers' operators."""
    calls = {str(number): partial(layer._multiply, x) for number, layer in enumerate(layers)}
    once = sum(found.median for found in race_of_processors(calls, 1).values())
    timed = race_of_processors(calls, 15, repeats=max(1, round(1e-3 / once)))
    return [found.median for found in timed.values()]


if __name__ == "__main__":
    main()
