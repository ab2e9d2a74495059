"""How much one compressed layer changes what the model computes, on unlabelled data."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from vq_plugin.calibration import Calibration, run_calibration
from vq_plugin.codebook import CodebookWeight
from vq_plugin.nn import Slot
from vq_plugin.replace import put_parameter

# Accuracy falls when decisions change, not when the model gets less sure of them: at a quarter of
# the softmax's temperature the divergence follows the real loss best, see docs/decisions.
_SHARPNESS = 4.0


class OutputChange:
    """Measures the change of a model's output when one weight changes.

    Outputs of two or more columns (dimension 1) count as scores of classes: the harm is the
    Kullback-Leibler divergence, in nats per decision, of their sharpened softmax. All others count
    as values: the harm is the squared change over the variance.

    Example:
        >>> import vq_plugin as vq
        >>> model, batches = nn.Linear(4, 2), [torch.randn(8, 4)]
        >>> slot = vq.nn.find_slots(model)[""]
        >>> change = OutputChange(model, batches)
        >>> one, two = (vq.quantize_weight(slot.weight, vq.KM(k=k)) for k in (1, 8))
        >>> change(slot, one) > change(slot, two)
        True
    """

    def __init__(self, model: nn.Module, calibration: Calibration) -> None:
        """Runs the float model once; ValueError unless it returns float tensors, all finite."""
        self.model = model
        self.calibration = calibration
        self.reference = self._outputs(None, None)
        if not self.reference:
            raise ValueError("calibration gave no outputs: the model must return float tensors")
        if not all(bool(y.isfinite().all()) for y in self.reference):
            raise ValueError("the float model's outputs on the calibration data are not finite")

    def __call__(self, slot: Slot, small: CodebookWeight) -> float:
        """The harm of a compressed weight, and its bias shift; infinite without finite outputs."""
        outputs = self._outputs(slot, small)
        if [y.shape for y in outputs] != [y.shape for y in self.reference]:
            raise ValueError(
                "the shapes of the model's outputs depend on its weights, so that they cannot be "
                "compared: let the model return outputs of fixed shapes, or leave out calibration"
            )
        total = sum(map(_change, self.reference, outputs)) / len(outputs)
        return math.inf if math.isnan(total) else total

    @torch.no_grad()
    def _outputs(self, slot: Slot | None, small: CodebookWeight | None) -> list[Tensor]:
        # A copy of the structure alone: parameters are shared but for the changed one, which
        # takes its place wherever it is tied.
        memo: dict[int, object] = {id(p): p for p in self.model.parameters()}
        if slot is not None and small is not None:
            changes = [(slot.value, slot.view.restore(small.decode()))]
            if slot.bias is not None and small.bias_shift is not None:
                bias = getattr(slot.module, slot.bias)
                changes.append((bias, bias + small.bias_shift.to(bias)))
            memo |= {id(old): nn.Parameter(new, requires_grad=False) for old, new in changes}
        replica = copy.deepcopy(self.model, memo).eval()
        if slot is not None and small is not None and slot.parameter not in slot.module._parameters:
            module = memo[id(slot.module)]
            assert isinstance(module, nn.Module)
            put_parameter(module, slot.parameter, slot.view.restore(small.decode()))
        outputs: list[Tensor] = []
        replica.register_forward_hook(lambda _, __, output: outputs.extend(_tensors(output)))
        run_calibration(replica, self.calibration)
        return outputs


def _change(reference: Tensor, output: Tensor) -> float:
    if not reference.numel():
        return 0.0
    if reference.dim() > 1 and reference.shape[1] > 1:
        before = functional.log_softmax(_SHARPNESS * reference, 1)
        after = functional.log_softmax(_SHARPNESS * output, 1)
        divergence = (before.exp() * (before - after)).sum(1)
        return float(divergence.mean())
    # A batch of one sample has no variance.
    size = (reference - reference.mean(0)).square().mean() or reference.square().mean()
    return float((output - reference).square().mean() / size) if size > 0 else 0.0


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.double()] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if not isinstance(value, list | tuple):
        return []
    return [tensor for item in value for tensor in _tensors(item)]
