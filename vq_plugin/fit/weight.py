"""From a float weight and a scheme to a ``CodebookWeight``."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from vq_plugin.arguments import brief, check_whole
from vq_plugin.codebook import CodebookWeight
from vq_plugin.default_device import cpu_by_default
from vq_plugin.fit.found import found
from vq_plugin.fit.output.calibrated import calibrate
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.output.objective import Objective, Quantized
from vq_plugin.fit.parallel import worker_pool
from vq_plugin.fit.schemes import LEAST_IMPORTANCE
from vq_plugin.fit.used import used_centers
from vq_plugin.rounding import round_centers, round_scales
from vq_plugin.schemes import Geometry, Scheme, torch_code_dtype

# Squares of weights beyond these sizes leave float32.
_LARGEST, _SMALLEST = 1e15, 1e-15


@cpu_by_default()
def quantize_weight(
    weight: Tensor,
    scheme: Scheme,
    importance: Tensor | None = None,
    seed: int = 0,
    *,
    moments: Moments | None = None,
) -> CodebookWeight:
    """Compresses one weight.

    The fit runs in float32 on the CPU and gives the same bytes for the same weight, scheme,
    statistics and seed, whatever the number of threads. ``k`` above the number of distinct
    (sub-vectors of) weights is reduced to it, and so are centers that a calibrated fit leaves to
    none of them: see ``CodebookWeight.k``.

    Args:
        weight: Linear ``(out, in)``, ConvNd ``(out, in/groups, *kernel)`` or Embedding
            ``(num, dim)`` weight; any float dtype.
        scheme: What to do.
        importance: Weight of every element's squared error, of a shape that broadcasts to the
            weight's; not negative. ``None`` counts all alike. ``Binary`` takes the weighted mean.
        seed: Seed of the random starts.
        moments: Moments of the inputs of the weight's layer, in the place of ``importance``. The
            fit then lowers the error of the layer's output, see
            :func:`vq_plugin.fit.output.calibrated.calibrate`, and the result says what the layer's
            bias takes up. ``Binary``, second moments that are not known, and sub-vectors that reach
            from one group of a convolution into the next go by ``moments.importance`` alone.

    Returns:
        The compressed weight, on the device of ``weight``.

    Raises:
        TypeError: If the weight or ``importance`` is no tensor, the scheme none, or the seed no
            whole number.
        ValueError: If the weight is empty, 1-D, on the meta device, not of a float dtype, holds
            NaN or infinite values, or does not fit the scheme's ``codebook_dtype``; if
            ``importance`` has another shape, is negative, not finite or zero everywhere, or is
            given beside ``moments``.

    Example:
        >>> import torch
        >>> from vq_plugin import PQ
        >>> weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
        >>> small = quantize_weight(weight, PQ(k=16, dim=4))
        >>> small.codes.shape, small.codebooks.shape, small.nbytes
        (torch.Size([1, 64, 8]), torch.Size([1, 1, 8, 16, 4]), 1280)
        >>> small.decode().shape
        torch.Size([64, 32])
    """
    if not isinstance(scheme, Scheme):
        raise TypeError(f"expected a scheme such as vq.KM() or vq.PQ(), got {brief(scheme)}")
    seed = check_whole("seed", seed)
    check_weight(weight)
    if moments is not None:
        if importance is not None:
            raise ValueError("give importance or moments, not both: moments hold an importance")
        importance = moments.importance
        if moments.outputs is not None:
            mass = moments.output_mass(weight.shape[0])
            importance = importance.cpu() * mass.reshape(-1, *[1] * (weight.dim() - 1))
    # Workers are outside the caller's inference mode, and could not write to its tensors.
    with torch.inference_mode(False), worker_pool():
        return _quantize(weight, scheme, importance, moments, seed)


def _quantize(
    weight: Tensor, scheme: Scheme, importance: Tensor | None, moments: Moments | None, seed: int
) -> CodebookWeight:
    geometry = scheme.geometry(tuple(weight.shape))
    matrix = geometry.matrix(weight.detach().cpu().float())
    weights = None if importance is None else importance_view(importance, geometry)
    row_scale = None
    if geometry.scaled:
        outputs = moments.outputs if moments is not None and geometry.axis != "out" else None
        row_scale, matrix, weights = _normalize_rows(matrix, weights, scheme, outputs)
    check_range(matrix)
    pieces = None if weights is None else geometry.pieces(weights)
    codes, centers = found(geometry.pieces(matrix), scheme, pieces, seed, geometry)
    # As large as the weight: the fit by moments has its own.
    del pieces, weights
    ends = torch.aminmax(codes.byte() if codes.dtype is torch.bool else codes)
    least, most = map(int, ends)
    if least < 0 or most >= centers.shape[3]:
        raise ValueError(
            f"the fit of {scheme} gave codes from {least} to {most} into {centers.shape[3]} centers"
        )
    quantized = Quantized(codes, round_centers(centers, scheme.codebook_dtype))
    check_codebooks(quantized.codebooks, matrix, scheme)
    if moments is not None and scheme.calibrates:
        objective = Objective.build(matrix, row_scale, scheme, geometry, moments)
        if objective is not None:
            quantized = calibrate(objective, quantized, scheme.codebook_dtype)
            quantized = used_centers(quantized, geometry.group)
    small = CodebookWeight(
        codes=quantized.codes.to(torch_code_dtype(quantized.codebooks.shape[3])).to(weight.device),
        codebooks=quantized.codebooks.to(weight.device),
        scale=None if row_scale is None else row_scale.to(weight.device),
        scheme=scheme,
        shape=tuple(weight.shape),
        dtype=weight.dtype,
    )
    if moments is None:
        return small
    return replace(small, bias_shift=moments.bias_shift(small.decode() - weight.detach()))


def _normalize_rows(
    matrix: Tensor, importance: Tensor | None, scheme: Scheme, outputs: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Row scales, the rows divided by them, and the importance that keeps the error the same.

    The scale of a dead row is 0: one of zeros, or of values below what ``codebook_dtype`` holds.
    """
    # Relative to the largest of the row first: squares of extreme weights leave float32.
    largest = matrix.abs().amax(1)
    largest = torch.where(largest > 0, largest, 1.0)
    if outputs is not None:
        outputs = outputs.cpu().double() * largest.double().square()
    scale = largest * scheme.row_size_for(matrix / largest.unsqueeze(1), outputs)
    if scheme.rounds_scales:
        scale = round_scales(scale)
    scale = scale.to(scheme.torch_codebook_dtype)
    if not bool(scale.isfinite().all()):
        raise ValueError(
            f"a row scale does not fit codebook_dtype={scheme.codebook_dtype!r}; use 'float32'"
        )
    alive = matrix.masked_fill((scale == 0).unsqueeze(1), 0)
    return scale, *divide_rows(alive, importance, scale)


def divide_rows(matrix: Tensor, importance: Tensor | None, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Rows over their scales, and the importance that keeps the error the same.

    Dead rows, whose scale is 0, stay as they are and count next to nothing.
    """
    wide = scale.float().unsqueeze(1)
    largest = wide.max().clamp_min(torch.finfo(torch.float32).tiny)
    square = (wide / largest).square().clamp_min(LEAST_IMPORTANCE)
    weighted = square.expand_as(matrix) if importance is None else importance * square
    return matrix / torch.where(wide == 0, 1.0, wide), weighted


def importance_view(importance: Tensor, geometry: Geometry) -> Tensor | None:
    """The importance in the 2-D view, at most 1; ``None`` where it is the same everywhere."""
    _check_tensor("importance", importance)
    try:
        full = importance.detach().cpu().float().broadcast_to(geometry.shape)
    except RuntimeError:
        raise ValueError(
            f"importance of shape {tuple(importance.shape)} does not broadcast to the weight's "
            f"{geometry.shape}"
        ) from None
    largest = full.max()
    if not bool(full.isfinite().all()) or bool((full < 0).any()) or not bool(largest > 0):
        raise ValueError("importance must be finite, not negative, and above 0 somewhere")
    if bool(full.min() == largest):
        return None
    return geometry.matrix((full / largest).clamp_min_(LEAST_IMPORTANCE))


def _check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        hint = "; make one of it with torch.from_numpy" * isinstance(value, np.ndarray)
        raise TypeError(f"{name} is a {type(value).__name__}, no tensor{hint}")


def check_weight(weight: Tensor) -> None:
    """Raises ``ValueError`` for a weight that no scheme can compress; see `quantize_weight`."""
    _check_tensor("the weight", weight)
    if is_traceable_wrapper_subclass(weight):
        raise ValueError(
            f"the weight is a {type(weight).__name__} of {type(weight).__module__.split('.')[0]}: "
            "compress the float model, before it is quantized or distributed; or leave it with None"
        )
    if weight.layout is not torch.strided:
        raise ValueError(f"the weight is of {weight.layout}: make it dense, with .to_dense()")
    if not weight.is_floating_point():
        raise ValueError(f"the weight must be of a float dtype, got {weight.dtype}")
    if weight.dtype.itemsize == 1:
        raise ValueError(
            f"the weight is of {weight.dtype}, quantized already: compress the model that it was "
            "made from, or convert it with .to(torch.bfloat16)"
        )
    if weight.dim() < 2:
        raise ValueError(f"the weight must have 2 dimensions or more, got {tuple(weight.shape)}")
    if weight.numel() == 0:
        raise ValueError(f"the weight of shape {tuple(weight.shape)} is empty: nothing to compress")
    if weight.is_meta:
        raise ValueError("the weight is on the meta device: load its values first")
    if not all(math.isfinite(end.item()) for end in torch.aminmax(weight)):
        finite = weight.isfinite()
        bad = tuple(torch.nonzero(~finite)[0].tolist())
        count = int((~finite).sum())
        raise ValueError(
            f"the weight holds {count} NaN or infinite values, the first at {bad}: "
            f"{weight[bad].item()}; repair the model before compressing it"
        )


def check_range(matrix: Tensor) -> None:
    """Raises ``ValueError`` for weights whose squares leave float32."""
    largest = _largest(matrix)
    if largest > _LARGEST or 0 < largest < _SMALLEST:
        raise ValueError(
            f"the largest weight is {largest:.3g}, outside {_SMALLEST:g} to {_LARGEST:g}; "
            "use scale='row' or rescale the layer"
        )


def check_codebooks(codebooks: Tensor, matrix: Tensor, scheme: Scheme) -> None:
    """Raises ``ValueError`` for centers of ``matrix`` that ``codebook_dtype`` cannot hold."""
    name = scheme.codebook_dtype
    largest = _largest(matrix)
    if not math.isfinite(_largest(codebooks)):
        raise ValueError(
            f"a center does not fit codebook_dtype={name!r} (weights up to "
            f"{largest:.3g}); use codebook_dtype='float32' or scale='row'"
        )
    if 0 < largest < torch.finfo(codebooks.dtype).tiny:
        raise ValueError(
            f"the weights, at most {largest:.3g}, lose their precision in codebook_dtype={name!r}; "
            "use codebook_dtype='float32' or scale='row'"
        )


def _largest(matrix: Tensor) -> float:
    # abs() would copy the weight.
    low, high = torch.aminmax(matrix)
    return max(-float(low), float(high))
