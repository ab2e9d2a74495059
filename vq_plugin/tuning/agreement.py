"""How far the outputs of a model agree with those of the float model, whatever a metric says."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from vq_plugin.calibration import Calibration
from vq_plugin.calibration.model_calls import Call, calls, float_tensors, samples_of
from vq_plugin.eval_mode import eval_mode
from vq_plugin.output_harm import classes, harm_of_change
from vq_plugin.replace import assemble
from vq_plugin.tuning.trials import evaluate_once

#: Models that agree so far are as good or bad as each other.
ALIKE: Final = 0.9
# Samples that are enough to tell a good model from a ruined one, and bytes of their outputs.
_SAMPLES, _MOST_BYTES = 256, 1 << 27
# What a call may hold that is to be made again.
_VALUES = (Tensor, bool, int, float, str, type(None))


class Agreement:
    """Agreement with one float model on some of its calibration data, from 0 to 1.

    Of each output it is what speaks better for the model: by how much decisions agree beyond chance
    (the largest of :func:`vq_plugin.output_harm.classes`; kappa of Cohen 1960, "A coefficient of
    agreement for nominal scales"), or the part of the variance that is explained. Outputs that are
    not finite agree with nothing.
    """

    def __init__(self, model: nn.Module, calibration: Calibration) -> None:
        """The model runs, on at most 256 samples, when another is first compared with it."""
        self.model, self.calibration = model, calibration

    @cached_property
    def _expected(self) -> list[tuple[Call, list[Tensor]]]:
        found: list[tuple[Call, list[Tensor]]] = []
        seen = kept = 0
        for call in calls(self.model, self.calibration):
            outputs = _run(self.model, call)
            found.append((call, outputs))
            seen += max(1, samples_of(call))
            kept += sum(y.numel() * y.element_size() for y in outputs)
            if seen >= _SAMPLES or kept >= _MOST_BYTES:
                break
        return found

    def __call__(self, small: nn.Module) -> float | None:
        """Of a compressed model; ``None`` if there is nothing to compare."""
        return agreement_of(self.outputs(small))

    @property
    def samples(self) -> int:
        """How many are compared, as far as the first sizes of inputs tell."""
        return sum(max(1, samples_of(call)) for call, _ in self._expected)

    def harm_of(self, change: float) -> float | None:
        """The harm of a change of the outputs, over their variance; ``None`` if there are none."""
        expected = [outputs for _, outputs in self._expected]
        try:
            joined = [_joined(each) for each in zip(*expected, strict=True)]
        except (ValueError, RuntimeError):
            return None
        each = [harm_of_change(y, change) for y in joined if y.numel()]
        return sum(each) / len(each) if each else None

    def outputs(self, other: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Outputs of the model and of another one, in pairs of float64 tensors of equal shapes."""
        expected = [outputs for _, outputs in self._expected]
        found = [_run(other, call) for call, _ in self._expected]
        try:
            pairs = [
                (_joined(one), _joined(two))
                for one, two in zip(
                    zip(*expected, strict=True), zip(*found, strict=True), strict=True
                )
            ]
        except (ValueError, RuntimeError):
            # Outputs of other numbers or shapes from call to call.
            return []
        return [(one, two) for one, two in pairs if one.numel() and one.shape == two.shape]


def of_evaluation(
    model: nn.Module, evaluate: Callable[[nn.Module], object], small: nn.Module
) -> float | None:
    """Agreement where there is no calibration data: on what an evaluation gives the model.

    Args:
        model: The float model; ``evaluate`` runs a copy of it once more.
        evaluate: The user's function; what it raises and returns is of no interest.
        small: A compressed model.

    Returns:
        As of :class:`Agreement`; ``None`` if ``evaluate`` does not call the model itself, or with
        what no second call can be made, or if outputs are a loss of all samples.
    """
    found: list[Call] = []
    left = [_SAMPLES, _MOST_BYTES]

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if min(left) > 0 and all(isinstance(leaf, _VALUES) for leaf in tree_leaves((args, kwargs))):
            found.append(_copied((args, kwargs)))
            left[0] -= max(1, samples_of((args, kwargs)))
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            left[1] -= sum(tensor.nbytes for tensor in tensors)

    recorded = assemble(model, {})
    recorded.register_forward_pre_hook(record, with_kwargs=True)
    evaluate_once(evaluate, recorded, "evaluate")

    def again(other: nn.Module) -> None:
        for args, kwargs in map(_copied, found):
            other(*args, **kwargs)

    try:
        outputs = Agreement(assemble(model, {}), again).outputs(small) if found else []
    except Exception:  # noqa: BLE001 - what the model remembers of the calls before, say
        return None
    return agreement_of(
        [pair for pair in outputs if pair[0].dim() > 1 or len(pair[0]) > len(found)]
    )


def _copied(call: Call) -> Call:
    """A call with tensors of its own: models write into caches that they are given."""
    copied: Call = tree_map_only(Tensor, lambda tensor: tensor.detach().clone(), call)
    return copied


def agreement_of(outputs: list[tuple[Tensor, Tensor]]) -> float | None:
    """The mean agreement of pairs of :meth:`Agreement.outputs`; ``None`` if there are none."""
    each = [_agreement(one, other) for one, other in outputs]
    return sum(each) / len(each) if each else None


def _run(model: nn.Module, call: Call) -> list[Tensor]:
    args, kwargs = call
    with eval_mode(model), torch.no_grad():
        return [y.detach().cpu() for y in float_tensors(model(*args, **kwargs))]


def _joined(outputs: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([y.unsqueeze(0) if y.dim() == 0 else y for y in outputs]).double()


def _agreement(expected: Tensor, output: Tensor) -> float:
    if not bool(output.isfinite().all()):
        return 0.0
    spread = (expected - expected.mean(0)).square().sum()
    error = (output - expected).square().sum()
    explained = max(0.0, float(1 - error / spread)) if bool(spread > 0) else float(error == 0)
    dimension = classes(expected)
    if dimension is None:
        return explained
    decided = (each.argmax(dimension).flatten() for each in (expected, output))
    return max(explained, _kappa(*decided))


def _kappa(expected: Tensor, found: Tensor) -> float:
    same = float((expected == found).double().mean())
    parts = [torch.bincount(each, minlength=int(expected.max()) + 1) for each in (expected, found)]
    shared = min(map(len, parts))
    chance = float((parts[0][:shared] * parts[1][:shared]).sum()) / len(expected) ** 2
    return same if chance == 1 else (same - chance) / (1 - chance)
