"""The fits of the schemes that are shipped; :class:`vq_plugin.schemes.Fit` says what a fit is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vq_plugin.fit import scalar, vector
from vq_plugin.fit.batch import Batch
from vq_plugin.fit.kernels import best_kernels
from vq_plugin.fit.residual import fit_residual
from vq_plugin.rounding import round_centers
from vq_plugin.schemes import KM, PQ, RQ, Binary, Geometry, Signs, Uniform, torch_code_dtype

# An element without importance still has to go somewhere: to the nearest center.
LEAST_IMPORTANCE = 1e-8


def fit_binary(
    matrix: Tensor, scheme: Binary, importance: Tensor | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Signs, and the (weighted) mean absolute weight."""
    del scheme, seed
    size = matrix.abs()
    mean = size.mean() if importance is None else (size * importance).sum() / importance.sum()
    return (matrix >= 0).unsqueeze(0), torch.stack([-mean, mean]).reshape(1, 1, 1, 2, 1)


def fit_km(
    matrix: Tensor, scheme: KM, importance: Tensor | None, seed: int
) -> tuple[Tensor, Tensor]:
    """K-means of the single weights of every group of rows; it has no random start."""
    del seed
    rows = scheme.group or len(matrix)
    centers, codes = [], []
    for start in range(0, len(matrix), rows):
        values = matrix[start : start + rows].flatten().contiguous()
        mass = None if importance is None else importance[start : start + rows].flatten()
        exact = scalar.fit_scalar(
            values, scheme.k, importance=mass, keep_zeros=scheme.keep_zeros
        ).reshape(1, -1, 1)
        centers.append(round_centers(exact, scheme.codebook_dtype))
        codes.append(scalar.assign_scalar(values, centers[-1].flatten()))
    k = max(table.shape[1] for table in centers)
    codebooks = torch.stack([vector.repeat_last(table, k) for table in centers], 1).unsqueeze(2)
    return torch.cat(codes).reshape(1, *matrix.shape), codebooks


def fit_uniform(
    matrix: Tensor, scheme: Uniform, importance: Tensor | None, seed: int
) -> tuple[Tensor, Tensor]:
    """The nearest multiples of the step, each then moved to the mean of what is nearest to it."""
    del seed
    size = 1.0 if scheme.scale else float(matrix.double().square().mean().sqrt())
    most = (scheme.k - 1) // 2
    step = max(scheme.step * size, float(matrix.abs().max()) / scheme.reach) or 1.0
    numbers = (matrix / step).round_().clamp_(-most, most)
    first, last = (int(end) for end in torch.aminmax(numbers))
    codes = (numbers - first).to(torch_code_dtype(last - first + 1)).unsqueeze(0)
    points = matrix.reshape(1, -1, 1)
    batch = Batch(points, None if importance is None else importance.reshape(1, -1, 1))
    means, mass = best_kernels().means(batch, codes.reshape(1, -1), last - first + 1)
    centers = torch.arange(first, last + 1, dtype=torch.float32).reshape(1, -1, 1) * step
    return codes, torch.where(mass > 0, means.float(), centers)[None, None]


def fit_pq(
    matrix: Tensor, scheme: PQ, importance: Tensor | None, seed: int
) -> tuple[Tensor, Tensor]:
    """K-means of sub-vectors."""
    batch = _points(matrix, scheme, importance)
    centers = round_centers(vector.fit_vector(batch, scheme.k, seed)[0], scheme.codebook_dtype)
    codes = best_kernels().assign(batch, centers.float())
    return _by_row([centers], [codes], len(matrix))


def fit_rq(
    matrix: Tensor, scheme: RQ, importance: Tensor | None, seed: int
) -> tuple[Tensor, Tensor]:
    """K-means of what the stages before leave of sub-vectors."""
    batch = _points(matrix, scheme, importance)
    centers, codes = fit_residual(
        batch, scheme.k, scheme.stages, seed=seed, codebook_dtype=scheme.codebook_dtype
    )
    return _by_row(centers, codes, len(matrix))


def fit_signs(
    matrix: Tensor, scheme: Signs, importance: Tensor | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Signs as they are, and k-means of the (weighted) mean sizes of blocks.

    With size ``m`` the error of a block is ``Σ p·(|w| − m)²``: but for what no size changes, that
    of its mean, weighted by ``Σ p``.
    """
    del seed
    batch = sub_vectors(matrix, importance, scheme.geometry(tuple(matrix.shape)))
    points = batch.x[0]
    mass = torch.ones_like(points) if batch.importance is None else batch.importance[0]
    means = (points.abs() * mass).sum(1) / mass.sum(1)
    weights = None if batch.importance is None else mass.sum(1)
    sizes = scalar.fit_scalar(means, scheme.levels, importance=weights)
    sizes = round_centers(sizes.reshape(1, 1, 1, -1, 1), scheme.codebook_dtype).flatten()
    # A row may be shorter than a block.
    block = points.shape[1]
    bits = 1 << torch.arange(block)
    patterns = 1.0 - 2.0 * ((torch.arange(1 << block).unsqueeze(1) & bits) > 0)
    centers = (sizes.float().reshape(-1, 1, 1) * patterns).flatten(0, 1)
    codes = (scalar.assign_scalar(means, sizes).long() << block) + ((points < 0) * bits).sum(1)
    # Small weights do not have all patterns.
    used, codes = torch.unique(codes, return_inverse=True)
    return codes.reshape(1, len(matrix), -1), centers[used][None, None, None]


def _points(matrix: Tensor, scheme: PQ | RQ, importance: Tensor | None) -> Batch:
    shape = tuple(matrix.shape if scheme.axis == "in" else matrix.T.shape)
    return sub_vectors(matrix, importance, scheme.geometry(shape))


def _by_row(centers: list[Tensor], codes: list[Tensor], rows: int) -> tuple[Tensor, Tensor]:
    """Codes and codebooks of a weight from those of every stage, by book."""
    k = max(stage.shape[1] for stage in centers)
    codebooks = torch.stack([vector.repeat_last(stage, k) for stage in centers]).unsqueeze(1)
    return codes_by_row(torch.stack(codes), codes[0].numel() // rows), codebooks


def codes_by_row(by_book: Tensor, subspaces: int) -> Tensor:
    """Codes ``(stages, books, n)`` as ``(stages, rows, subspaces)``."""
    if by_book.shape[1] == 1:
        return by_book.reshape(len(by_book), -1, subspaces)
    return by_book.transpose(1, 2).contiguous()


def sub_vectors(matrix: Tensor, importance: Tensor | None, geometry: Geometry) -> Batch:
    """The rows of a matrix cut into sub-vectors; padded where ``dim`` does not divide them.

    One book per subspace, ``(subspaces, rows, dim)``, or one for all where these share it,
    ``(1, rows · subspaces, dim)``.
    """
    dim, shared = geometry.dim, geometry.shared
    rows, length = matrix.shape
    padding = -length % dim
    if padding:
        if shared and importance is None:
            # Padding must not pull shared centers towards 0.
            importance = torch.ones_like(matrix)
        matrix = functional.pad(matrix, (0, padding))
        if importance is not None:
            importance = functional.pad(importance, (0, padding), value=LEAST_IMPORTANCE)

    def points(values: Tensor) -> Tensor:
        if shared:
            return values.reshape(1, -1, dim)
        return values.reshape(rows, -1, dim).transpose(0, 1)

    return Batch(points(matrix), None if importance is None else points(importance))
