"""From the gradient of a decoded weight to those of its codebooks and row scales."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library
from torch.nn import functional

from vq_plugin.codebook import decode, table_offsets
from vq_plugin.ops.native import native
from vq_plugin.ops.recording import recording

# The sums of a gradient, float32, (rows, length) of any strides, over the sub-vectors that use a
# center; codes are packed, or uint8, (stages, rows, subspaces). There is a native kernel only.
# Sums are rounded in one order, whatever the threads.
_library = Library("vq", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "sums_by_center(Tensor grad, Tensor codes, int[] shape, bool along_out, int group) -> Tensor"
)


def codebook_gradients(
    grad: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scale: Tensor | None,
    *,
    along_out: bool = False,
    group: int = 0,
) -> tuple[Tensor, Tensor | None]:
    """The gradient of every center is the sum over the sub-vectors that use it.

    ``grad`` is that of the 2-D view along whose rows sub-vectors run, ``(rows, length)``; codes may
    be packed, others are as in :func:`vq_plugin.codebook.decode`, but that ``group`` is 0 when
    there is one group.
    """
    _, groups, books, k, dim = codebooks.shape
    rows, subspaces = grad.shape[0], -(-grad.shape[1] // dim)

    def plain_codes() -> Tensor:
        if codes.dim() != 4:
            return codes
        unpacked: Tensor = torch.ops.vq.unpack_codes(codes, rows, subspaces, along_out)
        return unpacked

    grad_scale = None
    if scale is not None:
        shape = tuple(grad.shape)
        plain = decode(plain_codes(), codebooks, None, shape=shape, axis="in", group=group or None)
        grad_scale = (grad * plain).sum(1)
        grad = grad * scale.unsqueeze(1)
    if added_natively(grad, codes, k):
        return torch.ops.vq.sums_by_center(
            grad, codes.contiguous(), list(codebooks.shape), along_out, group
        ), grad_scale
    vectors = functional.pad(grad, (0, subspaces * dim - grad.shape[1])).reshape(-1, dim)
    offset = table_offsets(rows, subspaces, codebooks.shape, group or None, codes.device)
    index = plain_codes().int() if offset is None else plain_codes().int() + offset
    zeros = torch.zeros(groups * books * k, dim, dtype=grad.dtype, device=grad.device)
    sums = [zeros.index_add(0, stage.reshape(-1), vectors) for stage in index]
    return torch.stack(sums).reshape(codebooks.shape), grad_scale


def added_natively(grad: Tensor, codes: Tensor, k: int) -> bool:
    """Whether the kernel takes them: nothing sees through it, and it has no gradient."""
    return (
        type(grad) is Tensor
        and grad.dtype is torch.float32
        and grad.is_cpu
        and codes.dtype is (torch.int32 if codes.dim() == 4 else torch.uint8)
        and k <= (16 if codes.dim() == 4 else 256)
        and native() is not None
        and not recording()
        and not torch.is_grad_enabled()
    )
