"""How much a model's outputs feel a change of each row of its weights: one pass, there and back."""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from vq_plugin.calibration import Calibration, run_calibration
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.parallel import deterministic_map, worker_pool
from vq_plugin.nn import Slot
from vq_plugin.replace import put_parameter

# Accuracy falls when decisions change, not when the model gets less sure of them: at half of the
# softmax's temperature the divergence follows the real loss best, see docs/decisions.
_SHARPNESS = 2.0
# Samples of a batch that give one gradient: more gradients say more than more samples in each, and
# what a pass back needs is kept meanwhile.
_SAMPLES = 16
# Gradients that are enough: their mean square is off by a fourth, alike for all rows of a weight.
_GRADIENTS = 32

#: A seeded random number whose mean square, over the seeds, is the harm of a change of an output.
Projected: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]

# A slot, and the mean input that a bias takes up: float32 ``(groups, inputs)``.
_Centered: TypeAlias = tuple[Slot, Tensor | None]


def row_sensitivities(
    model: nn.Module,
    slots: Iterable[Slot],
    calibration: Calibration,
    moments: Mapping[str, Moments],
    *,
    projected: Projected | None = None,
    seed: int = 0,
) -> dict[str, Tensor]:
    """What errors of the rows of weights do to the outputs of a model, by the names of slots.

    The second-order change of the outputs is ``Δw F Δwᵀ`` with the Fisher matrix F (Amari 1998,
    "Natural gradient works efficiently in learning"), here of ``s_r · M`` for each row r of a
    weight, where M are the second moments of its inputs, as in Martens & Grosse 2015
    (arXiv 1503.05671): ``harm = Σ_r s_r · Δw_r M Δw_rᵀ``, with :meth:`Moments.row_errors` for the
    product. The mean squared gradients of seeded random projections of the outputs are ``s_r``
    times the trace of M. It knows nothing of kinds of layers: gradients are those of parameters,
    however often and wherever they are used.

    Outputs of two or more columns (dimension 1) count as scores of classes: the harm is the
    Kullback-Leibler divergence, in nats per decision, of their sharpened softmax. All others count
    as values: the harm is the squared change over the variance.

    Args:
        model: Float model; it runs in eval mode, and is then left as it was.
        slots: Its weights.
        calibration: As for :func:`vq_plugin.compress`; a list or a callable, not an iterator that
            has run dry. At most 32 gradients are taken, of 16 samples each where batches can be
            cut, evenly from the whole.
        moments: Of the inputs of the weights; where one is missing its inputs count alike.
        projected: What counts as harm: :func:`decisions_or_values`, the default, or
            :func:`values`, for which every output counts as values.
        seed: Seed of the projections.

    Returns:
        Float64 ``(out,)`` for each slot. Weights that no gradient reaches are named in a warning,
        and are taken to be as sensitive as the others: the same relative error of a layer's output
        does the same harm.

    Raises:
        ValueError: If the outputs of the model are not finite.

    Example:
        >>> import vq_plugin as vq
        >>> from vq_plugin.calibration import input_moments
        >>> model, batches = nn.Linear(4, 2), [torch.randn(8, 4)]
        >>> slots = vq.nn.find_slots(model).values()
        >>> moments = input_moments(model, slots, batches)
        >>> row_sensitivities(model, slots, batches, moments)[""].shape
        torch.Size([2])
    """
    slots = list(slots)
    means = {
        slot.name: moments[slot.name].mean
        for slot in slots
        if slot.name in moments and slot.bias is not None
    }
    gradients = _mean_squares(
        model,
        [(slot, means.get(slot.name)) for slot in slots],
        calibration,
        projected or decisions_or_values,
        seed,
    )
    found: dict[str, Tensor] = {}
    sizes: dict[str, Tensor] = {}
    for slot in slots:
        weight = slot.weight.detach()
        known = moments.get(slot.name) or Moments(torch.ones(()))
        sizes[slot.name] = known.row_errors(weight)
        if slot.name in gradients:
            trace = known.row_inputs(weight.shape)
            found[slot.name] = torch.where(trace > 0, gradients[slot.name] / trace, 0.0)
    blind = [slot.name for slot in slots if slot.name not in found]
    if blind:
        warnings.warn(
            f"no gradient reaches {', '.join(blind)}: what errors of them do to the outputs is "
            "guessed from their relative size",
            stacklevel=2,
        )
    totals = [float(found[name] @ sizes[name]) for name in found]
    typical = statistics.median(totals) if totals else 1.0
    for name in blind:
        size = float(sizes[name].sum())
        found[name] = torch.full_like(sizes[name], typical / size if size > 0 else 0.0)
    return found


def _mean_squares(
    model: nn.Module,
    slots: list[_Centered],
    calibration: Calibration,
    projected: Projected,
    seed: int,
) -> dict[str, Tensor]:
    """Mean squared norms of the gradients of rows, ``(out,)``, of the slots that any reaches."""
    if isinstance(calibration, Iterable):
        parts = [part for batch in calibration for part in _parts(batch)]
        step = max(1.0, len(parts) / _GRADIENTS)
        chosen = [parts[int(at * step)] for at in range(min(len(parts), _GRADIENTS))]

        def run(item: tuple[int, list[object]]) -> list[dict[str, Tensor]]:
            index, ways = item
            for way in ways[:-1]:
                # What looks like samples may be anything: then the whole batch it is.
                try:
                    return _squares(model, slots, [way], projected, seed + index)
                except (RuntimeError, TypeError, IndexError):
                    pass
            return _squares(model, slots, [ways[-1]], projected, seed + index)

        # As in fits: pieces of the work, each on one thread.
        with worker_pool():
            squares = [each for some in deterministic_map(run, enumerate(chosen)) for each in some]
    else:
        with worker_pool():
            squares = _squares(model, slots, calibration, projected, seed)
    names = {name for each in squares for name in each}
    return {
        slot.name: torch.stack([each[slot.name] for each in squares if slot.name in each]).sum(0)
        / len(squares)
        for slot, _ in slots
        if slot.name in names
    }


def _parts(batch: object) -> Iterator[list[object]]:
    """Some samples of a batch, and as the last way out the batch itself."""
    items = list(batch.values()) if isinstance(batch, Mapping) else batch
    tensors = [items] if isinstance(items, Tensor) else items
    lengths = (
        {len(each) if isinstance(each, Tensor) and each.dim() else 0 for each in tensors}
        if isinstance(tensors, list | tuple)
        else {0}
    )
    if len(lengths) != 1 or max(lengths) <= _SAMPLES:
        yield [batch]
        return
    for start in range(0, max(lengths), _SAMPLES):
        rows = slice(start, start + _SAMPLES)
        yield [tree_map(lambda each, rows=rows: each[rows], batch), batch]


def _squares(
    model: nn.Module,
    slots: list[_Centered],
    calibration: Calibration,
    projected: Projected,
    seed: int,
) -> list[dict[str, Tensor]]:
    """Squared norms of the gradients of rows, one by one of the calls of the model."""
    replica, leaves = _replica(model, slots)
    generator = torch.Generator().manual_seed(seed)
    squares: list[dict[str, Tensor]] = []
    modes = ExitStack()

    def before(_: nn.Module, args: Any, kwargs: Any) -> Any:
        # Calibration, ours and the user's, runs without gradients.
        if len(squares) < _GRADIENTS:
            modes.enter_context(torch.inference_mode(False))
            modes.enter_context(torch.enable_grad())
        return tree_map(_plain, (args, kwargs))

    def after(_: nn.Module, __: Any, output: object) -> None:
        if len(squares) < _GRADIENTS:
            squares.append(_of_rows(_projection(output, projected, generator), slots, leaves))
        modes.close()

    replica.register_forward_pre_hook(before, with_kwargs=True)
    replica.register_forward_hook(after)
    # Its own fused recurrence has no pass back in eval mode.
    with modes, torch.backends.cudnn.flags(enabled=False):
        run_calibration(replica, calibration)
    return squares


def _replica(model: nn.Module, slots: list[_Centered]) -> tuple[nn.Module, list[Tensor | None]]:
    """A copy of the structure alone, and the weights and biases that it computes with, in turn."""
    memo: dict[int, object] = {id(p): p for p in model.parameters()}
    for slot, mean in slots:
        biases = [] if mean is None else [getattr(slot.module, slot.bias or "")]
        for value in (slot.value, *biases):
            memo[id(value)] = nn.Parameter(_plain(value.detach()))
    replica = copy.deepcopy(model, memo).eval()
    leaves: list[Tensor | None] = []
    for slot, mean in slots:
        module = memo[id(slot.module)]
        assert isinstance(module, nn.Module)
        if slot.parameter not in slot.module._parameters:
            put_parameter(module, slot.parameter, _plain(slot.value.detach()))
            module.requires_grad_(True)
        bias = None if mean is None or slot.bias is None else getattr(module, slot.bias)
        leaves += [getattr(module, slot.parameter), bias]
    return replica, leaves


def _plain(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and value.is_inference() else value


def _projection(output: object, projected: Projected, generator: torch.Generator) -> Tensor | None:
    """A number whose squared change is the harm of a change of the outputs, in expectation."""
    outputs = [y for y in float_tensors(output) if y.numel()]
    if not all(bool(y.isfinite().all()) for y in outputs):
        raise ValueError("the float model's outputs on the calibration data are not finite")
    found = [projected(y.double(), generator) for y in outputs if y.requires_grad]
    return torch.stack(found).sum() / len(outputs) ** 0.5 if found else None


def decisions_or_values(y: Tensor, generator: torch.Generator) -> Tensor:
    """A number of the change of outputs: of decisions from two columns on, else of values."""
    return _decisions(y, generator) if y.dim() > 1 and y.shape[1] > 1 else values(y, generator)


def _decisions(y: Tensor, generator: torch.Generator) -> Tensor:
    noise = _noise(y, generator)
    # A root of the curvature of the divergence: of diag(p) - p pᵀ.
    root = (_SHARPNESS * y.detach()).softmax(1).sqrt()
    noise = root * (noise - root * (root * noise).sum(1, keepdim=True))
    return (y * noise).sum() * (_SHARPNESS / math.sqrt(2 * y.numel() // y.shape[1]))


def values(y: Tensor, generator: torch.Generator) -> Tensor:
    """A number whose mean square is the squared change of outputs over their variance."""
    value = y.detach()
    # A batch of one sample has no variance.
    size = float((value - value.mean(0)).square().mean()) or float(value.square().mean())
    if size == 0:
        return (y * 0.0).sum()
    return (y * _noise(y, generator)).sum() / math.sqrt(size * y.numel())


def _noise(y: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.device)


def _of_rows(
    projection: Tensor | None, slots: list[_Centered], leaves: list[Tensor | None]
) -> dict[str, Tensor]:
    if projection is None:
        return {}
    wanted = [leaf for leaf in leaves if leaf is not None]
    try:
        found = iter(torch.autograd.grad(projection, wanted, allow_unused=True))
    except RuntimeError:
        # Something on the way has no pass back.
        return {}
    gradients = [None if leaf is None else next(found) for leaf in leaves]
    squares = {}
    for (slot, mean), weight, bias in zip(slots, gradients[::2], gradients[1::2], strict=True):
        if weight is None:
            continue
        rows = slot.view.weight(weight).flatten(1).double()
        if mean is not None and bias is not None:
            # The bias takes up what the mean input does.
            each = mean.to(rows).repeat_interleave(len(rows) // len(mean), 0)
            rows = rows - bias.double().unsqueeze(1) * each
        squares[slot.name] = rows.square().sum(1).cpu()
    return squares


def float_tensors(value: object) -> Iterator[Tensor]:
    """The float tensors in what a model returned: a tensor, or a collection, however nested."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
        return
    items: Iterable[object] = ()
    if isinstance(value, Mapping):
        items = value.values()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = (getattr(value, each.name) for each in dataclasses.fields(value))
    elif isinstance(value, list | tuple):
        items = value
    for item in items:
        yield from float_tensors(item)
