"""Layers that the host fused, given their own names back."""

from __future__ import annotations

from torch import nn
from torch.ao.nn.intrinsic.modules.fused import _FusedModule
from torch.ao.quantization.quantize_fx import fuse_fx
from torch.fx import GraphModule
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from vq_plugin.replace import assemble
from vq_plugin.select import check_model
from vq_plugin.torch_ao.backend import get_backend_config

_AFTER = (nn.ReLU, _BatchNorm)


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
    check_model(model)
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() before fusing it")
    fused: GraphModule = fuse_fx(assemble(model, {}), backend_config=get_backend_config())
    split_fused(fused)
    return fused


def split_fused(model: GraphModule) -> None:
    """Gives layers that the host fused their own names back, in place.

    A layer ``fc`` and its ReLU become ``fc.0`` and ``fc.1`` in the host's hands. Afterwards the
    layer is ``fc`` again, as in the float model and in its files, and ReLU is a function. Batch
    norms of layers that were left alone in training are folded, as those of all others are.
    """
    fused = {
        name: list(module)
        for name, module in model.named_modules()
        if isinstance(module, _FusedModule) and isinstance(module[-1], _AFTER)
    }
    for node in list(model.graph.nodes):
        if node.op == "call_module" and isinstance(fused.get(node.target, [None])[-1], nn.ReLU):
            with model.graph.inserting_after(node):
                relu = model.graph.call_function(functional.relu)
            node.replace_all_uses_with(relu)
            relu.args = (node,)
    for name, (layer, *after) in fused.items():
        norm = next((m for m in after if isinstance(m, _BatchNorm)), None)
        model.set_submodule(name, layer if norm is None else _folded(layer, norm))
    model.recompile()


def _folded(layer: nn.Module, norm: _BatchNorm) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer.eval(), norm.eval())
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    return fuse_conv_bn_eval(layer.eval(), norm.eval())
