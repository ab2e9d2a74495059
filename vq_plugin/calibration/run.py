"""Calibration data, run through a model."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from vq_plugin.calibration.calls import WeightCalls
from vq_plugin.calibration.reached import moments_by_name
from vq_plugin.calibration.shared import shared_sums
from vq_plugin.calibration.statistics import InputMoments
from vq_plugin.default_device import cpu_by_default
from vq_plugin.eval_mode import alone, as_it_was
from vq_plugin.fit.output.moments import Moments
from vq_plugin.nn import Slot
from vq_plugin.nn.inputs import call_arguments

Calibration: TypeAlias = Iterable[object] | Callable[[nn.Module], object]


class CalibrationError(ValueError):
    """A batch that the model does not take."""


def input_moments(
    model: nn.Module, slots: Iterable[Slot], calibration: Calibration
) -> dict[str, Moments]:
    """Moments of the inputs of a model's weights, by the names of their slots.

    The model runs in eval mode without gradients, and is then left as it was. Modules whose inputs
    are known tell them; other weights are found in the calls of torch functions, see
    :class:`vq_plugin.calibration.calls.WeightCalls`. Slots whose inputs nobody knows are left out;
    :func:`vq_plugin.calibration.reached.moments_by_name` says what happens to those that no data
    reach.
    """
    slots = list(slots)
    with cpu_by_default():
        observed = {
            slot: InputMoments(slot).to(slot.value.device) for slot in slots if slot.observable
        }
    calls = WeightCalls(slots, {slot.name: each for slot, each in observed.items()})
    called: set[Slot] = set()
    # Calls on other threads may have the same model.
    with alone(model), as_it_was(model), every_module_runs():
        by_host: dict[nn.Module, dict[Slot, InputMoments]] = {}
        for slot, each in observed.items():
            by_host.setdefault(slot.host, {})[slot] = each
        handles = [
            host.register_forward_pre_hook(partial(_observe, each, called), with_kwargs=True)
            for host, each in by_host.items()
        ]
        try:
            with _computed_once(slots), shared_sums(), calls:
                run_calibration(model, calibration)
        finally:
            for handle in handles:
                handle.remove()
    for slot in slots:
        # A module that never ran may have handed its weight to another.
        unseen = slot not in observed or observed[slot].count == 0
        if unseen and slot.name in calls.moments:
            observed[slot] = calls.moments[slot.name]
    return moments_by_name(model, observed, called, calls.read)


def _observe(
    statistics: Mapping[Slot, InputMoments],
    called: set[Slot],
    host: nn.Module,
    positional: tuple[Any, ...],
    keywords: Mapping[str, Any],
) -> None:
    """A forward pre-hook, but for what comes first; errors of a user's ``inputs`` name the slot."""
    called.update(statistics)
    arguments = call_arguments(host, positional, keywords)
    if arguments is None:
        return
    for slot, moments in statistics.items():
        try:
            # What statistics compute is no call of the model's for `WeightCalls` to look at.
            with cpu_by_default(), torch._C.DisableTorchFunction():
                moments.add(host, arguments)
        except AssertionError:
            # No tensor, where what is shipped looks for one: the module itself will say so.
            return
        except Exception as error:
            inputs = slot.kind.inputs
            # What is shipped fails on what the module itself will refuse, with a better message.
            if inputs is None or inputs.__module__.startswith("vq_plugin."):
                raise
            raise ValueError(
                f"layer {slot.shown}: the inputs= that {slot.kind.parameter!r} is registered with "
                f"fails: {type(error).__name__}: {error}"
            ) from error


_slow = threading.Lock()
_passes = {"count": 0, "fast": True}


@contextmanager
def every_module_runs() -> Iterator[None]:
    """No fused Transformer layers, nor batches packed for them, which modules cannot read.

    It is a switch of the process: of blocks that overlap, the last gives it back.
    """
    with _slow:
        if not _passes["count"]:
            _passes["fast"] = torch.backends.mha.get_fastpath_enabled()
        _passes["count"] += 1
        torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        with _slow:
            _passes["count"] -= 1
            if not _passes["count"]:
                torch.backends.mha.set_fastpath_enabled(bool(_passes["fast"]))


@contextmanager
def _computed_once(slots: Iterable[Slot]) -> Iterator[None]:
    """Weights that parametrizations compute stay the same tensors, by which calls know them."""
    if any(parametrize.is_parametrized(slot.module, slot.parameter) for slot in slots):
        with parametrize.cached():
            yield
    else:
        yield


def check_batches(batches: object, name: str = "calibration") -> None:
    """Raises for what would be read as batches, and is none or a single one.

    TypeError for what cannot be read at all, ValueError for a tensor, an array or a mapping.
    """
    if isinstance(batches, Mapping | Tensor | np.ndarray | str):
        raise ValueError(
            f"{name} is an iterable of batches, got a {type(batches).__name__}: put a single batch "
            "into a list"
        )
    if not isinstance(batches, Iterable) and not callable(batches):
        raise TypeError(
            f"{name} is an iterable of batches, such as a list or a DataLoader, got a "
            f"{type(batches).__name__}"
        )


def unfit_batch(batch: object) -> str | None:
    """What to do about a batch that a model may fail on; ``None`` if nothing is known."""
    if _is_of_numbers(batch):
        return "numbers in lists are no tensor: make one of them with torch.tensor(batch)"
    parts: Iterable[object] = [batch]
    if isinstance(batch, Mapping):
        parts = batch.values()
    elif isinstance(batch, list | tuple):
        parts = batch
    if any(isinstance(part, np.ndarray) for part in parts):
        return (
            "a NumPy array is no tensor: make one of it with torch.from_numpy, in the model's "
            "dtype, mostly .float()"
        )
    return None


def _is_of_numbers(value: object) -> bool:
    if isinstance(value, list | tuple):
        return bool(value) and all(map(_is_of_numbers, value))
    return isinstance(value, int | float)


@torch.no_grad()
def run_calibration(model: nn.Module, calibration: Calibration) -> None:
    """Runs batches through a model, or a callable on it, without gradients."""
    check_batches(calibration)
    if not isinstance(calibration, Iterable):
        calibration(model)
        return
    for number, batch in enumerate(calibration):
        try:
            _run_batch(model, batch)
        except (RuntimeError, IndexError) as error:
            # Not what derives from them, such as memory that is used up.
            if type(error) not in (RuntimeError, IndexError):
                raise
            raise CalibrationError(
                f"the model does not take batch {number} of calibration, {_shown(batch)}: {error}"
            ) from error


def _run_batch(model: nn.Module, batch: object) -> None:
    match batch:
        case PackedSequence():
            model(batch)
        case Mapping():
            model(**batch)
        case tuple() | list():
            try:
                model(*batch)
            except (TypeError, AttributeError) as error:
                remedy = unfit_batch(batch)
                if remedy is None and _takes(model, batch):
                    raise
                raise CalibrationError(
                    f"the model does not take a batch of calibration: {_said(error)}; "
                    + (
                        remedy
                        or "the items of a tuple or list are its positional arguments, so "
                        "leave the labels out"
                    )
                ) from error
        case Tensor():
            model(batch)
        case _:
            try:
                model(batch)
            except (TypeError, AttributeError) as error:
                remedy = unfit_batch(batch)
                raise CalibrationError(
                    f"the model does not take a batch of calibration that is a "
                    f"{type(batch).__name__}: {_said(error)}" + f"; {remedy}" * (remedy is not None)
                ) from error


def _said(error: Exception) -> str:
    """An error without the signatures that torch lists below it."""
    return str(error).partition("\n")[0]


def _shown(batch: object) -> str:
    """A batch by the dtypes and shapes of its tensors."""
    found = [leaf for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)]
    tensors = [f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" for x in found]
    return f"which has {', '.join(tensors)}" if tensors else f"a {type(batch).__name__}"


def _takes(model: nn.Module, batch: Sequence[object]) -> bool:
    """Whether the items of a batch are arguments of a model: an error is then of its own code."""
    try:
        inspect.signature(model.forward).bind(*batch)
    except TypeError:
        return False
    return True
