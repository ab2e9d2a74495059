"""Networks that others trained: bytes of the whole file against agreement with the float network.

python -m integration.benchmarks.zoo [--net NAME ...] [--settings TEXT ...] [--quick]

Ours beside coremltools' palettizer and torch.ao's int8, on the same inputs and without training.
What counts is the agreement on inputs of sources by which nothing was chosen.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

import vq_plugin as vq
from integration.benchmarks import zoo_peers
from integration.benchmarks.harness import Report, Table, parse_arguments
from integration.benchmarks.peers import quiet
from integration.benchmarks.zoo_peers import Measured
from integration.workloads.zoo.network import Network, Split
from integration.workloads.zoo.networks import NETWORKS

Make = Callable[[Network], Measured]

_FORMATS = {
    "setting": "", "bytes": ",d", "file rate": ".2f", "agreement %": ".2f", "seconds": ".1f",
    "note": "",
}  # fmt: skip


def ours(network: Network, schemes: Any, calibrated: bool = False, fold: bool = False) -> Measured:
    """`vq.compress` of every layer, with the network's calibration data or without."""
    batches = network.calibration if calibrated else None
    return from_file(network, vq.compress(network.model, schemes, batches, fold=fold))


def tuned(network: Network, fold: bool = False) -> Measured:
    """`vq.tune` at 1 %; the file of what it found, and after how many evaluations."""
    model = vq.fold_batch_norms(network.model) if fold else network.model
    result = vq.tune(
        model, network.evaluate, vq.LossBudget(relative=0.01), network.calibration,
        max_trials=25, timeout=network.patience, rest="float16",
    )  # fmt: skip
    if not result.passed:
        raise ValueError(f"the tuner found nothing: {result.stopped}")
    found = from_file(network, result.model)
    return found._replace(note=f"{len(result.trials)} evaluations")


def from_file(network: Network, small: nn.Module) -> Measured:
    """The model that a file gives back, what is not compressed in float16, and the file's bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.vq"
        nbytes = vq.save(small, path, rest="float16")
        return Measured(vq.load(path, copy.deepcopy(network.model)), nbytes)


SCHEMES: dict[str, Any] = {
    "KM(16)": vq.KM(16),
    "PQ(256, 4, tensor)": vq.PQ(256, 4, codebooks="tensor"),
}
# Those of the package, and changes between them: which loses 1 % depends on the network.
PRESETS: dict[str, Any] = {
    **{name: name for name in vq.PRESETS},
    **{f"Preset({change})": vq.Preset(change) for change in (0.002, 0.005, 0.015, 0.02, 0.03)},
}
SETTINGS: dict[str, Make] = {
    **{f"ours {name}": partial(ours, schemes=scheme) for name, scheme in SCHEMES.items()},
    **{
        f"ours {name}, calibrated": partial(ours, schemes=scheme, calibrated=True)
        for name, scheme in SCHEMES.items()
    },
    **{
        f"ours {name}, calibrated": partial(ours, schemes=preset, calibrated=True)
        for name, preset in PRESETS.items()
    },
    **{
        f"ours {name}, norms folded, calibrated": partial(
            ours, schemes=preset, calibrated=True, fold=True
        )
        for name, preset in PRESETS.items()
    },
    "ours tuned at 1 %": tuned,
    "ours tuned at 1 %, norms folded": partial(tuned, fold=True),
    **{
        f"coremltools {bits} bits, {where}{', sensitive' * sensitive}": partial(
            zoo_peers.coremltools, n_bits=bits, group=group, sensitive=sensitive
        )
        for bits in (2, 3, 4, 6)
        for where, group in (("tensor", None), ("16 channels", 16))
        for sensitive in (False, True)
    },
    "torch.ao int8 dynamic": zoo_peers.int8_dynamic,
    "torchao int8 weight only": zoo_peers.int8_weight_only,
}
_QUICK = ("ours KM(16)", "ours KM(16), calibrated", "torch.ao int8 dynamic")


def float_bytes(model: nn.Module) -> int:
    """Bytes of the ``state_dict`` in float32."""
    return sum(
        4 * value.numel() if value.is_floating_point() else value.nbytes
        for value in model.state_dict().values()
    )


def measure(network: Network, make: Make) -> dict[str, Any]:
    """One row of a network's table."""
    start = time.perf_counter()
    try:
        found = make(network)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        # A tool that cannot take the network has a row that says so.
        return {"note": f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"}
    seconds = time.perf_counter() - start
    return {
        "bytes": found.nbytes,
        "file rate": float_bytes(network.model) / found.nbytes,
        "agreement %": 100 * network.test(found.small.eval()),
        "seconds": seconds,
        "note": found.note,
    }


def table_of(name: str, network: Network, settings: dict[str, Make]) -> Table:
    """Measures all settings on one network, the largest file first."""
    items = len(network.test_samples(network.model))
    kept = sum(value.numel() for value in network.model.parameters())
    table = Table(f"{name}: {network.metric}, {items} items, {kept:,} parameters", _FORMATS)
    rows = []
    for setting, make in settings.items():
        rows.append({"setting": setting, **measure(network, make)})
        print(rows[-1], flush=True)
    full = {"bytes": float_bytes(network.model), "file rate": 1.0, "agreement %": 100.0}
    rows.append({"setting": "float32", **full})
    table.rows = sorted(rows, key=lambda row: -row.get("bytes", 0))
    return table


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0], _options)
    quick = arguments.quick
    name = "voice_activity" if quick else arguments.net
    wanted = {
        setting: make
        for setting, make in SETTINGS.items()
        if (setting in _QUICK if quick else _matches(setting, arguments.settings))
    }
    report = Report(f"zoo_{name}", {"quick": quick, "net": name, "settings": list(wanted)})
    network = NETWORKS[name]()
    if quick:
        network = replace(network, batches=partial(_first, network.batches))
    with quiet():
        report.add(table_of(name, network, wanted))
    report.note("what is not compressed is float16 in every file; float32 is the state_dict")
    report.note("coremltools' bytes are counted: n-bit codes, float16 tables, no entropy coder")
    report.finish(arguments.output)


def _first(batches: Callable[[Split], list[Any]], split: Split) -> list[Any]:
    return batches(split)[:1]


def _matches(name: str, wanted: list[str] | None) -> bool:
    return wanted is None or any(text in name for text in wanted)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--net", choices=tuple(NETWORKS), default="crepe_tiny")
    parser.add_argument("--settings", nargs="+", help="only settings whose names hold one of these")


if __name__ == "__main__":
    main()
