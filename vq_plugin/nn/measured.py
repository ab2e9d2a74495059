"""What kernels cost on this machine: codebook layers by their codes and as float layers."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import torch
from torch import Tensor, nn

from vq_plugin.codebook import CodebookWeight
from vq_plugin.fit.weight import quantize_weight
from vq_plugin.nn.conv import CodebookConv2d
from vq_plugin.nn.layer import CodebookLayer
from vq_plugin.nn.linear import CodebookLinear
from vq_plugin.nn.parameter import CodedParameter, hold_coded
from vq_plugin.nn.recurrent import BESIDE, run_by_codes, shape_of
from vq_plugin.nn.view import View
from vq_plugin.ops import PRECISIONS, Precision
from vq_plugin.ops.costs import (
    STEPS,
    Costs,
    Estimates,
    Grid,
    convolution_estimates,
    linear_estimates,
)
from vq_plugin.progress import progress
from vq_plugin.schemes import Scheme, parse_scheme

# More multiplications of a float layer, or more picoseconds by a kernel's estimate, take too long:
# there, the ratio is that of fewer samples.
_PRODUCTS, _LONG = 3.1e8, 5e10
_PAIRS, _MOST_PAIRS, _ENOUGH = 5, 25, 2e-3  # turns, and seconds after which they suffice

_EXACT: tuple[Precision, ...] = ("exact",)
_ALL: tuple[Precision, ...] = ("exact", "high", "fast")
_Schemes = tuple[tuple[str, tuple[Precision, ...]], ...]
_OF_FOUR: _Schemes = (
    ("pq(k=16,dim=4)", _ALL),
    ("pq(k=16,dim=4,axis=out)", _EXACT),
    ("pq(k=256,dim=4,codebooks=tensor)", _EXACT),
    ("pq(k=256,dim=4,codebooks=tensor,axis=out)", _EXACT),
    ("km(k=16)", ("exact", "fast")),
    ("km(k=256)", _EXACT),
)
_OF_EIGHT: _Schemes = (
    ("pq(k=16,dim=8)", _ALL),
    ("pq(k=16,dim=8,axis=out)", _EXACT),
    ("pq(k=256,dim=8)", _EXACT),
    ("pq(k=256,dim=8,axis=out)", _EXACT),
)


@dataclass(frozen=True)
class _Kind:
    """Square layers of several sizes, and inputs of them."""

    make: Callable[[int], nn.Module]
    layer: type[CodebookLayer]
    sizes: tuple[int, ...]
    samples: tuple[int, ...]
    schemes: _Schemes

    def input(self, size: int, samples: int) -> Tensor:
        if self.layer is CodebookLinear:
            return torch.randn(samples, size)
        side = int(samples**0.5)
        return torch.randn(1, size, side, side)


_PLACES = (49, 196, 784, 3136)
_KINDS = (
    _Kind(lambda n: nn.Linear(n, n), CodebookLinear, (128, 512, 1536, 4096), (1, 2, 4, 8, 32, 128),
          (*_OF_FOUR, *_OF_EIGHT)),
    _Kind(lambda n: nn.Conv2d(n, n, 1), CodebookConv2d, (64, 256, 1024), _PLACES, _OF_FOUR),
    _Kind(lambda n: nn.Conv2d(n, n, 3, padding=1), CodebookConv2d, (32, 128, 512), _PLACES,
          (("pq(k=16,dim=4,layout=channels)", _ALL),)),
)  # fmt: skip


def measure_costs(threads: Sequence[int]) -> Costs:
    """Measures the kernels of the instruction set in use, in some twenty seconds.

    On one thread the clock is the processor time of the thread, so that other programs disturb
    little; on more it is that of the wall.

    Args:
        threads: Numbers of threads to measure with.
    """
    cases = [(kind, *some, count) for count in threads for kind in _KINDS for some in kind.schemes]
    grids: dict[str, tuple[Grid, ...]] = {}
    with progress(cases, desc="measure", unit="kernel", leave=False) as bar, torch.no_grad():
        for kind, scheme, precisions, count in bar:
            with _threads(count):
                for name, grid in _grids(kind, scheme, precisions, count):
                    grids[name] = (*grids.get(name, ()), grid)
        for count in threads:
            with _threads(count):
                grids[STEPS] = (*grids.get(STEPS, ()), Grid((1,), (1,), ((_steps(count),),)))
    return Costs(datetime.now(UTC).isoformat(timespec="seconds"), grids)


def _grids(
    kind: _Kind, scheme: str, precisions: Sequence[Precision], threads: int
) -> Iterator[tuple[str, Grid]]:
    rows: dict[str, dict[float, tuple[float, ...]]] = {}
    for size in kind.sizes:
        layer = _layer(kind.make(size), kind.layer, parse_scheme(scheme))
        for precision in precisions:
            layer.precision = precision
            expected = [_expected(layer, samples) for samples in kind.samples]
            ratios: list[float] = []
            for one in expected:
                if one.weights * one.samples > _PRODUCTS or one.codes > _LONG:
                    break
                ratio = _race(layer, kind.input(size, one.samples), threads)
                ratios.append(ratio * one.plain / one.codes)
            if ratios:
                ratios += ratios[-1:] * (len(expected) - len(ratios))
                rows.setdefault(one.kernel, {})[float(one.weights)] = tuple(ratios)
    for kernel, found in rows.items():
        yield kernel, Grid(tuple(found), tuple(map(float, kind.samples)), tuple(found.values()))


def _expected(layer: CodebookLayer, samples: int) -> Estimates:
    precision = PRECISIONS[layer.precision]
    if isinstance(layer, CodebookConv2d) and not layer._pointwise:
        return convolution_estimates(1, samples, samples, layer._products, precision)
    found = linear_estimates(samples, layer._kernel_shape, precision)
    assert found is not None
    return found


def _layer(plain: nn.Module, layer: type[CodebookLayer], scheme: Scheme) -> CodebookLayer:
    """A layer of random codes: their values cost nothing."""
    assert isinstance(plain.weight, Tensor)
    shape = tuple(plain.weight.shape)
    geometry = scheme.geometry(shape).with_centers(min(scheme.k, shape[0]))
    random = torch.Generator().manual_seed(0)
    small = CodebookWeight(
        codes=torch.randint(geometry.k, geometry.code_shape, generator=random, dtype=torch.uint8),
        codebooks=torch.randn(geometry.codebook_shape, generator=random).half(),
        scale=None,
        scheme=scheme,
        shape=shape,
        dtype=plain.weight.dtype,
    )
    return layer(plain, small).eval()


def _race(layer: CodebookLayer, x: Tensor, threads: int) -> float:
    """Time by its codes over that by its kept weight: the median of pairs of calls."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    ratios: list[float] = []
    until = time.perf_counter() + _ENOUGH
    while len(ratios) < _PAIRS or (len(ratios) < _MOST_PAIRS and time.perf_counter() < until):
        seconds = []
        for pays in (True, False):
            layer._choices = defaultdict(partial(bool, pays), {0: pays})
            # The first call finds the values of the other way in the cache.
            layer(x)
            start = clock()
            layer(x)
            seconds.append(clock() - start)
        ratios.append(seconds[0] / max(seconds[1], 1e-9))
    return statistics.median(ratios)


def _steps(threads: int) -> float:
    """How many times as long as shipped a recurrent step takes beside its product, of an LSTM."""
    width, steps = 16, 64
    plain = nn.LSTM(width, width).eval()
    small = deepcopy(plain)
    weight = quantize_weight(
        dict(plain.named_parameters())["weight_hh_l0"].detach(), parse_scheme("pq(k=16,dim=4)")
    )
    view = View.whole(weight.shape)
    coded = CodedParameter(weight, view, trains=False, padding=None, zero=False)
    hold_coded(small, "weight_hh_l0", coded)
    x, state = torch.randn(steps, 1, width), (torch.zeros(1, 1, width),) * 2
    product = linear_estimates(1, shape_of(coded), PRECISIONS["exact"])
    assert product is not None
    clock = time.thread_time if threads == 1 else time.perf_counter
    more: list[float] = []
    for _ in range(_MOST_PAIRS):
        start = clock()
        run_by_codes(small, {"weight_hh_l0": coded}, x, state)
        between = clock()
        plain(x)
        more.append(2 * between - start - clock())
    found = statistics.median(more) / steps * 1e12 - product.codes + product.plain
    return max(found, 1.0) / BESIDE[nn.LSTM]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
