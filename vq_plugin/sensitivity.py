"""How much a model's outputs feel changes of its weights: one pass, there and back."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from vq_plugin.calibration import MOST_INPUTS, Calibration
from vq_plugin.calibration.model_calls import (
    SAMPLES,
    Call,
    calls,
    float_tensors,
    mapped,
    pieces,
    samples_of,
)
from vq_plugin.default_device import cpu_by_default
from vq_plugin.fit.output.believed import Believed, believed
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.parallel import deterministic_map, worker_pool
from vq_plugin.model_copy import copy_model
from vq_plugin.nn import Slot, find_slots
from vq_plugin.output_harm import Projected, decisions_or_values
from vq_plugin.replace import put_parameter

# Gradients that are enough: their mean square is off by a fourth.
_GRADIENTS = 32
# All that are kept, of a model of any size; but no fewer than a few.
_MOST_BYTES, _FEW = 1 << 29, 8
# Gradients of rows of a table, for each of its columns, that tell which changes of a row are felt.
_ENOUGH = 4
# Outputs of a layer of which it is asked what two do together: roots of twice as many take eight
# times as long.
_MOST_OUTPUTS = 2048

# A slot, and the mean input that a bias takes up: float32 ``(groups, inputs)``.
_Centered: TypeAlias = tuple[Slot, Tensor | None]


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """Gradients of random projections of a model's outputs with respect to one weight.

    Attributes:
        gradients: Bfloat16 ``(n, rows, inputs)``, of the rows of the weight that any reached.
        reached: Their indexes, ``(rows,)``.
        shape: Shape of the weight.
    """

    gradients: Tensor
    reached: Tensor
    shape: tuple[int, ...]

    def harm(self, change: Tensor) -> float:
        """What ``change``, added to the weight, does to the outputs: ``Δw F Δwᵀ``."""
        rows = change.detach().cpu().float().flatten(1)[self.reached]
        # On one thread: a sum may round differently on several.
        with worker_pool():
            products = [float((each * rows).sum(dtype=torch.float64)) for each in self.gradients]
        return sum(product**2 for product in products) / len(products)

    def rows(self) -> Tensor:
        """Mean squared norm of the gradient of each row, float64 ``(out,)``.

        Over the trace of the second moments M of the inputs it is ``s_r`` in ``Σ_r s_r · Δw_r M
        Δw_rᵀ``, which :meth:`harm` is where errors of rows are independent (as in Martens & Grosse
        2015, arXiv 1503.05671).
        """
        found = torch.zeros(self.shape[0], dtype=torch.float64, device="cpu")
        with worker_pool():
            squares = self.gradients.float().square().sum(2, dtype=torch.float64)
            found[self.reached] = squares.mean(0)
        return found

    def of_columns(self) -> Tensor | None:
        """What errors of two columns of a row do together: float32 ``(1, inputs, inputs)``.

        In ``Σ_r Δw_r G Δw_rᵀ``, up to a factor, whichever row it is: the sum of products of the
        gradients of all rows. ``None`` where these are too few to tell, or columns too many.
        """
        inputs = self.gradients.shape[2]
        if inputs > MOST_INPUTS:
            return None
        total = torch.zeros(inputs, inputs, dtype=torch.float32, device="cpu")
        rows = 0
        with worker_pool():
            for each in self.gradients:
                moved = each[each.any(1)].float()
                rows += len(moved)
                total += moved.T @ moved
        if rows < _ENOUGH * inputs:
            return None
        return (total / total.diagonal().mean()).unsqueeze(0)

    def of_looked_up(self) -> Tensor:
        """What outputs feel of each row of a table, as far as other data will: float64 ``(out,)``.

        Few rows are looked up often, in whatever data, and count for what is felt of them. Of all
        others the data at hand have a few by chance: they count alike, as much as those that were
        reached do in the mean.
        """
        rows = self.rows()
        return rows.maximum(rows[self.reached].mean())

    def of_row_errors(self, moments: Moments) -> Tensor:
        """The harm of an error of each row, over :meth:`Moments.row_errors`: float64 ``(out,)``."""
        inputs = moments.row_inputs(self.shape)
        return torch.where(inputs > 0, self.rows() / inputs, 0.0)

    def of_outputs(self, moments: Moments) -> Believed | None:
        """What is believed of what errors of two outputs do together: float32 ``(out, out)``.

        In ``Σ_rs G_rs · Δw_r M Δw_sᵀ``, with :meth:`of_row_errors` on the diagonal of G. ``None``
        where one half of the gradients denies what the other says
        (:func:`vq_plugin.fit.output.believed.believed`), and where outputs do not share their
        inputs or are too many.
        """
        outputs = self.shape[0]
        if outputs > _MOST_OUTPUTS or moments.second is None or len(moments.raw().diagonal) > 1:
            return None
        inputs = float(moments.row_inputs(self.shape)[0])
        if not inputs > 0:
            return None
        with worker_pool():
            # Neighbours are of like data: each half has some of all.
            its = believed(*(self._products(self.gradients[at::2]) for at in range(2)))
        if its is None:
            return None
        found = torch.zeros(outputs, outputs, dtype=torch.float32, device="cpu")
        each = its.together / (inputs * len(self.gradients))
        found[self.reached.unsqueeze(1), self.reached] = each.float()
        return Believed(found, its.doubt) if bool(found.any()) else None

    def _products(self, gradients: Tensor) -> Tensor:
        """``Σ g gᵀ`` over some gradients, of the rows that any reached: float64."""
        outputs = len(self.reached)
        total = torch.zeros(outputs, outputs, dtype=torch.float32, device="cpu")
        for each in gradients:
            rows = each.float()
            total.addmm_(rows, rows.T)
        return total.double()


def sensitivities(
    model: nn.Module,
    slots: Iterable[Slot],
    calibration: Calibration,
    moments: Mapping[str, Moments],
    *,
    projected: Projected | None = None,
    seed: int = 0,
    late: Callable[[], bool] = lambda: False,
) -> dict[str, Sensitivity]:
    """How sensitive the outputs of a model are to each of its weights, by the names of slots.

    To second order a change of weights changes outputs by ``Δw F Δwᵀ``, where F is the Fisher
    matrix (Amari 1998, "Natural gradient works efficiently in learning"). The mean of ``g gᵀ`` is
    F for gradients g of random projections of the outputs (Hutchinson's estimator), which one pass
    gives for all weights at once, and then for any change of them. It knows nothing of kinds of
    layers: gradients are those of parameters, however often and wherever they are used.

    Outputs of two or more classes (:func:`vq_plugin.output_harm.classes`) count as their scores:
    the harm is the Kullback-Leibler divergence, in nats per decision, of their softmax. All others
    count as values: the harm is the squared change over the variance.

    Args:
        model: Float model; it runs in eval mode, and is then left as it was.
        slots: Its weights.
        calibration: As for :func:`vq_plugin.compress`; a list or a callable, not an iterator that
            has run dry. At most 32 gradients are taken, of 16 samples each where batches can be
            cut, evenly from the whole; of fewer samples where there are not as many, and fewer
            gradients of models above 8 million weights. Tables do not count: of these few rows are
            looked up.
        moments: Of the inputs of the weights; their means say what biases take up.
        projected: What counts as harm: :func:`vq_plugin.output_harm.decisions_or_values`, the
            default, or its neighbour ``values``, for which all outputs are values.
        seed: Seed of the projections.
        late: Asked between gradients; once it says so, what there is has to do.

    Returns:
        Of each slot that gradients reach; a warning names the others.

    Raises:
        ValueError: If the outputs of the model are not finite.

    Example:
        >>> import vq_plugin as vq
        >>> model, batches = nn.Linear(4, 2), [torch.randn(8, 4)]
        >>> slot = vq.nn.find_slots(model)[""]
        >>> found = sensitivities(model, [slot], batches, {})[""]
        >>> one, two = (vq.quantize_weight(slot.weight, vq.KM(k=k)) for k in (1, 8))
        >>> found.harm(one.decode() - slot.weight) > found.harm(two.decode() - slot.weight)
        True
    """
    slots = list(slots)
    centered = [
        (slot, moments[slot.name].mean if slot.name in moments and slot.bias else None)
        for slot in slots
    ]
    # Of the whole model: the same gradients, whoever asks for some of them.
    weights = max(1, sum(parameter.numel() for parameter in _dense(model)))
    most = max(_FEW, min(_GRADIENTS, _MOST_BYTES // (2 * weights)))
    calls = _gradients(
        model, centered, calibration, projected or decisions_or_values, seed, most, late
    )
    found = {}
    for slot in slots:
        each = [call[slot.name] for call in calls if slot.name in call]
        # Rounding and cutting to size have gradients, too, of zeros, which say nothing.
        if any(len(rows) for _, rows in each):
            # On one thread: the work of two, in many small parts, waits for the second.
            with cpu_by_default(), worker_pool():
                found[slot.name] = _joined(each, len(calls), slot.view.shape)
    blind = [slot.name for slot in slots if slot.name not in found]
    if blind:
        warnings.warn(
            f"no gradient reaches {', '.join(blind)}: what errors of them do to the outputs is "
            "guessed from their relative size",
            stacklevel=2,
        )
    return found


def _dense(model: nn.Module) -> list[nn.Parameter]:
    """The parameters whose gradients are kept in whole; of tables, few rows are."""
    looked_up: dict[int, bool] = {}
    for slot in find_slots(model).values():
        alone = looked_up.get(id(slot.value), True)
        looked_up[id(slot.value)] = alone and slot.kind.looks_up
    return [each for each in model.parameters() if not looked_up.get(id(each), False)]


def felt_moments(
    slots: Iterable[Slot], moments: Mapping[str, Moments], felt: Mapping[str, Sensitivity]
) -> dict[str, Moments]:
    """Moments with what the outputs of the model feel of each row, by the names of ``slots``.

    Of those that are in both; of recurrent layers also what errors of two rows do together. Of a
    table, data move few rows, and the others are as good as these: but for those that are looked up
    often all count alike, and what is felt of each column, and of two together, is that of all
    rows.
    """
    found = {}
    for slot in slots:
        if slot.name not in moments or slot.name not in felt:
            continue
        its, each = moments[slot.name], felt[slot.name]
        if not slot.kind.looks_up:
            # In others than recurrent layers few errors make up for each other (decision 129).
            shared = each.of_outputs(its) if slot.kind.recurs else None
            together, doubt = shared or (None, 0.0)
            found[slot.name] = dataclasses.replace(
                its, outputs=each.of_row_errors(its), together=together, doubt=doubt
            )
        elif its.second is None and (columns := each.of_columns()) is not None:
            # How often a row was looked up is in what is felt of it.
            found[slot.name] = Moments(torch.ones(1), columns, outputs=each.of_looked_up())
    return found


# The rows of a gradient that are not 0, and their indexes.
_Rows: TypeAlias = tuple[Tensor, Tensor]


def _joined(each: list[_Rows], calls: int, shape: tuple[int, ...]) -> Sensitivity:
    reached = torch.cat([rows for _, rows in each]).unique()  # type: ignore[no-untyped-call]
    gradients = torch.zeros(calls, len(reached), each[0][0].shape[1], dtype=torch.bfloat16)
    for index, (values, rows) in enumerate(each):
        gradients[index, torch.searchsorted(reached, rows)] = values
    return Sensitivity(gradients, reached, shape)


def _gradients(
    model: nn.Module,
    slots: list[_Centered],
    calibration: Calibration,
    projected: Projected,
    seed: int,
    most: int,
    late: Callable[[], bool],
) -> list[dict[str, _Rows]]:
    """Gradients with respect to the slots that any reaches, of some of the data each."""
    whole = calls(model, calibration)
    samples = min(SAMPLES, max(1, sum(map(samples_of, whole)) // most))
    parts = [part for call in whole for part in pieces(call, samples)]
    step = max(1.0, len(parts) / most)
    chosen = [parts[int(at * step)] for at in range(min(len(parts), most))]

    def run(item: tuple[int, list[Call]]) -> dict[str, _Rows] | None:
        index, ways = item
        if index and late():
            return None
        for way in ways[:-1]:
            # What looks like samples may be anything: then the whole batch it is.
            try:
                return _of_call(model, slots, way, projected, seed + index)
            except (RuntimeError, TypeError, IndexError):
                pass
        return _of_call(model, slots, ways[-1], projected, seed + index)

    # As in fits: pieces of the work, each on one thread.
    with worker_pool():
        found = deterministic_map(run, enumerate(chosen))
    return [each for each in found if each is not None]


def _of_call(
    model: nn.Module, slots: list[_Centered], call: Call, projected: Projected, seed: int
) -> dict[str, _Rows]:
    # The fused recurrence of cuDNN has no pass back in eval mode.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.backends.cudnn.flags(enabled=False),
    ):
        replica, leaves = _replica(model, slots)
        args, kwargs = mapped(_plain, call)
        output = replica(*args, **kwargs)
        generator = torch.Generator("cpu").manual_seed(seed)
        projection = _projection(output, projected, generator)
        return _of_slots(projection, slots, leaves)


def _replica(model: nn.Module, slots: list[_Centered]) -> tuple[nn.Module, list[Tensor | None]]:
    """A copy of the structure alone, and the weights and biases that it computes with, in turn."""
    # What was made in inference mode is copied: on the way back it would be an error.
    memo: dict[int, object] = {
        id(p): nn.Parameter(p.detach().clone(), p.requires_grad) if p.is_inference() else p
        for p in model.parameters()
    }
    for slot, mean in slots:
        biases = [] if mean is None else [getattr(slot.module, slot.bias or "")]
        for value in (slot.value, *biases):
            memo[id(value)] = nn.Parameter(_plain(value.detach()))
    replica = copy_model(model, memo).eval()
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


def _of_slots(
    projection: Tensor | None, slots: list[_Centered], leaves: list[Tensor | None]
) -> dict[str, _Rows]:
    if projection is None:
        return {}
    wanted = [leaf for leaf in leaves if leaf is not None]
    try:
        taken = iter(torch.autograd.grad(projection, wanted, allow_unused=True))
    except RuntimeError:
        # Something on the way has no pass back.
        return {}
    gradients = [None if leaf is None else next(taken) for leaf in leaves]
    by_slot = {}
    for (slot, mean), weight, bias in zip(slots, gradients[::2], gradients[1::2], strict=True):
        if weight is None:
            continue
        rows = slot.view.weight(weight).flatten(1).float()
        if mean is not None and bias is not None:
            # The bias takes up what the mean input does.
            each = mean.to(rows).repeat_interleave(len(rows) // len(mean), 0)
            rows = rows - bias.float().unsqueeze(1) * each
        # Few rows of a table are looked up.
        reached = rows.any(1).nonzero().flatten()
        by_slot[slot.name] = rows[reached].bfloat16().cpu(), reached.cpu()
    return by_slot
