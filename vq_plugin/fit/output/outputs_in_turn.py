"""Codes chosen output by output, each making up for the errors of those before it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from vq_plugin.fit.output.across import Across
from vq_plugin.fit.output.feedback import Factor, descend, feedback
from vq_plugin.fit.output.objective import Objective, Quantized

# Outputs that are assigned side by side, and do not make up for each other.
_BLOCK = 16


def outputs_in_turn(
    objective: Objective, across: Across, quantized: Quantized, factor: Factor
) -> Quantized:
    """Assigns codes to some outputs after the other, those that count most first.

    Each is assigned for ``w_i + Σ_p U_ip·(w_p − q_p)``, with p the outputs of earlier blocks, by
    error feedback along its inputs and by descent. Codebooks stay; ``quantized`` itself where that
    does not lower ``tr(G·E·H·Eᵀ)``.
    """
    codes = quantized.codes.clone()
    # Of the outputs in order.
    errors = torch.zeros_like(objective.weight)
    for some in range(0, len(across.order), _BLOCK):
        here = slice(some, some + _BLOCK)
        outputs = across.order[here]
        asked = errors[:, :, :some] @ across.onward[here, :some].T
        part = replace(
            objective,
            weight=objective.weight[:, :, outputs] + asked,
            mass=objective.mass[outputs],
            zeros=None if objective.zeros is None else objective.zeros[:, :, outputs],
            across=None,
        )
        start = Quantized(codes[:, outputs].contiguous(), quantized.codebooks)
        placed = descend(part, feedback(part, start, factor))
        codes[:, outputs] = placed.quantized.codes.to(codes.dtype)
        errors[:, :, here] = placed.error - asked
    found = Quantized(codes, quantized.codebooks)
    before = _value(objective, across, quantized)
    return found if _value(objective, across, found) < before else quantized


def _value(objective: Objective, across: Across, quantized: Quantized) -> float:
    """``tr(G·E·H·Eᵀ)``."""
    error: Tensor = across.errors(objective.error(quantized))
    by_output = objective.metric.by_output(error, objective.metric.product(error))
    return float(by_output.flatten() @ across.mass)
