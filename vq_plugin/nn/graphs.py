"""Modules that torch has made graphs of: their layers are gone."""

from __future__ import annotations

import torch
from torch import fx, nn


def graph_hint(module: nn.Module) -> str | None:
    """What to do with a module that is a graph, whose layers cannot be found; ``None`` for others.

    Example:
        >>> exported = torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),))
        >>> graph_hint(exported.module())
        'an exported graph has no layers: compress the float model, and export the result'
    """
    if isinstance(module, torch.jit.ScriptModule):
        return (
            "TorchScript has no layers that can be changed: compress the eager model, and script "
            "or trace the result"
        )
    if type(module).__module__.startswith("torch.ao.nn.quantized."):
        return "torch.ao has quantized its layers: compress the float model that they come from"
    exported = isinstance(module, fx.GraphModule) or type(module).__module__.startswith(
        "torch.export"
    )
    if exported:
        return "an exported graph has no layers: compress the float model, and export the result"
    return None
