"""What the fits compute, by native kernels or in torch alone: chosen here and nowhere else."""

from vq_plugin.fit.kernels.native import NativeKernels
from vq_plugin.fit.kernels.protocol import Kernels
from vq_plugin.fit.kernels.pure_torch import TorchKernels
from vq_plugin.ops import fit

__all__ = ["Kernels", "NativeKernels", "TorchKernels", "best_kernels"]

_NATIVE, _TORCH = NativeKernels(), TorchKernels()


def best_kernels() -> Kernels:
    """The native kernels where their extension is there, those of torch elsewhere."""
    return _NATIVE if fit.native_fits() else _TORCH
