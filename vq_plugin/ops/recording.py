"""What follows torch's own operators only: traces, ``torch.func``, forward-mode derivatives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling

# Looked up once: small layers notice.
_tracing_state = torch._C._get_tracing_state
_transforms_active = torch._C._are_functorch_transforms_active
# Where our kernels are.
_KERNEL_DEVICES = frozenset(["cpu"])


def transforming() -> bool:
    """Whether ``torch.func`` or forward-mode derivatives are at work.

    They see into operators of torch, and take those of others for constants, or refuse them.

    Example:
        >>> torch.func.vmap(lambda x: x + transforming())(torch.zeros(2))
        tensor([1., 1.])
    """
    return forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active()


def stacked(tensor: Tensor) -> bool:
    """Whether ``torch.func.vmap`` has one such tensor for each of its items.

    Example:
        >>> torch.func.vmap(lambda x: x + stacked(x))(torch.zeros(2))
        tensor([1., 1.])
    """
    if torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch
    while functorch.is_gradtrackingtensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return functorch.is_batchedtensor(tensor)


def tracing() -> bool:
    """Whether ``torch.jit.trace`` runs, whose programs keep no condition and no size."""
    return torch._C._get_tracing_state() is not None


def recording() -> bool:
    """Whether what is computed now is a program as well: compiled, traced or transformed."""
    # In one piece, as every pass of every layer asks.
    return (
        is_compiling()
        or _tracing_state() is not None
        or forward_ad._current_level >= 0
        or _transforms_active()
    )


def compiled_by_codes(tensor: Tensor) -> bool:
    """Whether a compiled program calls our operators for tensors of this device.

    Where there are no kernels, the compiler gets torch's own operators, of which it makes one
    kernel that decodes a weight.

    Example:
        >>> compiled_by_codes(torch.zeros(1)), compiled_by_codes(torch.zeros(1, device="meta"))
        (True, False)
    """
    return tensor.device.type in _KERNEL_DEVICES
