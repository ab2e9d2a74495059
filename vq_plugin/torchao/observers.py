"""What ``prepare_pt2e`` puts into a graph, and ``convert_pt2e`` takes out of it again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e import FakeQuantizeBase, ObserverBase
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from vq_plugin.fit.parallel import worker_pool
from vq_plugin.hosting.follower import CodebookFollower
from vq_plugin.hosting.plan import Plan
from vq_plugin.hosting.statistics import INPUT_STATS, attach_statistics, observe
from vq_plugin.nn import CodebookLayer, find_slots
from vq_plugin.torchao.batch_norm import norm_after
from vq_plugin.torchao.graph import put_layer

# No quantizer of torchao observes with it: ours share no observer with theirs.
DTYPE = torch.uint16


class Site:
    """A float layer that is to be coded, and its plan; what the observers of its edges share.

    The host copies the settings of observers deeply, with all that is in them.
    """

    def __init__(self, place: int, name: str, layer: nn.Module, plan: Plan) -> None:
        self.place, self.name, self.layer, self.plan = place, name, layer, plan

    def __deepcopy__(self, memo: Any) -> Site:
        return self


class InputObserver(ObserverBase):  # type: ignore[misc]
    """Gathers the inputs of one layer, whose observer of the weight has the same layer."""

    def __init__(self, site: Site, **_: Any) -> None:
        super().__init__(DTYPE)
        self.layer = site.layer

    def forward(self, value: Tensor) -> Tensor:
        """Returns the input as it is."""
        # Second moments take room: not before there is an input.
        if not hasattr(self.layer, INPUT_STATS):
            attach_statistics(find_slots(self.layer).values())
        if hasattr(self.layer, INPUT_STATS):
            observe(self.layer, (value.detach(),), {})
        return value

    def calculate_qparams(self, **_: Any) -> None:
        """Nothing: there is no scale."""

    def convert(self, model: GraphModule, observer_node: Node) -> None:
        """Leaves the graph."""
        observed = observer_node.args[0]
        assert isinstance(observed, Node)
        observer_node.replace_all_uses_with(observed)
        model.graph.erase_node(observer_node)


class WeightObserver(ObserverBase):  # type: ignore[misc]
    """Stands before a weight until its layer is a codebook layer."""

    def __init__(self, site: Site, **_: Any) -> None:
        super().__init__(DTYPE)
        self.place, self.name = site.place, site.name
        self.layer, self.plan = site.layer, site.plan
        # No submodule of the observer's.
        self.converted: list[CodebookLayer] = []

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the weight as it is."""
        return weight

    def calculate_qparams(self, **_: Any) -> None:
        """Nothing: there is no scale."""

    def convert(self, model: GraphModule, observer_node: Node) -> None:
        """Puts the codebook layer, fitted by the inputs that were seen, in the layer's place.

        ``ValueError`` names layers that calibration did not reach, and one that cannot be fitted.
        """
        if observer_node.args[0].op != "get_attr":  # type: ignore[union-attr]
            raise ValueError(
                f"layer {self.name!r}: prepare_qat_pt2e wants VQQuantizer(schemes, is_qat=True)"
            )
        if not self.converted:
            _convert_all([m for m in model.modules() if isinstance(m, WeightObserver)])
        (converted,) = self.converted
        _replace(model, observer_node, self.name, converted)


class CodebookFakeQuantize(CodebookFollower, FakeQuantizeBase):  # type: ignore[misc]
    """Gives the decoded weight for the one that trains behind it.

    An exported program has no modes: codes and codebooks follow in passes with gradients. The
    switches of torchao work on it, as ``disable_observer`` keeps the codebooks.
    """

    dtype = DTYPE
    observer_enabled: Tensor
    fake_quant_enabled: Tensor

    def __init__(self, site: Site, **_: Any) -> None:
        super().__init__(site.plan)
        self.name, self.layer = site.name, site.layer

    @property
    def moves(self) -> bool:  # noqa: D102 - inherited
        return bool(self.observer_enabled[0])

    @property
    def quantizes(self) -> bool:  # noqa: D102 - inherited
        return bool(self.fake_quant_enabled[0])

    def forward(self, weight: Tensor) -> Tensor:  # noqa: D102 - inherited
        self.training = torch.is_grad_enabled()
        return super().forward(weight)

    def calculate_qparams(self, **_: Any) -> None:
        """Nothing: there is no scale."""

    def convert(self, model: GraphModule, observer_node: Node) -> None:  # type: ignore[override]
        """Puts the codebook layer that the follower has learnt in the layer's place.

        A batch norm after a convolution is folded, as the weight that was followed has it in it.
        """
        if self.codebooks is None:
            raise ValueError(
                f"layer {self.name!r} was prepared for training and never ran: train it, or give "
                "prepare_pt2e VQQuantizer(schemes) to compress without training"
            )
        for user in list(observer_node.users):
            norm = norm_after(user)
            if norm is not None:
                norm.fold(model, self.layer)
        _replace(model, observer_node, self.name, CodebookFollower.convert(self, self.layer))


def _convert_all(observers: list[WeightObserver]) -> None:
    """Fits every layer before the graph is changed, in the order of the model.

    Of layers that share a weight the first speaks for all; the host's order is another.
    """
    _check_reached(observers)
    with worker_pool():
        for observer in sorted(observers, key=lambda each: each.place):
            converted = observer.plan.convert(observer.layer)
            assert isinstance(converted, CodebookLayer)
            observer.converted = [converted]


def _check_reached(observers: list[WeightObserver]) -> None:
    """Raises ``ValueError`` if calibration reached some layers, but not all."""
    known = [o for o in observers if any(s.observable for s in find_slots(o.layer).values())]
    missed = sorted({o.name for o in known if not hasattr(o.layer, INPUT_STATS)})
    if missed and any(hasattr(o.layer, INPUT_STATS) for o in known):
        raise ValueError(
            f"calibration never ran {', '.join(map(repr, missed))}: feed inputs that reach them, "
            "or leave them out of the schemes"
        )


def _replace(model: GraphModule, observer_node: Node, name: str, layer: CodebookLayer) -> None:
    """Calls of a codebook layer in the place of the nodes that read an observed weight."""
    put_layer(model, name, layer)
    for user in list(observer_node.users):
        value = user.args[1 if user.target is torch.ops.aten.embedding.default else 0]
        with model.graph.inserting_before(user):
            call = model.graph.call_module(name, (value,))
        call.meta = {key: item for key, item in user.meta.items() if key != Q_ANNOTATION_KEY}
        user.replace_all_uses_with(call)
        _erase(model, user)


def _erase(model: GraphModule, node: Node) -> None:
    """Erases a node, and what nothing else reads of what it has read."""
    read = node.all_input_nodes
    model.graph.erase_node(node)
    for each in read:
        if not each.users and each.op in ("get_attr", "call_module"):
            _erase(model, each)
