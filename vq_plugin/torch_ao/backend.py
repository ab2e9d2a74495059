"""The host's x86 backend, extended by codebook layers."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.ao.nn.intrinsic.modules.fused import _FusedModule
from torch.ao.nn.quantized import reference
from torch.ao.quantization.backend_config import BackendConfig, BackendPatternConfig, DTypeConfig
from torch.ao.quantization.backend_config.x86 import get_x86_backend_config
from torch.nn.utils.parametrize import type_before_parametrizations

from vq_plugin.hosting.follower import CodebookFollower
from vq_plugin.hosting.plan import Plan
from vq_plugin.torch_ao.qconfig import TAG_DTYPE

# The float layers that the host has a reference module for.
LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)

REFERENCES: dict[type[nn.Module], Any] = {
    kind: getattr(reference, kind.__name__) for kind in LAYERS
}

_WEIGHT_ONLY = DTypeConfig(
    input_dtype=torch.float, output_dtype=torch.float, weight_dtype=TAG_DTYPE
)


class CodebookReference(nn.Module):
    """Where the host turns a float layer into a reference module; never instantiated."""

    _IS_REFERENCE = True

    @classmethod
    def from_float(cls, module: nn.Module, weight_qparams: dict[str, Any]) -> nn.Module:
        """Makes a codebook layer where the qconfig says so, else the host's reference module."""
        ours = weight_qparams.get("scale")
        if isinstance(ours, Plan | CodebookFollower):
            return ours.convert(module)
        stock: nn.Module = REFERENCES[type_before_parametrizations(module)].from_float(
            module, weight_qparams
        )
        return stock


def get_backend_config() -> BackendConfig:
    """The x86 backend with codebook layers beside its int8 layers.

    Give it to ``prepare_fx`` *and* to ``convert_fx``; where it is missing the host leaves layers
    float without a word, which :func:`check_converted` turns into an error.

    Returns:
        A new backend config for Linear, Conv1d, Conv2d, Conv3d and Embedding; everything else is
        as in ``get_x86_backend_config()``.

    Example:
        >>> get_backend_config().name
        'x86'
    """
    stock = get_x86_backend_config()
    return BackendConfig(stock.name).set_backend_pattern_configs(
        [_with_codebooks(config) for config in stock.configs]
    )


def modules_around(name: str) -> list[str]:
    """The modules that a module is in, the outermost first."""
    steps = name.split(".")
    return [".".join(steps[:count]) for count in range(1, len(steps))]


def _with_codebooks(stock: BackendPatternConfig) -> BackendPatternConfig:
    # The list of dtypes is one object that many patterns of the host share.
    config = copy.copy(stock).set_dtype_configs(list(stock.dtype_configs))
    if config.root_module in REFERENCES and config.reference_quantized_module is not None:
        config.set_reference_quantized_module(CodebookReference)
    # Modules only: functional layers have no module that could be replaced.
    first = config.pattern[0] if isinstance(config.pattern, tuple) else config.pattern
    if isinstance(first, type) and issubclass(first, (*REFERENCES, _FusedModule)):
        config.add_dtype_config(_WEIGHT_ONLY)
    return config
