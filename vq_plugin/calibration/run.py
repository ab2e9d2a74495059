"""Calibration data, run through a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence

from vq_plugin.calibration.calls import WeightCalls
from vq_plugin.calibration.statistics import InputMoments, named_moments
from vq_plugin.eval_mode import eval_mode
from vq_plugin.fit.output.moments import Moments
from vq_plugin.nn import Slot

Calibration: TypeAlias = Iterable[object] | Callable[[nn.Module], object]


def input_moments(
    model: nn.Module, slots: Iterable[Slot], calibration: Calibration
) -> dict[str, Moments]:
    """Moments of the inputs of a model's weights, by the names of their slots.

    The model runs in eval mode without gradients, and is then left as it was. Modules whose inputs
    are known tell them; other weights are found in the calls of torch functions, see
    :class:`vq_plugin.calibration.calls.WeightCalls`. Slots whose inputs nobody knows are left out;
    a ``ValueError`` names one that no data reach.
    """
    slots = list(slots)
    observed = {
        slot.name: InputMoments(slot).to(slot.value.device) for slot in slots if slot.observable
    }
    calls = WeightCalls(slots, observed)
    handles = [
        slot.host.register_forward_pre_hook(observed[slot.name].observe, with_kwargs=True)
        for slot in slots
        if slot.name in observed
    ]
    try:
        with eval_mode(model), _every_module_runs(), _computed_once(slots), calls:
            run_calibration(model, calibration)
    finally:
        for handle in handles:
            handle.remove()
    # A module that never ran may have handed its weight to another.
    unseen = (name for name, moments in observed.items() if moments.count == 0)
    found = {**observed, **{name: calls.moments[name] for name in unseen if name in calls.moments}}
    found |= {name: moments for name, moments in calls.moments.items() if name not in observed}
    return {name: named_moments(name, moments) for name, moments in found.items()}


@contextmanager
def _every_module_runs() -> Iterator[None]:
    """No fused Transformer layers, nor batches packed for them, which modules cannot read."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def _computed_once(slots: Iterable[Slot]) -> Iterator[None]:
    """Weights that parametrizations compute stay the same tensors, by which calls know them."""
    if any(parametrize.is_parametrized(slot.module, slot.parameter) for slot in slots):
        with parametrize.cached():
            yield
    else:
        yield


@torch.no_grad()
def run_calibration(model: nn.Module, calibration: Calibration) -> None:
    """Runs batches through a model, or a callable on it, without gradients."""
    if not isinstance(calibration, Iterable):
        calibration(model)
        return
    if isinstance(calibration, Mapping | Tensor):
        raise ValueError("calibration is an iterable of batches: put a single batch into a list")
    for batch in calibration:
        match batch:
            case PackedSequence():
                model(batch)
            case Mapping():
                model(**batch)
            case tuple() | list():
                try:
                    model(*batch)
                except TypeError as error:
                    raise ValueError(
                        f"the model does not take a batch of calibration: {error}; the items of a "
                        "tuple or list are its positional arguments, so leave the labels out"
                    ) from error
            case _:
                model(batch)
