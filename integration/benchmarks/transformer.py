"""A transformer encoder of 22 million weights by ``compress``, ``quantize_`` and PT2E.

    python -m integration.benchmarks.transformer [--quick]

The shape is that of MiniLM (6 layers of 384, tables of 30,522 words), the weights are random. Each
route runs in processes of its own, in turns; peak memory is that of a process over what it held
before the model was made, the model included. Time is the processor's. Three minutes on two cores.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from integration.benchmarks.compress_memory import resident
from integration.benchmarks.harness import Check, Report, Table, parse_arguments
from vq_plugin.nn import coded_weights

_SCHEME = vq.PQ(k=16, dim=4)
_ROUTES = ("compress", "quantize_", "pt2e")


class Block(nn.Module):
    """Attention and two layers, with their norms."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])

    def forward(self, value: Tensor) -> Tensor:
        heads = [
            project(value).unflatten(2, (12, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        ]
        mixed = functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        value = self.norms[0](value + self.out(mixed))
        update: Tensor = self.down(functional.gelu(self.up(value)))
        normed: Tensor = self.norms[1](value + update)
        return normed


class Encoder(nn.Module):
    """Tables of words and places, and blocks."""

    def __init__(self, width: int = 384, blocks: int = 6, words: int = 30_522) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(512, width)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(blocks)])

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        encoded: Tensor = self.blocks(self.words(tokens) + self.places(places))
        return encoded


def _layers(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear | nn.Embedding)


def _convert(route: str, model: nn.Module) -> nn.Module:
    if route == "compress":
        return vq.compress(model, _SCHEME)
    from vq_plugin.torchao import VQQuantizer, VQWeightOnlyConfig, check_converted

    if route == "quantize_":
        from torchao.quantization import quantize_

        quantize_(model, VQWeightOnlyConfig(_SCHEME), _layers)
        return check_converted(model, _SCHEME)
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    tokens = torch.zeros(1, 16, dtype=torch.int64)
    prepared = prepare_pt2e(torch.export.export(model, (tokens,)).module(), VQQuantizer(_SCHEME))
    return check_converted(convert_pt2e(prepared), _SCHEME)


def _measure(route: str, width: int, blocks: int, words: int) -> dict[str, Any]:
    warnings.simplefilter("ignore")
    # Thread pools, kernels, and what the hosts load lazily.
    _convert(route, Encoder(96, 1, 64).eval())
    before = resident("VmRSS")
    torch.manual_seed(0)
    model = Encoder(width, blocks, words).eval()
    nbytes = sum(each.nbytes for each in model.parameters())
    start = time.process_time()
    small = _convert(route, model)
    seconds = time.process_time() - start
    peak = resident("VmHWM") - before
    coded = sum(4 * torch.Size(each.weight_shape).numel() for each in coded_weights(small).values())
    return {
        "route": route,
        "seconds": seconds,
        "peak / model": peak / nbytes,
        "model MB": nbytes / 1e6,
        "coded": coded / nbytes,
    }


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0])
    report = Report("transformer", {"quick": arguments.quick, "scheme": str(_SCHEME)})
    size = (96, 2, 512) if arguments.quick else (384, 6, 30_522)
    rounds = 1 if arguments.quick else 5
    runs: dict[str, list[dict[str, Any]]] = {route: [] for route in _ROUTES}
    for _ in range(rounds):
        for route in _ROUTES:
            command = [sys.executable, "-m", __spec__.name, route, *map(str, size)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            runs[route].append(json.loads(done.stdout.splitlines()[-1]))
    table = Table(
        f"A transformer encoder, {_SCHEME}",
        {
            "route": "", "seconds": ".2f", "of compress": ".2f", "peak / model": ".2f",
            "model MB": ".1f", "coded": ".2%",
        },
    )  # fmt: skip
    medians = {
        route: statistics.median(each["seconds"] for each in found) for route, found in runs.items()
    }
    for route, found in runs.items():
        peak = max(each["peak / model"] for each in found)
        row = {**found[0], "seconds": medians[route], "peak / model": peak}
        table.rows.append({**row, "of compress": medians[route] / medians["compress"]})
        if not arguments.quick:
            report.checks.append(Check(f"{route}: peak over the model", peak, 2))
            report.checks.append(Check(f"{route}: part coded", row["coded"], 0.99, at_least=True))
    if not arguments.quick:
        ratio = medians["quantize_"] / medians["compress"]
        report.checks.append(Check("quantize_: time of compress", ratio, 1.1))
    report.add(table)
    report.finish(arguments.output)


if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] in _ROUTES:
        print(json.dumps(_measure(sys.argv[1], *map(int, sys.argv[2:]))))
    else:
        main()
