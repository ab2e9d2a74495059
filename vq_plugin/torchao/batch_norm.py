"""Batch norm after a convolution that has trained: folded, as it is in the weight already."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from vq_plugin.torchao.graph import attribute

aten = torch.ops.aten


@dataclass(frozen=True)
class Norm:
    """What ``prepare_qat_pt2e`` makes of a convolution and its batch norm.

    The convolution has the weight times ``γ/σ``; its output is divided by that, gets the bias of
    the convolution, and goes into the batch norm.
    """

    convolution: Node
    bias: Node | None
    norm: Node

    def fold(self, model: GraphModule, layer: nn.Module) -> None:
        """Takes the batch norm out of the graph, and gives ``layer`` the bias that is left."""
        tables: list[Any] = list(self.norm.args[1:5])
        gamma, beta, mean, variance = (attribute(model, str(each.target)) for each in tables)
        scale = gamma / torch.sqrt(variance + float(self.norm.args[7]))  # type: ignore[arg-type]
        before = 0 if self.bias is None else attribute(model, str(self.bias.target))
        layer.bias = nn.Parameter(((before - mean) * scale + beta).detach())
        self.norm.replace_all_uses_with(self.convolution)
        # In training it counts its batches, and nobody would read that any more.
        owner = str(self.norm.args[3].target).rpartition(".")[0]  # type: ignore[union-attr]
        for node in list(model.graph.nodes):
            if node.target == aten.add_.Tensor and _reads(node, f"{owner}.num_batches_tracked"):
                model.graph.erase_node(node)


def norm_after(convolution: Node) -> Norm | None:
    """The batch norm that a convolution's weight has in it, ``None`` where there is none."""
    divided = _only(convolution, aten.div.Tensor)
    if divided is None:
        return None
    added = _only(divided, aten.add.Tensor)
    norm = _only(divided if added is None else added, aten.batch_norm.default)
    if norm is None:
        return None
    return Norm(convolution, None if added is None else _source(added.args[1]), norm)


def _only(node: Node, target: Any) -> Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].target == target else None


def _source(node: Any) -> Node:
    """The attribute that a node reads, in another shape."""
    while node.op != "get_attr":
        node = node.args[0]
    assert isinstance(node, Node)
    return node


def _reads(node: Node, target: str) -> bool:
    first = node.args[0]
    return isinstance(first, Node) and first.op == "get_attr" and first.target == target
