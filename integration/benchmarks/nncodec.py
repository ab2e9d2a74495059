"""Whole files of nncodec (ISO/IEC 15938-17), and ours that lose no more.

    python -m integration.benchmarks.nncodec [--networks lenet5 ...] [--learned FOLDER] [--quick]

Without training, every contender has one knob: nncodec its quantization parameter, ours the step of
`vq.Uniform`, the centers of `vq.PQ` or the change that a preset allows. It is turned by bisection
until the file is the smallest whose loss on the tuning split is within a budget of absolute points;
the test split gives the figure. nncodec goes by weights alone; "calibrated" fits saw 512 unlabelled
images.

With ``--learned`` nncodec codes the very weights that `vq.learn` found, from files that
`integration.benchmarks.learn --keep` has left: centers lie on no grid once they have learned, so
its steps get finer until as little is lost.

nncodec is in no extra, as it asks for a numpy below 2; how it is installed beside ours is in
docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks import learn, settings
from integration.benchmarks.harness import Report, Table, missing_peer, parse_arguments, quiet
from vq_plugin.checkpoint import file_bytes
from vq_plugin.replace import assemble
from vq_plugin.workloads.training import accuracy

NETWORKS = ("lenet_300_100", "lenet5", "fashion_mnist_cnn", "resnet20")
# Points of accuracy.
BUDGETS = (1.0, 0.3)
# Of biases and norms: steps of 2 to the power of a quarter of it. The default, -75, takes twice
# the bytes and loses as little.
_OTHERS = -40
# Knobs count in quarters of powers of two, from these on: nncodec's from steps of 2 ** -7.
_QP, _STEPS, _CHANGES = (-28, 0), (0, 20), (0, 36)
# Of vectors of eight weights, in halves from 256 on.
_CENTERS = (0, 12)
_LEAST_STEP, _LEAST_CHANGE = 0.1, 0.001
# Trellis quantization ("dependent") is the default; with `lambda_scale` it minds the bits.
_WAYS: Mapping[str, dict[str, Any]] = {
    "as it comes": {"nonweight_qp": -75},
    "dependent": {},
    "dependent, lambda 0.5": {"lambda_scale": 0.5},
    "dependent, lambda 1": {"lambda_scale": 1.0},
    "dependent, lambda 2": {"lambda_scale": 2.0},
    "independent": {"use_dq": False},
    "independent, lambda 1": {"use_dq": False, "lambda_scale": 1.0},
    # Tries every center as the zero of its codes: hours for millions of weights and many centers.
    "codebook": {"codebook_mode": 2, "use_dq": False},
}
# What a network of millions of weights is given, for its time.
_FEW = ("as it comes", "dependent, lambda 0.5", "independent")
# Points that nncodec may lose more than the file whose weights it codes.
_CHANCE = 0.1
# Above it an evaluation takes too long for so many.
_LARGE, _TUNING_IMAGES = 1_000_000, 4_000


@dataclass(frozen=True)
class Made:
    """A model as its file gives it back, and the bytes of the file."""

    model: nn.Module
    nbytes: int


@dataclass(frozen=True)
class Contender:
    """What makes a file of a model, coarser from the first number of a knob to the last."""

    name: str
    make: Callable[[nn.Module, int], Made]
    knob: tuple[int, int]
    show: Callable[[int], str]


@cache
def codec() -> ModuleType:
    """nncodec's coder."""
    try:
        import torchvision  # type: ignore[import-untyped,unused-ignore]  # noqa: F401
    except RuntimeError:
        # nncodec needs torchvision for data sets that are not used here. That of PyPI is built
        # for CUDA: beside a torch without it, two operators are missing that it says more about.
        for name in ("nms", "qnms"):
            kind = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            torch.library.define(f"torchvision::{name}", kind)
    from nncodec import nnc  # type: ignore[import-untyped,import-not-found,unused-ignore]

    return nnc  # type: ignore[no-any-return]


def coded(model: nn.Module, qp: int, **how: Any) -> Made:
    """nncodec's file, and the model that it gives back."""
    state = {n: v.numpy() for n, v in model.state_dict().items() if v.is_floating_point()}
    options: dict[str, Any] = {"nonweight_qp": _OTHERS, "row_skipping": True, **how}
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        stream = codec().compress(
            state, bitstream_path=None, qp=qp, return_bitstream=True, **options
        )
        found = codec().decompress(stream)
    back = assemble(model, {})
    back.load_state_dict({n: torch.from_numpy(v) for n, v in found.items()}, strict=False)
    return Made(back, len(stream))


def compressed(
    model: nn.Module, at: int, scheme: Callable[[int], Any], calibration: list[Tensor] | None
) -> Made:
    """Ours, of one scheme or preset for all weights."""
    small = vq.compress(model, {"*": scheme(at)}, calibration)
    return Made(small, len(file_bytes(small, "int8")))


def _uniform(at: int) -> vq.Uniform:
    return vq.Uniform(step=round(_LEAST_STEP * 2 ** (at / 4), 3))


def _vectors(at: int) -> vq.PQ:
    k = round(256 / 2 ** (at / 2))
    return vq.PQ(k=k, dim=8, axis="out", codebook_dtype="int8")


def _preset(at: int) -> vq.Preset:
    return vq.Preset(change=round(_LEAST_CHANGE * 2 ** (at / 4), 4))


def contenders(calibration: list[Tensor]) -> Iterator[Contender]:
    """Ours, and nncodec's ways."""
    kinds = {
        "uniform": (_uniform, _STEPS),
        "vectors": (_vectors, _CENTERS),
        "preset": (_preset, _CHANGES),
    }
    for kind, (scheme, knob) in kinds.items():
        for name, data in ((kind, None), (f"{kind}, calibrated", calibration)):
            make = partial(compressed, scheme=scheme, calibration=data)
            yield Contender(f"vq_plugin, {name}", make, knob, partial(_shown, scheme))
    for name, how in _WAYS.items() if not missing_peer("nncodec") else ():
        yield Contender(f"nncodec, {name}", partial(coded, **how), _QP, "qp {}".format)


def _shown(scheme: Callable[[int], vq.Scheme | vq.Preset], at: int) -> str:
    found = scheme(at)
    return f"change={found.change}" if isinstance(found, vq.Preset) else str(found)


def smallest(
    contender: Contender,
    model: nn.Module,
    score: Callable[[nn.Module], float],
    budgets: Sequence[float],
) -> Iterator[tuple[float, int, Made]]:
    """For each budget the smallest file that holds, and where its knob stood."""
    tried: dict[int, tuple[float, Made]] = {}
    baseline = score(model)
    for budget in budgets:
        low, high = contender.knob[0], contender.knob[1] + 1
        while high - low > 1:
            middle = (low + high) // 2
            if middle not in tried:
                made = contender.make(model, middle)
                tried[middle] = 100 * (baseline - score(made.model)), made
            low, high = (middle, high) if tried[middle][0] <= budget else (low, middle)
        held = {at: made for at, (loss, made) in tried.items() if loss <= budget}
        if held:
            at = min(held, key=lambda each: held[each].nbytes)
            yield budget, at, held[at]


def untrained(report: Report, name: str, budgets: Sequence[float]) -> None:
    """Adds the table of a network, nothing trained."""
    workload = settings.WORKLOADS[name]
    model = workload.model()
    images, labels = settings.tuning_images(name)
    count = sum(p.numel() for p in model.parameters())
    kept = slice(_TUNING_IMAGES if count > _LARGE or name == "resnet20" else None)
    score = partial(accuracy, images=images[kept], labels=labels[kept])
    baseline, test = score(model), workload.test(model)
    nbytes = sum(value.nbytes for value in model.state_dict().values())
    table = Table(
        f"{name}, nothing trained: the smallest file within a budget on {len(labels[kept])} tuning "
        f"images; float {nbytes} bytes, {100 * test:.2f} % test",
        {
            "by": "", "budget": ".1f", "setting": "", "bytes": "d", "rate": ".1f",
            "loss (tuning)": ".2f", "loss (test)": ".2f",
        },
    )  # fmt: skip
    for contender in contenders(workload.calibration()):
        way = contender.name.removeprefix("nncodec, ")
        if count > _LARGE and way in _WAYS and way not in _FEW:
            continue
        for budget, at, made in smallest(contender, model, score, budgets):
            table.rows.append({
                "by": contender.name, "budget": budget, "setting": contender.show(at),
                "bytes": made.nbytes, "rate": nbytes / made.nbytes,
                "loss (tuning)": 100 * (baseline - score(made.model)),
                "loss (test)": 100 * (test - workload.test(made.model)),
            })  # fmt: skip
            # The next takes minutes.
            print(table.rows[-1], flush=True)
    report.add(table)


def learned(report: Report, name: str, path: Path) -> None:
    """Adds the table of a network that `vq.learn` has trained."""
    workload = settings.WORKLOADS[name]
    model, small = workload.model(), vq.load(path, workload.model())
    test, found = workload.test(model), workload.test(small)
    nbytes = sum(value.nbytes for value in model.state_dict().values())
    decoded = assemble(model, {})
    decoded.load_state_dict(_state(small, like=model))
    table = Table(
        f"{name}, weights of vq.learn coded again; float {nbytes} bytes, {100 * test:.2f} % test",
        {"by": "", "setting": "", "bytes": "d", "rate": ".1f", "loss (test)": ".2f"},
    )

    def add(by: str, setting: str, size: int, score: float) -> None:
        lost = 100 * (test - score)
        row = {"by": by, "setting": setting, "bytes": size, "rate": nbytes / size}
        table.rows.append({**row, "loss (test)": lost})

    add("vq_plugin", "its file", path.stat().st_size, found)
    for contender in contenders([]):
        if contender.name.startswith("nncodec"):
            for _, at, made in smallest(contender, decoded, workload.test, (_CHANCE,)):
                add(contender.name, contender.show(at), made.nbytes, workload.test(made.model))
    report.add(table)


def _state(small: nn.Module, like: nn.Module) -> dict[str, Tensor]:
    """The state of a float model with the values of a compressed one, weights decoded."""

    def value(key: str) -> Tensor:
        module, _, name = key.rpartition(".")
        found = getattr(small.get_submodule(module), name)
        assert isinstance(found, Tensor)
        return found.detach()

    return {key: value(key) for key in like.state_dict()}


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--networks", nargs="+", choices=settings.WORKLOADS, default=NETWORKS)
        parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS, help="points")
        parser.add_argument("--learned", type=Path, help="folder of files that vq.learn made")

    arguments = parse_arguments(__doc__.splitlines()[0], more)
    names = ["digits"] if arguments.quick else arguments.networks
    torch.set_num_threads(1)
    report = Report("nncodec", {"quick": arguments.quick})
    if missing_peer("nncodec"):
        report.note("nncodec is not installed: left out")
    folder = arguments.learned
    for name in names:
        untrained(report, name, arguments.budgets)
        if folder is not None and (path := learn.learned_file(folder, name, 0)).exists():
            learned(report, name, path)
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
