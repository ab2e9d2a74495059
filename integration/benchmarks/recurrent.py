"""What recurrent layers take by codes, against torch's float layer.

    python -m integration.benchmarks.recurrent [--quick]

One layer, as many inputs as hidden units, 100 steps, every weight in random codes. Each turn calls
the float layer and the coded one, on one thread, by its processor time; a ratio is the median of
turns. Layers decide for themselves whether codes run.
"""

from __future__ import annotations

import statistics
import time
from copy import deepcopy

import torch
from torch import nn

import vq_plugin as vq
from integration.benchmarks.harness import (
    Report,
    Table,
    parse_arguments,
    random_weight,
    torch_threads,
)
from vq_plugin.nn import CodedParameter, coded_parameters, find_slots, hold_coded

_STEPS, _TURNS = 100, 9
_SCHEMES = ("pq(k=16,dim=4)", "km(k=16)", "pq(k=256,dim=8)")
_KINDS: tuple[type[nn.RNNBase], ...] = (nn.LSTM, nn.GRU, nn.RNN)


def main() -> None:
    """Measures, prints and writes the report."""
    arguments = parse_arguments(__doc__.splitlines()[0])
    report = Report("recurrent", {"quick": arguments.quick})
    table = Table(
        f"{_STEPS} steps, one thread: torch's float layer / layer in codes, {vq.ops.isa()}",
        {"layer": "", "hidden": "d", "sequences": "d", "scheme": "", "float ms": ".2f", "path": "",
         "ratio": ".2f", "largest error": ".0e"},
    )  # fmt: skip
    with torch_threads(1), torch.no_grad():
        for kind in _KINDS:
            for width in (16,) if arguments.quick else (128, 256, 512, 1024):
                for sequences in (1, 4):
                    for scheme in _SCHEMES[: 1 if sequences > 1 else None]:
                        table.rows.append(_compare(kind, width, sequences, scheme))
    report.add(table)
    report.finish(arguments.output)


def _compare(kind: type[nn.RNNBase], width: int, sequences: int, scheme: str) -> dict[str, object]:
    torch.manual_seed(0)
    plain = kind(width, width).eval()  # type: ignore[call-arg, arg-type]
    small = _coded(plain, vq.parse_scheme(scheme))
    x = torch.randn(_STEPS, sequences, width)
    error = float((small(x)[0] - plain(x)[0]).abs().max())
    times: list[float] = []
    ratios = []
    for _ in range(_TURNS):
        start = time.thread_time()
        plain(x)
        between = time.thread_time()
        small(x)
        times.append(between - start)
        ratios.append(times[-1] / (time.thread_time() - between))
    kept = coded_parameters(small)["weight_hh_l0"]._decoded.kept
    return {
        "layer": kind.__name__, "hidden": width, "sequences": sequences, "scheme": scheme,
        "float ms": statistics.median(times) * 1e3, "path": "codes" if kept is None else "float",
        "ratio": statistics.median(ratios), "largest error": error,
    }  # fmt: skip


def _coded(plain: nn.RNNBase, scheme: vq.Scheme) -> nn.RNNBase:
    """The layer in random codes; the float layer gets the weights that they stand for."""
    small = deepcopy(plain)
    for number, (name, slot) in enumerate(find_slots(plain).items()):
        shape = tuple(slot.value.shape)
        # As large as torch makes weights: gates that are all open or shut hide errors.
        weight = random_weight(shape, scheme, deviation=shape[1] ** -0.5, seed=number)
        slot.value.copy_(weight.decode())
        coded = CodedParameter(weight, slot.view, trains=False, padding=None, zero=False)
        hold_coded(small, name, coded)
    return small


if __name__ == "__main__":
    main()
