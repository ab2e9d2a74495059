"""From a float weight and a scheme to a ``CodebookWeight``."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from vq_plugin.codebook import CodebookWeight, code_dtype, matrix_view
from vq_plugin.fit import scalar, vector
from vq_plugin.fit.batch import Batch
from vq_plugin.fit.kernels import best_kernels
from vq_plugin.fit.output.calibrated import calibrate
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.output.objective import Fitted, Objective
from vq_plugin.fit.parallel import worker_pool
from vq_plugin.fit.residual import fit_residual
from vq_plugin.rounding import round_centers
from vq_plugin.schemes import KM, PQ, RQ, Binary, Scheme

# Squares of weights beyond these sizes leave float32.
_LARGEST, _SMALLEST = 1e15, 1e-15
# An element without importance still has to go somewhere: to the nearest center.
_LEAST_IMPORTANCE = 1e-8


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
    (sub-vectors of) weights is reduced to it: see ``CodebookWeight.k``.

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
        ValueError: If the weight is empty, 1-D, on the meta device, not of a float dtype, holds
            NaN or infinite values, or does not fit the scheme's ``codebook_dtype``; if
            ``importance`` has another shape, is negative, not finite or zero everywhere, or is
            given beside ``moments``.

    Example:
        >>> import torch
        >>> weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
        >>> small = quantize_weight(weight, PQ(k=16, dim=4))
        >>> small.codes.shape, small.codebooks.shape, small.nbytes
        (torch.Size([1, 64, 8]), torch.Size([1, 1, 8, 16, 4]), 1280)
        >>> small.decode().shape
        torch.Size([64, 32])
    """
    if not isinstance(scheme, Scheme):
        raise TypeError(f"expected KM, PQ, RQ or Binary, got {scheme!r}")
    check_weight(weight)
    if moments is not None:
        if importance is not None:
            raise ValueError("give importance or moments, not both: moments hold an importance")
        importance = moments.importance
    # Workers are outside the caller's inference mode, and could not write to its tensors.
    with torch.inference_mode(False), worker_pool():
        return _quantize(weight, scheme, importance, moments, seed)


def _quantize(
    weight: Tensor,
    scheme: Scheme,
    importance: Tensor | None,
    moments: Moments | None,
    seed: int,
) -> CodebookWeight:
    matrix = matrix_view(weight.detach().cpu().float(), scheme.view_axis)
    weights = None if importance is None else importance_view(importance, weight, scheme)
    row_scale: Tensor | None = None
    if scheme.scale == "row":
        row_scale, matrix, weights = _normalize_rows(matrix, weights, scheme)
    check_range(matrix)
    fitted = _fit(matrix, weights, scheme, seed)
    check_codebooks(fitted.codebooks, matrix, scheme)
    if moments is not None and not isinstance(scheme, Binary):
        dim = fitted.codebooks.shape[4]
        objective = Objective.build(matrix, row_scale, scheme, moments, dim)
        if objective is not None:
            fitted = calibrate(objective, fitted, scheme.codebook_dtype)
    small = CodebookWeight(
        codes=fitted.codes.to(code_dtype(fitted.codebooks.shape[3])).to(weight.device),
        codebooks=fitted.codebooks.to(weight.device),
        scale=None if row_scale is None else row_scale.to(weight.device),
        scheme=scheme,
        shape=tuple(weight.shape),
        dtype=weight.dtype,
    )
    if moments is None:
        return small
    return replace(small, bias_shift=moments.bias_shift(small.decode() - weight.detach()))


def _fit(matrix: Tensor, importance: Tensor | None, scheme: Scheme, seed: int) -> Fitted:
    match scheme:
        case Binary():
            return _fit_binary(matrix, importance, scheme)
        case KM():
            return _fit_km(matrix, importance, scheme)
        case PQ() | RQ():
            return _fit_sub_vectors(matrix, importance, scheme, seed)
    raise TypeError(f"expected KM, PQ, RQ or Binary, got {scheme!r}")


def _fit_binary(matrix: Tensor, importance: Tensor | None, scheme: Binary) -> Fitted:
    size = matrix.abs()
    mean = size.mean() if importance is None else (size * importance).sum() / importance.sum()
    codebooks = torch.stack([-mean, mean]).reshape(1, 1, 1, 2, 1)
    return Fitted((matrix >= 0).unsqueeze(0), round_centers(codebooks, scheme.codebook_dtype))


def _fit_km(matrix: Tensor, importance: Tensor | None, scheme: KM) -> Fitted:
    rows = scheme.group or len(matrix)
    parts = [part.flatten().contiguous() for part in torch.split(matrix, rows)]
    masses: list[Tensor | None] = [None] * len(parts)
    if importance is not None:
        masses = [mass.flatten() for mass in torch.split(importance, rows)]
    exact = [
        scalar.fit_scalar(part, scheme.k, importance=mass, keep_zeros=scheme.keep_zeros)
        for part, mass in zip(parts, masses, strict=True)
    ]
    centers = [
        round_centers(found.unsqueeze(1), scheme.codebook_dtype).squeeze(1) for found in exact
    ]
    codes = [scalar.assign_scalar(part, found) for part, found in zip(parts, centers, strict=True)]
    k = max(map(len, centers))
    padded = [
        functional.pad(found, (0, k - len(found)), value=float(found[-1])) for found in centers
    ]
    return Fitted(
        torch.cat(codes).reshape(1, *matrix.shape), torch.stack(padded).reshape(1, -1, 1, k, 1)
    )


def _fit_sub_vectors(
    matrix: Tensor, importance: Tensor | None, scheme: PQ | RQ, seed: int
) -> Fitted:
    rows, length = matrix.shape
    dim = min(scheme.dim or length, length)
    shared = scheme.codebooks == "tensor"
    batch = sub_vectors(matrix, importance, dim=dim, shared=shared)
    dtype = scheme.codebook_dtype
    if isinstance(scheme, RQ):
        centers, codes = fit_residual(
            batch, scheme.k, scheme.stages, seed=seed, codebook_dtype=dtype
        )
    else:
        centers = [round_centers(vector.fit_vector(batch, scheme.k, seed)[0], dtype)]
        codes = [best_kernels().assign(batch, centers[0].float())]
    k = max(stage.shape[1] for stage in centers)
    codebooks = torch.stack([vector.repeat_last(stage, k) for stage in centers]).unsqueeze(1)
    grid = torch.stack(codes)
    if shared:
        return Fitted(grid.reshape(len(codes), rows, -1), codebooks)
    return Fitted(grid.transpose(1, 2).contiguous(), codebooks)


def sub_vectors(matrix: Tensor, importance: Tensor | None, *, dim: int, shared: bool) -> Batch:
    """The rows of a matrix cut into sub-vectors, one book per subspace or one for all.

    Args:
        matrix: Float32, ``(rows, length)``; padded where ``dim`` does not divide the length.
        importance: Float32, ``(rows, length)``, or ``None``.
        dim: Length of a sub-vector.
        shared: Whether all subspaces share one book.

    Returns:
        Points, ``(subspaces, rows, dim)``, or ``(1, rows · subspaces, dim)`` where shared.
    """
    rows, length = matrix.shape
    padding = -length % dim
    if padding:
        if shared and importance is None:
            # Padding must not pull shared centers towards 0.
            importance = torch.ones_like(matrix)
        matrix = functional.pad(matrix, (0, padding))
        if importance is not None:
            importance = functional.pad(importance, (0, padding), value=_LEAST_IMPORTANCE)

    def points(values: Tensor) -> Tensor:
        if shared:
            return values.reshape(1, -1, dim)
        return values.reshape(rows, -1, dim).transpose(0, 1)

    return Batch(points(matrix), None if importance is None else points(importance))


def _normalize_rows(
    matrix: Tensor, importance: Tensor | None, scheme: Scheme
) -> tuple[Tensor, Tensor, Tensor]:
    """Row scales, the rows divided by them, and the importance that keeps the error the same."""
    binary = isinstance(scheme, Binary)
    # Relative to the largest of the row first: squares of extreme weights leave float32.
    largest = matrix.abs().amax(1)
    largest = torch.where(largest > 0, largest, 1.0)
    part = matrix / largest.unsqueeze(1)
    scale = largest * (part.abs().mean(1) if binary else part.square().mean(1).sqrt())
    scale = torch.where(scale > 0, scale, 1.0).to(scheme.torch_codebook_dtype)
    if not bool(((scale > 0) & scale.isfinite()).all()):
        raise ValueError(
            f"a row scale does not fit codebook_dtype={scheme.codebook_dtype!r}; use 'float32'"
        )
    return scale, *divide_rows(matrix, importance, scale)


def divide_rows(matrix: Tensor, importance: Tensor | None, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Rows over their scales, and the importance that keeps the error the same."""
    wide = scale.float().unsqueeze(1)
    square = (wide / wide.max()).square().clamp_min(_LEAST_IMPORTANCE)
    weighted = square.expand_as(matrix) if importance is None else importance * square
    return matrix / wide, weighted


def importance_view(importance: Tensor, weight: Tensor, scheme: Scheme) -> Tensor | None:
    """The importance in the 2-D view, at most 1; ``None`` where it is the same everywhere."""
    try:
        full = importance.detach().cpu().float().broadcast_to(weight.shape)
    except RuntimeError:
        raise ValueError(
            f"importance of shape {tuple(importance.shape)} does not broadcast to the weight's "
            f"{tuple(weight.shape)}"
        ) from None
    largest = full.max()
    if not bool(full.isfinite().all()) or bool((full < 0).any()) or not bool(largest > 0):
        raise ValueError("importance must be finite, not negative, and above 0 somewhere")
    if bool(full.min() == largest):
        return None
    return matrix_view((full / largest).clamp_min_(_LEAST_IMPORTANCE), scheme.view_axis)


def check_weight(weight: Tensor) -> None:
    """Raises ``ValueError`` for a weight that no scheme can compress; see `quantize_weight`."""
    if not weight.is_floating_point():
        raise ValueError(f"the weight must be of a float dtype, got {weight.dtype}")
    if weight.dim() < 2:
        raise ValueError(f"the weight must have 2 dimensions or more, got {tuple(weight.shape)}")
    if weight.numel() == 0:
        raise ValueError(f"the weight of shape {tuple(weight.shape)} is empty: nothing to compress")
    if weight.is_meta:
        raise ValueError("the weight is on the meta device: load its values first")
    if not bool(torch.stack(torch.aminmax(weight)).isfinite().all()):
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
    if not bool(codebooks.isfinite().all()):
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
