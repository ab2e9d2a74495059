"""What the fit that a scheme is registered with finds, one of the user's own included."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vq_plugin.schemes import Geometry, Scheme, fit_of


def found(
    matrix: Tensor, scheme: Scheme, importance: Tensor | None, seed: int, cut: Geometry
) -> tuple[Tensor, Tensor]:
    """Codes, ``(stages, rows, subspaces)``, and codebooks of one weight.

    A fit that is not this package's gets copies: what it writes in place would be the weights of
    the caller's model. What it gives is checked, as its shapes mean nothing further on.

    Raises:
        TypeError: If such a fit gives no two tensors.
        ValueError: If they have other shapes than the scheme's geometry says.
    """
    fit = fit_of(scheme)
    if getattr(fit, "__module__", "").startswith("vq_plugin."):
        codes, books = fit(matrix, scheme, importance, seed)
    else:
        copied = None if importance is None else importance.clone()
        codes, books = _checked(fit(matrix.clone(), scheme, copied, seed), scheme, cut)
    return codes.reshape(len(codes), cut.rows, -1), books


def _checked(given: Any, scheme: Scheme, cut: Geometry) -> tuple[Tensor, Tensor]:
    pair = isinstance(given, tuple | list) and len(given) == 2
    if not pair or not all(isinstance(each, Tensor) for each in given):
        kinds = ", ".join(type(each).__name__ for each in given) if pair else type(given).__name__
        raise TypeError(f"the fit of {scheme} gives two tensors, codes and codebooks; got {kinds}")
    codes, books = given
    stages, groups, count, _, dim = cut.codebook_shape
    shape = tuple(books.shape)
    # Stages are the fit's: fewer than the scheme has may do.
    same = shape[1:3] + shape[4:] == (groups, count, dim) and 1 <= shape[0] <= stages
    if not same or codes.shape[:1] != shape[:1] or codes[0].numel() * stages != _size(cut):
        raise ValueError(
            f"the fit of {scheme} gave codes of shape {tuple(codes.shape)} and codebooks of shape "
            f"{shape}; of this weight they have {cut.code_shape} and "
            f"({stages}, {groups}, {count}, k, {dim})"
        )
    return codes, books


def _size(cut: Geometry) -> int:
    stages, rows, subspaces = cut.code_shape
    return stages * rows * subspaces
