"""From the gradient of a decoded weight to those of its codebooks and row scales."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vq_plugin.codebook import decode, table_offsets


def codebook_gradients(
    grad: Tensor, codes: Tensor, codebooks: Tensor, scale: Tensor | None, group: int
) -> tuple[Tensor, Tensor | None]:
    """The gradient of every center is the sum over the sub-vectors that use it.

    ``grad`` is that of the 2-D view along whose rows sub-vectors run, ``(rows, length)``; others
    are as in :func:`vq_plugin.codebook.decode`, but that ``group`` is 0 when there is one group.
    """
    _, groups, books, k, dim = codebooks.shape
    _, rows, subspaces = codes.shape
    grad_scale = None
    if scale is not None:
        shape = (rows, grad.shape[1])
        plain = decode(codes, codebooks, None, shape=shape, axis="in", group=group or None)
        grad_scale = (grad * plain).sum(1)
        grad = grad * scale.unsqueeze(1)
    vectors = functional.pad(grad, (0, subspaces * dim - grad.shape[1])).reshape(-1, dim)
    offset = table_offsets(rows, subspaces, codebooks.shape, group or None, codes.device)
    index = codes.int() if offset is None else codes.int() + offset
    zeros = torch.zeros(groups * books * k, dim, dtype=grad.dtype, device=grad.device)
    sums = [zeros.index_add(0, stage.reshape(-1), vectors) for stage in index]
    return torch.stack(sums).reshape(codebooks.shape), grad_scale
