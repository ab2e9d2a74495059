"""The float model that PT2E makes codebook layers of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from vq_plugin.export.example import Example, exported
from vq_plugin.replace import assemble
from vq_plugin.select import check_model
from vq_plugin.torchao.graph import module_of

aten = torch.ops.aten


def fused_float(model: nn.Module, example: Example) -> nn.Module:
    """A float model whose batch norms are folded into the layers before, as PT2E folds them.

    It is what :func:`vq_plugin.load` needs for the file of a program that PT2E has converted, and
    what :func:`vq_plugin.tune` has to be given for a setting that is meant for PT2E: the schemes
    that it finds give the layers that it has measured.

    Args:
        model: Float model in eval mode that ``torch.export`` can take; it is not changed.
        example: An input that the model runs on: a tensor, a tuple or list of positional
            arguments, or a mapping of keyword arguments.

    Returns:
        A copy; folded batch norms are ``nn.Identity``.

    Raises:
        ValueError: If the model is in training mode, where batch norm cannot be folded.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
        >>> fused_float(model, (torch.zeros(1, 1, 5, 5),))[1]
        Identity()
    """
    check_model(model)
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() before fusing it")
    graph = exported(model, example, dynamic_batch=False).graph
    fused = assemble(model, {})
    for node in graph.nodes:
        before = node.args[0] if node.target == aten.batch_norm.default else None
        if not isinstance(before, Node) or len(before.users) > 1:
            continue
        names = [module_of(each)[0] for each in (before, node)]
        layer, norm = map(fused.get_submodule, names)
        if not isinstance(norm, _BatchNorm):
            continue
        if isinstance(layer, nn.Linear) and _dimensions(before) == 2:
            folded: nn.Module = fuse_linear_bn_eval(layer, norm)
        elif isinstance(layer, _ConvNd):
            folded = fuse_conv_bn_eval(layer, norm, isinstance(layer, _ConvTransposeNd))
        else:
            continue
        fused.set_submodule(names[0], folded)
        fused.set_submodule(names[1], nn.Identity())
    return fused


def _dimensions(node: Node) -> int:
    value = node.meta.get("val")
    return value.dim() if isinstance(value, Tensor) else 0
