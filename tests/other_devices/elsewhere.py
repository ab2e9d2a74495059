"""A device that is not the CPU: tensors report it, their values lie in tensors of the CPU.

What runs there is what runs on a GPU, torch's own operators and the bodies in torch of ours, and
tensors of both devices in one operator are refused as there. Kernels, streams and rounding of a
GPU it does not show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

from vq_plugin.ops import convolution, library

NAME = "elsewhere"
_HERE = torch.device("cpu")

_BODIES: dict[str, Callable[..., Any]] = {
    "codebook_conv": convolution.conv_in_torch,
    "codebook_linear": library._linear,
    "dequantize_codebook": library.dequantize_in_torch,
    "pack_codes": library.pack,
    "unpack_codes": library.unpack,
}


class _There(Tensor):
    """A tensor of the device, and the one of the CPU that holds its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> _There:
        made: _There = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"{NAME}({self.held})"

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # After the mode has ended, and in passes back, which threads of their own run.
        with _Device():
            return func(*args, **(kwargs or {}))


class _Device(TorchDispatchMode):
    """Runs operators on the values, and refuses those that take tensors of both devices."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        there = any(isinstance(each, _There) for each in tensors)
        if func.namespace == "vq" and there:
            with self:
                return _BODIES[func._schema.name.removeprefix("vq::")](*args, **kwargs)
        device = kwargs.get("device")
        if device is not None:
            there = torch.device(device).type == NAME
            kwargs["device"] = _HERE if there else device
        elif there and func is not torch.ops.aten.copy_.default:
            # As on other devices, numbers may come from the CPU.
            alien = [each for each in tensors if not isinstance(each, _There) and each.dim()]
            if alien:
                raise RuntimeError(f"{func} takes tensors of {NAME} and of {alien[0].device}")
        args, kwargs = tree_map_only(_There, lambda each: each.held, (args, kwargs))
        found = func(*args, **kwargs)
        return tree_map_only(Tensor, _There, found) if there else found


class _Module(_DummyBackendModule):
    """What ``torch.elsewhere`` is: it has no random numbers of its own."""

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.zeros(0, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass


@cache
def _registered() -> None:
    _setup_privateuseone_for_python_backend(NAME, _Module())


@contextmanager
def device() -> Iterator[str]:
    """The name of the device, which exists within; its process has it for good."""
    _registered()
    before = torch._C._only_lift_cpu_tensors()
    torch._C._set_only_lift_cpu_tensors(True)
    try:
        with _Device():
            yield NAME
    finally:
        torch._C._set_only_lift_cpu_tensors(before)
