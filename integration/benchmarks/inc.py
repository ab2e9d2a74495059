"""INC's autotune with codebooks beside INC's own weight-only algorithms: bytes within 1 %.

python -m integration.benchmarks.inc [--seeds 0 1 2] [--quick]

One trained model, one evaluation, one tolerance. INC's own candidates are sorted by the bytes that
its ``save`` writes, the smallest first, and closed by one that quantizes nothing, so that autotune
returns the smallest that holds. The seeds are those of our fits. The test split chooses nothing.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from itertools import product
from typing import Any

import torch
from neural_compressor.common.base_config import BaseConfig
from neural_compressor.torch.quantization import (
    AutoRoundConfig,
    AWQConfig,
    GPTQConfig,
    HQQConfig,
    RTNConfig,
    TEQConfig,
    TuningConfig,
    autotune,
    quantize,
    save,
)
from torch import nn

from integration.benchmarks.harness import Check, Report, Table, parse_arguments, quiet
from integration.inc.report import folder_bytes
from integration.pipelines import file_bytes
from integration.workloads import fashion_mnist_cnn
from vq_plugin.inc import tuning_config
from vq_plugin.nn import CodebookLayer
from vq_plugin.tuning import LADDER
from vq_plugin.workloads import digits

_BITS, _GROUPS = (1, 2, 3, 4, 8), (32, 128, 1024, -1)
_TOLERANCE = 0.01
_FORMATS = {
    "method": "", "seed": "d", "folder bytes": "d", "folder rate": ".1f", "evaluations": "d",
    "loss (tuning) %": ".2f", "loss (test) %": ".2f", "seconds": ".0f", "chosen": "",
}  # fmt: skip


def own_candidates() -> Iterator[BaseConfig]:
    """INC's weight-only algorithms, from 1 to 8 bits; without layer-wise loading from files."""
    for bits, group, symmetric, search in product(_BITS, _GROUPS, (True, False), (False, True)):
        if bits > 1 or not symmetric:
            shared = {"bits": bits, "group_size": group, "use_sym": symmetric}
            yield RTNConfig(**shared, use_mse_search=search, use_layer_wise=False)
    for bits, group in product(_BITS[1:], _GROUPS):
        yield TEQConfig(bits=bits, group_size=group, use_layer_wise=False)
    for bits in _BITS:
        yield HQQConfig(bits=bits)
    for bits in (2, 4, 8):
        yield GPTQConfig(bits=bits, use_layer_wise=False)
        yield AWQConfig(bits=bits, use_layer_wise=False)
        yield AutoRoundConfig(bits=bits)


def saved_bytes(model: nn.Module) -> int:
    """Bytes of all files that INC's ``save`` writes."""
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder)
        return folder_bytes(folder)


def sized(model: nn.Module, batches: list[torch.Tensor], report: Report) -> list[BaseConfig]:
    """INC's candidates that run on this model, the smallest first."""
    found: list[tuple[int, int, BaseConfig]] = []
    failed: dict[str, dict[str, None]] = {}
    for order, config in enumerate(own_candidates()):
        try:
            with quiet():
                small = quantize(
                    copy.deepcopy(model),
                    config,
                    run_fn=lambda m: [m(batch) for batch in batches],
                    example_inputs=batches[0],
                )
                small(batches[0])
                found.append((saved_bytes(small), order, config))
        except Exception as error:  # noqa: BLE001 - whatever INC raises, it does not run
            text = " ".join(str(error).split())[:90]
            failed.setdefault(config.name, {})[f"{type(error).__name__}: {text}"] = None
    kept = {config.name for _, _, config in found}
    for name, texts in failed.items():
        some = "some settings of " if name in kept else ""
        report.note(f"{some}{name} did not run on this model: {'; '.join(list(texts)[:3])}")
    report.note(f"{len(found)} candidates of INC's own run: {', '.join(sorted(kept))}")
    return [config for _, _, config in sorted(found, key=lambda item: item[:2])]


class Counted:
    """An evaluation that counts its calls."""

    def __init__(self, evaluate: Callable[[nn.Module], float]) -> None:
        self.evaluate, self.calls = evaluate, 0

    def __call__(self, model: nn.Module) -> float:
        self.calls += 1
        return float(self.evaluate(model))


def run(
    method: str, workload: Any, model: nn.Module, make: Callable[[], TuningConfig], **facts: Any
) -> dict[str, Any]:
    """One autotune; its row. The time includes making the candidates."""
    evaluate = Counted(workload.evaluate)
    start = time.perf_counter()
    with quiet():
        # TEQ traces the model.
        small = autotune(model, make(), evaluate, example_inputs=workload.calibration()[0])
        seconds = time.perf_counter() - start
        nbytes = saved_bytes(small)
    baseline, score = workload.evaluate(model), workload.evaluate(small)
    tested, kept = workload.test(model), workload.test(small)
    return {
        "method": method,
        "folder bytes": nbytes,
        "folder rate": file_bytes(model) / nbytes,
        "evaluations": evaluate.calls - 1,  # INC evaluates the float model as well
        "loss (tuning) %": 100 * (1 - score / baseline),
        "loss (test) %": 100 * (1 - kept / tested),
        "seconds": seconds,
        "chosen": _chosen(small),
        **facts,
    }


def _chosen(model: nn.Module) -> str:
    schemes = [str(m.scheme) for m in model.modules() if isinstance(m, CodebookLayer)]
    if schemes:
        return ", ".join(schemes)
    configs = getattr(model, "qconfig", {})
    shown = {
        f"{c.name} {c.bits} bits, groups of {c.group_size}, "
        f"{'symmetric' if c.use_sym else 'asymmetric'}" + ", search" * c.use_mse_search
        for c in configs.values()
    }
    return "; ".join(sorted(shown)) or "float"


def main() -> None:
    arguments = parse_arguments(__doc__ or "", _options)
    workload, recipe = fashion_mnist_cnn, "recipes/inc_fashion_mnist_cnn.yaml"
    if arguments.quick:
        workload, recipe = digits, "recipes/inc_digits.yaml"
    model = workload.model()
    settings = {"quick": arguments.quick, "seeds": arguments.seeds, "recipe": recipe}
    report = Report("inc", settings)
    report.note(f"INC is neural_compressor_pt {metadata.version('neural_compressor_pt')}")
    table = Table("The smallest folder within 1 %, by INC's autotune", _FORMATS)

    own = [*sized(model, workload.calibration(), report), RTNConfig(dtype="fp32")]
    with quiet():
        config = TuningConfig(own, tolerable_loss=_TOLERANCE, max_trials=len(own))
    table.rows.append(run("INC's own weight-only", workload, model, lambda: config))
    sources: dict[str, Any] = {"codebooks, the recipe": recipe}
    if not arguments.quick:
        sources["codebooks, the built-in ladder"] = {"*": list(LADDER)}
    for (name, source), seed in product(sources.items(), arguments.seeds):

        def ours(source: Any = source, seed: int = seed) -> TuningConfig:
            batches = None if source == recipe else workload.calibration()
            return tuning_config(model, source, _TOLERANCE, calibration=batches, seed=seed)

        table.rows.append(run(name, workload, model, ours, seed=seed))
    report.add(table)
    theirs, *mine = (row["folder bytes"] for row in table.rows)
    ratio = theirs / max(mine)
    report.checks.append(Check("INC's own bytes over ours, worst row", ratio, 3, at_least=True))
    worst = max(row["loss (tuning) %"] for row in table.rows)
    report.checks.append(Check("largest loss on the tuning split, %", worst, 100 * _TOLERANCE))
    report.finish(arguments.output)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the fits")


if __name__ == "__main__":
    main()
