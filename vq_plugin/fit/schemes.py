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
from vq_plugin.schemes import KM, PQ, RQ, Binary

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
    groups = [group.flatten().contiguous() for group in torch.split(matrix, rows)]
    masses: list[Tensor | None] = [None] * len(groups)
    if importance is not None:
        masses = [mass.flatten() for mass in torch.split(importance, rows)]
    exact = [
        scalar.fit_scalar(group, scheme.k, importance=mass, keep_zeros=scheme.keep_zeros)
        for group, mass in zip(groups, masses, strict=True)
    ]
    centers = [
        round_centers(table.unsqueeze(1), scheme.codebook_dtype).squeeze(1) for table in exact
    ]
    codes = [
        scalar.assign_scalar(group, table) for group, table in zip(groups, centers, strict=True)
    ]
    k = max(map(len, centers))
    padded = [
        functional.pad(table, (0, k - len(table)), value=float(table[-1])) for table in centers
    ]
    return torch.cat(codes).reshape(1, *matrix.shape), torch.stack(padded).reshape(1, -1, 1, k, 1)


def fit_pq(
    matrix: Tensor, scheme: PQ, importance: Tensor | None, seed: int
) -> tuple[Tensor, Tensor]:
    """K-means of sub-vectors."""
    geometry = scheme.geometry(_shape(matrix, scheme))
    batch = sub_vectors(matrix, importance, dim=geometry.dim, shared=geometry.shared)
    centers = round_centers(vector.fit_vector(batch, scheme.k, seed)[0], scheme.codebook_dtype)
    return _by_row(
        [centers], [best_kernels().assign(batch, centers.float())], geometry.shared, len(matrix)
    )


def fit_rq(
    matrix: Tensor, scheme: RQ, importance: Tensor | None, seed: int
) -> tuple[Tensor, Tensor]:
    """K-means of what the stages before leave of sub-vectors."""
    geometry = scheme.geometry(_shape(matrix, scheme))
    batch = sub_vectors(matrix, importance, dim=geometry.dim, shared=geometry.shared)
    centers, codes = fit_residual(
        batch,
        scheme.k,
        scheme.stages,
        seed=seed,
        fit=vector.fit_vector,
        codebook_dtype=scheme.codebook_dtype,
    )
    return _by_row(centers, codes, geometry.shared, len(matrix))


def _shape(matrix: Tensor, scheme: PQ | RQ) -> tuple[int, int]:
    rows, length = matrix.shape
    return (rows, length) if scheme.axis == "in" else (length, rows)


def _by_row(
    centers: list[Tensor], codes: list[Tensor], shared: bool, rows: int
) -> tuple[Tensor, Tensor]:
    """Codes and codebooks of a weight from those of every stage, by book."""
    k = max(stage.shape[1] for stage in centers)
    codebooks = torch.stack([vector.repeat_last(stage, k) for stage in centers]).unsqueeze(1)
    by_book = torch.stack(codes)
    if shared:
        return by_book.reshape(len(codes), rows, -1), codebooks
    return by_book.transpose(1, 2).contiguous(), codebooks


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
            importance = functional.pad(importance, (0, padding), value=LEAST_IMPORTANCE)

    def points(values: Tensor) -> Tensor:
        if shared:
            return values.reshape(1, -1, dim)
        return values.reshape(rows, -1, dim).transpose(0, 1)

    return Batch(points(matrix), None if importance is None else points(importance))
