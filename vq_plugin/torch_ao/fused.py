"""Layers that the host fused, given their own names back."""

from __future__ import annotations

import copy

from torch import nn
from torch.ao.nn.intrinsic.modules.fused import _FusedModule
from torch.ao.quantization.quantize_fx import fuse_fx
from torch.fx import GraphModule
from torch.nn import functional

from vq_plugin.torch_ao.backend import get_backend_config


def fused_float(model: nn.Module) -> nn.Module:
    """The float model that FX makes codebook layers of: batch norms are folded into layers.

    Its layers have the names of those of a converted and checked model, so it is what
    :func:`vq_plugin.load` needs for such a model's file.

    Args:
        model: Float model in eval mode that FX can trace; it is not changed.

    Returns:
        A new ``GraphModule`` that computes what ``model`` computes.

    Raises:
        ValueError: If the model is in training mode, where batch norm cannot be folded.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
        >>> sorted(fused_float(model).state_dict())
        ['0.bias', '0.weight']
    """
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() before fusing it")
    fused: GraphModule = fuse_fx(copy.deepcopy(model), backend_config=get_backend_config())
    split_fused(fused)
    return fused


def split_fused(model: GraphModule) -> None:
    """Makes two modules of every layer that the host fused with a ReLU, in place.

    A layer ``fc`` and its ReLU become ``fc.0`` and ``fc.1`` in the host's hands. Afterwards the
    layer is ``fc`` again, as in the float model and in its files, and ReLU is a function.
    """
    fused = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _FusedModule) and [type(m) for m in module][1:] == [nn.ReLU]
    }
    for node in list(model.graph.nodes):
        if node.op == "call_module" and node.target in fused:
            with model.graph.inserting_after(node):
                relu = model.graph.call_function(functional.relu)
            node.replace_all_uses_with(relu)
            relu.args = (node,)
    for name, module in fused.items():
        model.set_submodule(name, module[0])
    model.recompile()
