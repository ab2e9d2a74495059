"""What ``step="prepare"`` leaves in a layer, and ``step="convert"`` takes out of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from vq_plugin.calibration import InputMoments
from vq_plugin.hosting.follower import CodebookFollower
from vq_plugin.hosting.plan import Plan
from vq_plugin.hosting.statistics import INPUT_STATS
from vq_plugin.nn import CodebookLayer, find_slots
from vq_plugin.nn.parameter import own_class


class PreparedWeight(CodebookFollower):
    """A parametrization of a weight that waits for data: to calibrate by, or to train with.

    In eval mode the layer runs in float, and the inputs that meet it are counted. From its first
    pass in training mode on it runs with the codebooks that follow its weight.
    """

    def observe_inputs(self, layer: nn.Module) -> bool:
        """Makes room for all that a calibrated fit wants to know, not squares alone."""
        slot = find_slots(layer)[""]
        if slot.observable:
            self.add_module(INPUT_STATS, InputMoments(slot).to(slot.value.device))
        return slot.observable

    def observe(self, layer: nn.Module, arguments: Any, keywords: Any) -> None:
        """Adds the input of a pass in eval mode: training would spend its time on sums."""
        if not self.training and self.codebooks is None:
            super().observe(layer, arguments, keywords)

    @property
    def statistics(self) -> InputMoments | None:
        """Of the inputs, where these are known."""
        found = getattr(self, INPUT_STATS, None)
        return found if isinstance(found, InputMoments) else None

    @property
    def waits(self) -> bool:
        """Whether it could have been calibrated, and was neither that nor trained."""
        known = self.statistics
        return self.codebooks is None and known is not None and not bool(known.count)

    @property
    def quantizes(self) -> bool:  # noqa: D102 - inherited
        return self.training or self.codebooks is not None

    def _importance(self) -> Tensor | None:
        known = self.statistics is not None and bool(self.statistics.count)
        return super()._importance() if known else None


def prepare_layer(layer: nn.Module, plan: Plan) -> None:
    """Puts a :class:`PreparedWeight` before the weight of a float layer, in place."""
    if not isinstance(layer, nn.Embedding):
        # Padding is a table's own, also where others share its weight.
        plan = replace(plan, zero_row=None)
    prepared = PreparedWeight(plan)
    if prepared.observe_inputs(layer):
        layer.register_forward_pre_hook(_observe, with_kwargs=True)
    prepared.train(layer.training)
    parametrize.register_parametrization(layer, "weight", prepared)


def prepared_weight(layer: nn.Module) -> PreparedWeight | None:
    """What :func:`prepare_layer` has put there."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    lists = layer.parametrizations
    assert isinstance(lists, nn.ModuleDict)
    last = list(lists["weight"].children())[-1]
    return last if isinstance(last, PreparedWeight) else None


def convert_prepared(layer: nn.Module, prepared: PreparedWeight) -> CodebookLayer:
    """The codebook layer of a prepared one, which is a float layer again."""
    for key, hook in list(layer._forward_pre_hooks.items()):
        if hook is _observe:
            del layer._forward_pre_hooks[key]
            layer._forward_pre_hooks_with_kwargs.pop(key, None)
    own_class(layer)
    statistics, trained = prepared.statistics, prepared.codebooks is not None
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    if trained:
        if prepared.plan.zero_row is not None:
            # It ran as zeros, also where others that share the weight gave the row gradients.
            layer.weight.data[prepared.plan.zero_row] = 0  # type: ignore[operator]
        return prepared.convert(layer)
    if statistics is not None:
        layer.add_module(INPUT_STATS, nn.ModuleDict({"weight": statistics}))
    converted = prepared.plan.convert(layer)
    assert isinstance(converted, CodebookLayer)
    return converted


def _observe(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    # A plain function: deep copies of the hook must find what the copied layer has.
    prepared = prepared_weight(layer)
    assert prepared is not None
    prepared.observe(layer, arguments, keywords)
