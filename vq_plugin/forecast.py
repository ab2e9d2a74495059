"""What a fit of a weight is expected to come to: from a sample, or by what Gaussian weights do."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.parallel import worker_pool
from vq_plugin.rounding import stored_scales
from vq_plugin.schemes import Geometry, Scheme
from vq_plugin.slot_fit import fit_named

# Weights of a sample.
_SAMPLE = 1 << 15
# Of rows, in the entropy coder.
_CLASSES = 6

# Squared errors of the best quantizers of 0, 1, ... bits of a Gaussian number (Max 1960,
# "Quantizing for minimum distortion").
_SCALAR = (1.0, 0.3634, 0.1175, 0.03454, 0.009497, 0.002499, 0.000642, 0.000163, 0.0000413)
# Of centers in float16, over the squared size: a step is 2 ** -10 to 2 ** -11 of a number.
_ROUNDED = 2**-20 / 24
# Weights with fewer zeros than this have hardly more short codes than others.
_SPARSE = 0.2
# How fast what is known of one candidate says less of others: in factors of e of the error.
_REACH = 1.5
# What is known of other layers counts like so much of a candidate of the same layer.
_POOLED = 0.3
# Errors of a class differ by less than a factor of e.
_CLASSES_OF_ERROR = 2
# What is known of candidates of other kinds counts like so much.
_OTHER_KIND = 0.03


class Expected(NamedTuple):
    """Bytes of a coded weight, and the squared error of its rows by what each counts."""

    nbytes: float
    error: float


@dataclass(frozen=True)
class Sample:
    """Some rows of a weight that stand for all.

    Attributes:
        rows: Float32 ``(n, length)``.
        counts: What a squared error of each counts, float64 ``(n,)``.
    """

    rows: Tensor
    counts: Tensor

    @classmethod
    def of(cls, weight: Tensor, counts: Tensor) -> Sample:
        """Rows drawn from a weight, ``(out, ...)``; ``counts``, float64 ``(out,)``, of all."""
        rows = weight.detach().cpu().float().flatten(1)
        generator = torch.Generator().manual_seed(0)
        number = max(1, min(len(rows), _SAMPLE // rows.shape[1]))
        some = torch.randperm(len(rows), generator=generator)[:number].sort().values
        return cls(rows[some], counts[some] * (len(rows) / number))

    @property
    def size(self) -> float:
        """The error that is as large as the weight."""
        return float(self.counts @ self.rows.double().square().sum(1))

    def expected(self, name: str, scheme: Scheme, shape: tuple[int, ...]) -> Expected:
        """Of the weight of layer ``name`` and of this shape; the sample is fitted."""
        moments = Moments(torch.ones(()), outputs=self.counts)
        small = fit_named(name, self.rows, scheme, moments=moments)
        geometry = scheme.geometry(shape).with_centers(small.k)
        # On one thread: the work of two, in small parts, waits for the second.
        with worker_pool():
            bits = sum(map(_bits, small.codes)) / len(small.codes)
        codes = geometry.stages * geometry.rows * geometry.subspaces
        errors = (small.decode().double() - self.rows.double()).square().sum(1)
        tables = geometry.table_bytes
        if small.scale is not None:
            scale = small.scale.repeat(-(-geometry.rows // len(small.scale)))[: geometry.rows]
            tables += stored_scales(scale).nbytes - scale.nbytes
        return Expected(tables + codes * bits / 8, float(self.counts @ errors))


def _bits(codes: Tensor) -> float:
    """Of a code, about: rows of like spread have tables of their own (:mod:`vq_plugin.coding`)."""
    common = codes.flatten().mode().values
    order = (codes != common).sum(1).argsort(stable=True)
    total = 0.0
    for some in order.chunk(_CLASSES):
        share = torch.bincount(codes[some].flatten().long()).double() / codes[some].numel()
        total += float(torch.special.entr(share).sum()) / math.log(2) * len(some)
    return total / len(codes)


def expected_error(geometry: Geometry) -> float:
    """The squared error, over the squared size, that a weight of Gaussian numbers is left with.

    Between the bound that sub-vectors of infinite length reach and what scalar quantizers of as
    many bits do, less what the centers take of the few sub-vectors that they are trained on.

    Example:
        >>> import vq_plugin as vq
        >>> schemes = vq.KM(k=4), vq.PQ(k=16, dim=4, codebooks="tensor"), vq.KM(k=256)
        >>> [round(expected_error(s.geometry((512, 512))), 5) for s in schemes]
        [0.11749, 0.30124, 4e-05]
    """
    k = max(1, min(geometry.k, geometry.sub_vectors))
    bits = geometry.stages * math.log2(k) / geometry.dim
    whole = min(int(bits), len(_SCALAR) - 2)
    part = bits - whole
    if whole == 0:
        scalar = 1 - part * (1 - _SCALAR[1])
    else:
        scalar = _SCALAR[whole] * (_SCALAR[whole + 1] / _SCALAR[whole]) ** part
    free = max(1 - k / geometry.sub_vectors, 1e-3)
    share = geometry.dim**-0.5
    # Centers find the gaps between few sub-vectors, which are widest on a line: as fits of 64 to
    # 1024 of them have it, within a factor of 1.5.
    trained = free ** (1.75 + 2.2 / geometry.dim - 0.9 * k / geometry.sub_vectors)
    error: float = 4 ** (-bits * (1 - share)) * scalar**share * trained
    return error + _ROUNDED


def is_sparse(weight: Tensor) -> bool:
    """Whether a weight has so many zeros that they matter to :func:`expected_nbytes`."""
    return float((weight == 0).float().mean()) >= _SPARSE


def expected_nbytes(geometry: Geometry, weight: Tensor) -> float:
    """Bytes of a coded sparse weight at most: sub-vectors of zeros take few.

    Example:
        >>> import vq_plugin as vq
        >>> geometry, weight = vq.KM(k=5).geometry((64, 64)), torch.ones(64, 64)
        >>> weight[:, 4:] = 0
        >>> geometry.nbytes, round(expected_nbytes(geometry, weight))
        (1546, 257)
    """
    zeros = float((_pieces(geometry, weight) == 0).all(-1).float().mean())
    codes = geometry.stages * geometry.rows * geometry.subspaces
    share = torch.tensor([zeros, 1 - zeros], dtype=torch.float64)
    bits = float(torch.special.entr(share).sum()) / math.log(2) + (1 - zeros) * math.log2(
        geometry.k
    )
    return min(geometry.nbytes, geometry.table_bytes + codes * bits / 8)


def _pieces(geometry: Geometry, weight: Tensor) -> Tensor:
    """The sub-vectors of a weight, ``(rows, subspaces, dim)``."""
    matrix = geometry.matrix(weight.detach().cpu())
    matrix = torch.nn.functional.pad(matrix, (0, -matrix.shape[1] % geometry.dim))
    return matrix.reshape(len(matrix), -1, geometry.dim)


class Guess(NamedTuple):
    """Something of a candidate before its fit.

    Attributes:
        kind: Candidates of one kind are off alike.
        error: Its :func:`expected_error`; those with errors near to each other are off alike.
        value: What is guessed.
    """

    kind: Hashable
    error: float
    value: float


def forecast(
    guesses: Sequence[Sequence[Guess]], known: Sequence[Mapping[int, float]]
) -> list[list[float]]:
    """Values of all candidates of all layers, from guesses and those of some that are known.

    By how much guesses are off is a kernel regression on the logarithm of the ratio: near are the
    candidates of a layer of the same kind and about the same error, and for a little those of other
    layers.
    """
    off = [
        [
            (guess, math.log(max(value, 1e-300) / guess.value))
            for guess, value in ((layer[choice], value) for choice, value in found.items())
            if guess.value > 0
        ]
        for layer, found in zip(guesses, known, strict=True)
    ]
    pooled = _Pooled([pair for layer in off for pair in layer])
    values = []
    for layer, found, own in zip(guesses, known, off, strict=True):
        row = []
        for choice, guess in enumerate(layer):
            if choice in found or guess.value <= 0:
                row.append(found.get(choice, guess.value))
                continue
            total, weight = _near(guess, own)
            total, weight = total + _POOLED * pooled(guess), weight + _POOLED
            row.append(guess.value * math.exp(total / weight))
        values.append(row)
    return values


class _Pooled:
    """What is known of all layers, once for all guesses of a kind and about one error."""

    def __init__(self, known: Sequence[tuple[Guess, float]]) -> None:
        self._found: dict[tuple[Hashable, int], float] = {}
        self._known: dict[tuple[Hashable, int], list[tuple[Guess, float]]] = {}
        for guess, ratio in known:
            self._known.setdefault(self._class(guess), []).append((guess, ratio))

    def __call__(self, guess: Guess) -> float:
        """The logarithm of what others of its like are off by."""
        name = self._class(guess)
        if name not in self._found:
            means = [
                (pairs[0][0], math.fsum(ratio for _, ratio in pairs) / len(pairs))
                for pairs in self._known.values()
            ]
            total, weight = _near(guess, means)
            self._found[name] = total / weight if weight > 0 else 0.0
        return self._found[name]

    @staticmethod
    def _class(guess: Guess) -> tuple[Hashable, int]:
        return guess.kind, round(_CLASSES_OF_ERROR * math.log(max(guess.error, 1e-300)))


def _near(guess: Guess, known: Sequence[tuple[Guess, float]]) -> tuple[float, float]:
    """The weighted sum of what is known, and the sum of the weights."""
    total = weight = 0.0
    for other, ratio in known:
        errors = max(guess.error, 1e-300) / max(other.error, 1e-300)
        near = math.exp(-abs(math.log(errors)) / _REACH)
        near *= 1.0 if other.kind == guess.kind else _OTHER_KIND
        total, weight = total + near * ratio, weight + near
    return total, weight
