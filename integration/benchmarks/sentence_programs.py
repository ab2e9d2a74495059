"""all-MiniLM-L6-v2, as its package ships it, by torchao's `quantize_` and PT2E.

    python -m integration.benchmarks.sentence_programs [--quick]

Mean cosine of sentence embeddings with the float network's, on 512 sentences by which nothing was
chosen; sizes of files; latency of a sentence on one thread, in turns, as time of the processor.
torchao's own int8, weight only, is beside ours. Three minutes on two cores.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

import vq_plugin as vq
from integration.benchmarks.harness import Check, Report, Table, parse_arguments
from integration.benchmarks.programs import exported, latency
from integration.workloads.zoo import minilm
from vq_plugin.nn import coded_weights
from vq_plugin.torchao import VQQuantizer, VQWeightOnlyConfig, check_converted

_SCHEME: Final = vq.KM(k=16)
_Program = Callable[[Tensor, Tensor], Tensor]


def padded(batches: list[dict[str, Tensor]]) -> list[tuple[Tensor, ...]]:
    """Tokens and their masks, int64 `(N, length)` each, of the longest length among the batches."""
    length = max(batch["input_ids"].shape[1] for batch in batches)
    return [
        tuple(functional.pad(each, (0, length - each.shape[1])) for each in batch.values())
        for batch in batches
    ]


def coded(module: nn.Module, name: str) -> bool:
    """The layers that `quantize_` is to take: its default leaves out embeddings."""
    return isinstance(module, nn.Linear | nn.Embedding)


def saved(model: nn.Module, example: tuple[Tensor, ...], path: Path) -> _Program:
    """The model as a program in a file, loaded again."""
    torch.export.save(exported(model, *example), path)
    loaded: _Program = torch.export.load(path).module()
    return loaded


def cosine(found: list[Tensor], expected: list[Tensor]) -> float:
    return float(functional.cosine_similarity(torch.cat(found), torch.cat(expected)).mean())


@torch.no_grad()
def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0])
    warnings.simplefilter("ignore")
    network = minilm.load()
    inputs = padded(network.untouched)
    # A file of a program has the whole tensor that an example is a part of.
    example = tuple(each[:2].clone() for each in inputs[0])
    model: Any = network.model
    if arguments.quick:
        inputs = inputs[:1]
        model.bert.encoder.layer = model.bert.encoder.layer[:1]

    by_filter = copy.deepcopy(model)
    quantize_(by_filter, VQWeightOnlyConfig(_SCHEME), coded)
    check_converted(by_filter, _SCHEME)
    prepared = prepare_pt2e(exported(model, *example).module(), VQQuantizer(_SCHEME))
    by_graph = check_converted(convert_pt2e(prepared), _SCHEME)
    int8 = copy.deepcopy(model)
    quantize_(int8, Int8WeightOnlyConfig(), coded)

    with tempfile.TemporaryDirectory() as folder:
        files = {
            "float, exported": "float.pt2", "int8 weight only by torchao, exported": "int8.pt2",
            "PT2E, exported": "small.pt2", "PT2E, AOTInductor": "package.pt2",
        }  # fmt: skip
        at = {name: Path(folder) / file for name, file in files.items()}
        programs: dict[str, _Program] = {"float, eager": model}
        for name, source in zip(files, (model, int8, by_graph), strict=False):
            programs[name] = saved(source, example, at[name])
        programs |= {"compress": vq.compress(model, _SCHEME), "quantize_": by_filter}
        programs["PT2E"] = by_graph
        vq.export_aoti(by_graph, at["PT2E, AOTInductor"], example)
        package = torch._inductor.aoti_load_package(str(at["PT2E, AOTInductor"]))
        programs["PT2E, AOTInductor"] = package
        found = {name: [run(*each) for each in inputs] for name, run in programs.items()}
        sentence, turns = (each[:1] for each in inputs[0]), 5 if arguments.quick else 35
        times = latency(programs, *sentence, turns=turns, repeats=1)
        sizes = {name: path.stat().st_size / 1e6 for name, path in at.items()}

    report = Report("sentence_programs", {"quick": arguments.quick, "scheme": str(_SCHEME)})
    table = Table(
        f"all-MiniLM-L6-v2, {_SCHEME}",
        {"program": "", "mean cosine": ".4f", "MB": ".2f", "ms": ".2f"},
    )
    eager = found["compress"]
    for name, outputs in found.items():
        row = {"program": name, "mean cosine": cosine(outputs, found["float, eager"])}
        table.rows.append({**row, "MB": sizes.get(name), "ms": times[name]})
        if name.startswith(("quantize_", "PT2E")):
            least = float(functional.cosine_similarity(torch.cat(outputs), torch.cat(eager)).min())
            report.checks.append(Check(f"{name}: as compress", least, 0.99999, at_least=True))
    weights = sum(each.nbytes for each in model.parameters())
    codes = coded_weights(by_filter).values()
    part = sum(4 * torch.Size(each.weight_shape).numel() for each in codes) / weights
    report.checks.append(Check("part of the weights coded", part, 0.99, at_least=True))
    report.add(table)
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
