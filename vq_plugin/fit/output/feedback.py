"""Codes chosen input by input, each making up for the error of the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vq_plugin.fit.output.objective import Objective, Placed, Quantized
from vq_plugin.fit.output.root import Root, root_of, step_columns
from vq_plugin.fit.output.sweep import sweep


@dataclass(frozen=True)
class Factor:
    """``H = M·Mᵀ`` with the steps in order, the largest inputs first, and ``columns`` their inputs.

    The root M is zero below the blocks on its diagonal.
    """

    order: Tensor
    columns: Tensor
    root: Root

    @classmethod
    def of(cls, objective: Objective, quantized: Quantized) -> Factor:
        """Of the metric of an objective, for steps as long as its codebooks want them."""
        metric, dim = objective.metric, _step_length(objective, quantized)
        size = metric.diagonal.sum(0).reshape(-1, dim).sum(1)
        order = size.argsort(descending=True, stable=True)
        return cls(order, step_columns(order, dim), root_of(metric, order, dim))

    def value(self, objective: Objective, quantized: Quantized) -> float:
        """The objective of codes and codebooks."""
        error = objective.error(quantized)[:, self.columns]
        return objective.total(self.root.by_output(error))


def feedback(objective: Objective, quantized: Quantized, factor: Factor) -> Placed:
    """Assigns codes to one input (or ``dim`` of them) after the other, largest inputs first.

    With ``H = M·Mᵀ`` the objective is ``Σ_j ‖e_j·M_jj + Σ_i e_i·M_ij‖²``, where i runs over the
    inputs before j: each input sees the errors that its choice can make up for. That is GPTQ
    (Frantar et al. 2022, arXiv 2210.17323) without an inverse, and for sub-vectors along the inputs
    GPTVQ (van Baalen et al. 2024, arXiv 2402.15319) with the metric ``M_jj·M_jjᵀ``. Codebooks stay.
    """
    base = objective.weight[:, factor.columns]
    coupling = factor.root.coupling(base)
    codes, change = sweep(
        objective, quantized, order=factor.order, coupling=coupling,
        factor=coupling.blocks(_step_length(objective, quantized)), base=base,
    )  # fmt: skip
    del base  # What is held at once is as large as the weight.
    error = torch.empty_like(change)
    error[:, factor.columns] = change
    return Placed(Quantized(codes, quantized.codebooks), error, factor.root.product(coupling.state))


def descend(objective: Objective, placed: Placed) -> Placed:
    """Assigns codes to one input (or ``dim`` of them) at a time, all others being as they are.

    Coordinate descent on the objective: each choice is the best one for the errors of all other
    inputs. Codebooks stay.
    """
    dim = _step_length(objective, placed.quantized)
    coupling = objective.metric.coupling(placed.error, placed.product, dim)
    factor = torch.linalg.cholesky(coupling.blocks(dim).double()).float()
    codes, change = sweep(
        objective, placed.quantized, order=torch.arange(factor.shape[1]), coupling=coupling,
        factor=factor, base=objective.weight - placed.error,
    )  # fmt: skip
    quantized = Quantized(codes, placed.quantized.codebooks)
    return Placed(quantized, change.add_(placed.error), coupling.state)


def _step_length(objective: Objective, quantized: Quantized) -> int:
    return 1 if objective.along_out else quantized.codebooks.shape[4]
