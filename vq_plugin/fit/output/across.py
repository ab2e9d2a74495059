"""What errors of two outputs of a layer do together, to the outputs of the model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# What an output counts at least, as a part of the mean: where nothing is felt of one on the data at
# hand, it would take up the errors of all others.
_FLOOR = 0.05


@dataclass(frozen=True)
class Across:
    """``G = Uᵀ·diag(mass)·U`` with the outputs in an order, those that count most first.

    The objective ``tr(G·E·H·Eᵀ)``, E of one output a row, is ``Σ_i mass_i · e_i·H·e_iᵀ`` of
    ``e_i = E_i + Σ_p U_ip·E_p``, where p runs over the outputs before i: an output that is assigned
    after others can make up for their errors. As inputs do in error feedback; on both sides that is
    YAQA's (Tseng et al. 2025, arXiv 2505.22988).

    Attributes:
        order: The outputs, ``(outputs,)``.
        onward: U, float32 ``(outputs, outputs)``, in order, with ones on its diagonal.
        mass: What is left of each that those after it cannot make up for: float64, in order.
    """

    order: Tensor
    onward: Tensor
    mass: Tensor

    @classmethod
    def of(cls, together: Tensor, scale: Tensor | None) -> Across | None:
        """Of what outputs do together, for weights that are divided by row scales.

        ``None`` where nothing is felt, or where no two do anything together.
        """
        matrix = together.cpu().double()
        if scale is not None:
            wide = scale.double()
            matrix = matrix * wide.unsqueeze(1) * wide
        size = matrix.diagonal()
        if not bool(size.max() > 0) or not bool((matrix - size.diag()).any()):
            return None
        order = size.argsort(descending=True, stable=True)
        backward = order.flip(0)
        lower = floored_root(matrix[backward][:, backward], _FLOOR)
        # What is factored from the first to the last is taken from the last to the first.
        root = lower.flip(0, 1)
        diagonal = root.diagonal()
        return cls(order, (root / diagonal).T.float(), diagonal.square())

    def errors(self, error: Tensor) -> Tensor:
        """``e`` of errors ``(1, inputs, outputs)``, its outputs in order."""
        return error[:, :, self.order] @ self.onward.T


def floored_root(matrix: Tensor, least: float) -> Tensor:
    """``L`` of ``L·Lᵀ``, a matrix whose diagonal has ``least`` of its mean added: lower."""
    found = matrix.clone()
    found.diagonal().add_(least * matrix.diagonal().mean())
    lower: Tensor = torch.linalg.cholesky(found)
    return lower


def shrunk(matrix: Tensor, part: float) -> Tensor:
    """Less a part of all that is off the diagonal."""
    found = matrix * (1 - part)
    found.diagonal().copy_(matrix.diagonal())
    return found
