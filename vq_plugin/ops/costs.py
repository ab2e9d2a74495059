"""Whether the kernel of a layer is as fast as the float layer: estimates, mended by measurements.

Kernels know about what they take (``csrc/isa_*.cpp``), as fitted on two machines. ``vq-plugin
doctor --measure`` finds how many times as long they really take on this one, against the float
layer by the same clock, and keeps it in the user's cache. Nothing is measured unasked: the two ways
round differently, so that the same program has to decide alike in every process.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import warnings
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import cache, lru_cache
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from vq_plugin.atomic import check_target, write_atomically
from vq_plugin.ops.native import follow_isa, isa, native
from vq_plugin.user_cache import cache_dir

COSTS_VARIABLE = "VQ_PLUGIN_COSTS"
SHIPPED = "shipped"
# Where both ways are about as fast, the float layer is sure not to be slower; estimates that
# nobody has measured here are off by more.
_DOUBT, _DOUBT_SHIPPED = 1.05, 1.08
_DECODED = 400.0  # picoseconds, of each weight
_READ = 100.0  # of each value of codebooks, as in csrc/cost.h
_EXACT = 0
_REMEMBERED = 4096  # decisions of one kind of layers
STEPS = "recurrent steps"  # what steps take beside their products, in the place of a kernel


@dataclass(frozen=True)
class Grid:
    """Ratios at sizes of layers and numbers of samples, between which logarithms are interpolated.

    Attributes:
        weights: Ascending.
        samples: Ascending.
        ratios: ``(weights, samples)``, above 0.

    Example:
        >>> grid = Grid((100, 10_000), (1,), ((1.0,), (4.0,)))
        >>> [round(grid.at(weights, 7), 2) for weights in (10, 1_000, 10_000)]
        [1.0, 2.0, 4.0]
    """

    weights: tuple[float, ...]
    samples: tuple[float, ...]
    ratios: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        for axis in (self.weights, self.samples):
            if not axis or axis[0] <= 0 or any(a >= b for a, b in pairwise(axis)):
                raise ValueError(f"{axis} do not ascend from above 0")
        every = [ratio for row in self.ratios for ratio in row]
        shape = len(self.ratios), {len(row) for row in self.ratios}
        if shape != (len(self.weights), {len(self.samples)}):
            raise ValueError("the ratios are not of these weights and samples")
        if not all(math.isfinite(ratio) and ratio > 0 for ratio in every):
            raise ValueError("a ratio is not a number above 0")

    def at(self, weights: float, samples: float) -> float:
        """The ratio of a layer; that of the nearest place on the rim where it is outside."""
        row, down = _between(self.weights, weights)
        column, right = _between(self.samples, samples)
        return math.exp(
            sum(
                share * other * math.log(self.ratios[i][j])
                for i, share in ((row, 1 - down), (row + 1, down))
                for j, other in ((column, 1 - right), (column + 1, right))
                if share * other > 0
            )
        )


def _between(axis: Sequence[float], value: float) -> tuple[int, float]:
    """Which entry is the last not above a value, and how far that is to the next one."""
    value = min(max(value, axis[0]), axis[-1])
    at = bisect_right(axis, value) - 1
    if value == axis[at]:
        return at, 0.0
    return at, math.log(value / axis[at]) / math.log(axis[at + 1] / axis[at])


@dataclass(frozen=True)
class Costs:
    """What is known of the kernels of one instruction set.

    Attributes:
        measured: When, in ISO 8601; ``None`` for what is shipped.
        grids: By kernel: how many times as long as estimated it takes, against the float layer;
            one for each number of threads that was measured.
    """

    measured: str | None
    grids: Mapping[str, tuple[Grid, ...]]

    def ratio(self, kernel: str, weights: float, samples: float) -> float:
        """Of the number of threads that it is worst on, as decisions are the same on all."""
        return max((grid.at(weights, samples) for grid in self.grids.get(kernel, ())), default=1.0)


# What codes_pay() takes.
LinearShape = tuple[int, int, int, int, int, int, bool, bool, bool, bool]


def codes_pay(samples: int, shape: tuple[int, ...], precision: int, *, decodes: int = 0) -> bool:
    """Whether the kernel of a linear layer is expected to be as fast as the float layer.

    Args:
        samples: Rows of the input; with ``pointwise``, places of all images.
        shape: Inputs, outputs, stages, centers, ``dim``, rows per group or 0, whether there is one
            book for all subspaces, codes are packed, they run along the outputs, and whether it is
            ``pointwise``: a 1x1 convolution.
        precision: Of :data:`vq_plugin.ops.PRECISIONS`.
        decodes: How many decodings the float layer takes in a pass: 0 where its weight is kept.
    """
    known = isa()
    found = None if known is None else linear_estimates(samples, shape, precision)
    return known is not None and found is not None and _pays(known, decodes, found)


def convolution_codes_pay(
    images: int,
    inputs: int,
    places: int,
    shape: tuple[int, ...],
    precision: int,
    *,
    decodes: bool = False,
) -> bool:
    """The same of a convolution.

    Args:
        images: Of the input.
        inputs: Places of an image.
        places: Of an output.
        shape: Input channels, output channels, groups, positions of the kernel, stages, centers,
            ``dim``, whether there is one book for all pieces.
        precision: Of :data:`vq_plugin.ops.PRECISIONS`.
        decodes: Whether no weight is kept, so that the float layer decodes it first.
    """
    known = isa()
    return known is not None and _convolution_pays(
        known, decodes, images, inputs, places, shape, precision
    )


def recurrent_codes_pay(
    steps: int,
    sequences: int,
    beside: float,
    hidden: Sequence[LinearShape],
    incoming: Sequence[LinearShape],
    *,
    decodes: bool = False,
) -> bool:
    """The same of a recurrent layer, whose loop is torch's own only where weights are decoded.

    Args:
        steps: Of the sequences.
        sequences: In the batch.
        beside: Picoseconds that a step takes more than in torch's loop, beside its product.
        hidden: As ``shape`` of :func:`codes_pay`, of weights that meet the hidden state.
        incoming: Of coded weights that meet the inputs of all steps at once, decoded or not.
        decodes: As for :func:`codes_pay`.
    """
    known = isa()
    if known is None:
        return False
    beside *= costs_of(known).ratio(STEPS, 1, 1)
    saved = 0.0
    for shape in hidden:
        step = linear_estimates(sequences, shape, _EXACT)
        if step is None:
            return False
        # Torch's loop sees once in a pass whether codebooks are what they were, not at each step.
        step = replace(step, plain=step.plain - _READ * _values(shape) * (1 - 1 / steps))
        saved += _gain(known, decodes, step, steps) - steps * beside
    for shape in incoming:
        together = linear_estimates(steps * sequences, shape, _EXACT)
        if together is not None:
            saved += max(_gain(known, decodes, together, 1), 0.0)
    return saved >= 0


def _values(shape: LinearShape) -> int:
    in_, out, stages, k, dim, _, one_book, _, along_out, _ = shape
    return stages * (1 if one_book else -(-(out if along_out else in_) // dim)) * k * dim


@dataclass(frozen=True)
class Estimates:
    """What is expected of a layer, before measurements mend it.

    Attributes:
        kernel: Its name, with the kind of layers that it takes alike long for: those of about as
            long sub-vectors, or 1x1 convolutions, whose rival is another.
        codes: Picoseconds of the kernel, on one thread.
        plain: Those of torch's float layer with a kept weight.
        weights: Of the layer.
        samples: Rows of the input, or places of all outputs.
    """

    kernel: str
    codes: float
    plain: float
    weights: int
    samples: int


def linear_estimates(samples: int, shape: tuple[int, ...], precision: int) -> Estimates | None:
    """Of a linear layer, or ``None`` where no kernel computes it; see :func:`codes_pay`."""
    found = _module().linear_estimates(samples, *shape, precision)
    if found is None:
        return None
    name, codes, plain = found
    in_, out, _, _, dim, *_, pointwise = shape
    if pointwise:
        kernel = f"pointwise {name}"
    else:
        kernel = name if dim == 1 else f"{name}, dim {4 if dim < 6 else 8}"
    return Estimates(kernel, codes, plain, in_ * out, samples)


def convolution_estimates(
    images: int, inputs: int, places: int, shape: tuple[int, ...], precision: int
) -> Estimates:
    """Of a convolution; see :func:`convolution_codes_pay`."""
    name, codes, plain = _module().convolution_estimates(images, inputs, places, *shape, precision)
    in_, out, groups, positions, *_ = shape
    return Estimates(name, codes, plain, in_ // groups * out * positions, images * places)


@lru_cache(maxsize=_REMEMBERED)
def _convolution_pays(isa: str, decodes: bool, *layer: Any) -> bool:
    return _pays(isa, decodes, convolution_estimates(*layer))


def _pays(isa: str, decodes: int, layer: Estimates) -> bool:
    return _gain(isa, decodes, layer, 1) >= 0


def _gain(isa: str, decodes: int, layer: Estimates, calls: int) -> float:
    """Picoseconds that so many calls by codes save at least."""
    costs = costs_of(isa)
    doubt = _DOUBT if layer.kernel in costs.grids else _DOUBT_SHIPPED
    ratio = costs.ratio(layer.kernel, layer.weights, layer.samples)
    plain = calls * layer.plain + layer.weights * _DECODED * decodes
    return plain - calls * layer.codes * ratio * doubt


def _module() -> Any:
    module = native()
    assert module is not None
    return module


@cache
def costs_of(isa: str) -> Costs:
    """What is known of an instruction set here: measured, or shipped; read once in a process.

    Warns, once, of a file that cannot be read.

    Raises:
        ValueError: If the variable ``VQ_PLUGIN_COSTS`` is neither empty nor ``shipped``.
    """
    wanted = os.environ.get(COSTS_VARIABLE)
    shipped = Costs(None, {})
    if wanted == SHIPPED:
        return shipped
    if wanted:
        raise ValueError(f"{COSTS_VARIABLE}={wanted!r}: it is {SHIPPED!r}, or not set")
    try:
        path = costs_path(isa)
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, RuntimeError):
        return shipped  # RuntimeError: no home
    except (OSError, UnicodeDecodeError) as error:
        _warn(f"{path}: the costs of kernels cannot be read: {error}")
        return shipped
    try:
        return _parsed(text, _key(isa))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        _warn(f"{path} holds no costs of kernels: {error}")
        return shipped


def forget_costs() -> None:
    """Has the next decisions read the user's cache again: for tests, and after a measurement."""
    for known in (costs_of, _convolution_pays):
        known.cache_clear()
    for forget in follow_isa:
        forget()


def _warn(problem: str) -> None:
    warnings.warn(
        f"{problem}. Layers run by the costs that are shipped; vq-plugin doctor --measure writes "
        f"the file anew, and {COSTS_VARIABLE}={SHIPPED} says that this is meant",
        stacklevel=2,
    )


def costs_path(isa: str) -> Path:
    """The file of this machine, torch and vq_plugin in the user's cache; RuntimeError: no home."""
    text = json.dumps(_key(isa), sort_keys=True)
    return cache_dir() / "costs" / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.json"


def place_for_costs(isa: str) -> Path:
    """The file, in a folder that can be written to: to be asked for before the measurement.

    Raises:
        OSError: If it cannot, or a folder is in the file's place.
        ValueError: If it would be in the home of a user who has none.
    """
    try:
        path = costs_path(isa)
    except RuntimeError as error:
        raise ValueError(f"{error} Set VQ_PLUGIN_CACHE to a folder for what is kept") from error
    path.parent.mkdir(parents=True, exist_ok=True)
    check_target(path)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent))
    return path


def keep_costs(isa: str, costs: Costs) -> None:
    """Writes the file in one step, and has this process go by it; errors are those of its place."""
    path = place_for_costs(isa)
    grids = {name: [asdict(grid) for grid in some] for name, some in costs.grids.items()}
    text = json.dumps({**_key(isa), "measured": costs.measured, "grids": grids}, indent=1)
    write_atomically(path, text.encode())
    forget_costs()


def _parsed(text: str, key: dict[str, str]) -> Costs:
    content = json.loads(text)
    if {name: content[name] for name in key} != key:
        raise ValueError("it is of another machine or version")
    grids = {
        str(name): tuple(
            Grid(
                tuple(map(float, grid["weights"])),
                tuple(map(float, grid["samples"])),
                tuple(tuple(map(float, row)) for row in grid["ratios"]),
            )
            for grid in some
        )
        for name, some in content["grids"].items()
    }
    measured = str(content["measured"])
    if datetime.fromisoformat(measured).tzinfo is None:
        raise ValueError(f"it has no time zone: {measured}")
    return Costs(measured, grids)


def _key(isa: str) -> dict[str, str]:
    try:
        own = metadata.version("vq-plugin")
    except metadata.PackageNotFoundError:  # a clone that is not installed
        own = "unknown"
    return {"cpu": processor(), "isa": isa, "torch": torch.__version__, "vq_plugin": own}


@cache
def processor() -> str:
    """The model of this machine's processor."""
    import platform

    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")
