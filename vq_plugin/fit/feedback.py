"""Codes chosen input by input, each making up for the error of the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vq_plugin.fit.assignment import Batch
from vq_plugin.fit.beam import nearest_sum
from vq_plugin.fit.objective import Fitted, Objective

# Inputs after which the error reaches all others at once, as one matrix product.
_BLOCK = 64
_LEAST = 1e-8


def feedback(objective: Objective, fitted: Fitted) -> Fitted:
    """Assigns codes to one input (or ``dim`` of them) after the other, largest inputs first.

    With ``H = L·Lᵀ`` the objective is ``Σ_j ‖e_j·L_jj + Σ_i e_i·L_ij‖²``, where i runs over the
    inputs after j in the order of ``L``. Taken from the last to the first, each input sees the
    errors that its choice can make up for. That is GPTQ (Frantar et al. 2022, arXiv 2210.17323)
    without an inverse, and for sub-vectors along the inputs GPTVQ (van Baalen et al. 2024, arXiv
    2402.15319) with the metric ``L_jj·L_jjᵀ``.

    Args:
        objective: What to lower.
        fitted: Its codebooks are used and kept.

    Returns:
        New codes, and the codebooks.
    """
    dim = _step_length(objective, fitted)
    size = objective.hessian.diagonal(0, 1, 2).sum(0).reshape(-1, dim).sum(1)
    order = size.argsort(descending=True, stable=True)
    columns = _columns(order.flip(0), dim)
    permuted = objective.hessian[:, columns][:, :, columns]
    factor = torch.linalg.cholesky(permuted.double()).float()
    # Back at the inputs' own places.
    matrix = torch.empty_like(factor)
    matrix[:, columns.unsqueeze(1), columns] = factor
    nothing = torch.zeros_like(objective.weight)
    own = _own_blocks(matrix, dim)
    return _sweep(objective, fitted, matrix, own, order, nothing, nothing.clone())


def descend(objective: Objective, fitted: Fitted) -> Fitted:
    """Assigns codes to one input (or ``dim`` of them) at a time, all others being as they are.

    Coordinate descent on the objective: each choice is the best one for the errors of all other
    inputs.

    Args:
        objective: What to lower.
        fitted: Where to start.

    Returns:
        New codes, and the codebooks.
    """
    dim = _step_length(objective, fitted)
    hessian = objective.hessian
    factors = torch.linalg.cholesky(_own_blocks(hessian, dim).double()).float()
    order = torch.arange(factors.shape[1])
    error = objective.weight - objective.decode(fitted)
    return _sweep(objective, fitted, hessian, factors, order, error, objective.pull(error))


def _step_length(objective: Objective, fitted: Fitted) -> int:
    return 1 if objective.along_out else fitted.codebooks.shape[4]


def _columns(steps: Tensor, dim: int) -> Tensor:
    return (steps.unsqueeze(1) * dim + torch.arange(dim)).flatten()


def _own_blocks(matrix: Tensor, dim: int) -> Tensor:
    """The blocks on the diagonal, ``(groups, steps, dim, dim)``."""
    groups, inputs, _ = matrix.shape
    blocks = matrix.reshape(groups, inputs // dim, dim, inputs // dim, dim)
    return blocks.diagonal(0, 1, 3).permute(0, 3, 1, 2)


def _sweep(
    objective: Objective,
    fitted: Fitted,
    matrix: Tensor,
    factors: Tensor,
    order: Tensor,
    error: Tensor,
    pull: Tensor,
) -> Fitted:
    """Assigns every step in turn to ``w + pull of the other inputs``.

    Args:
        objective: Gives the weight.
        fitted: Codes to start from, and codebooks.
        matrix: How the error of one input counts at another, ``(groups, inputs, inputs)``.
        factors: Lower factor of every step's metric, ``(groups, steps, dim, dim)``.
        order: Of the steps.
        error: Of the inputs so far, ``(groups, inputs, outputs)``; changed.
        pull: ``matrixᵀ · error``; changed.
    """
    dim = factors.shape[2]
    inverse = torch.linalg.inv(_own_blocks(matrix, dim).double()).float()
    assigner = _Assigner(objective, fitted)
    for some in torch.split(order, max(1, _BLOCK // dim)):
        columns = _columns(some, dim)
        rows = matrix[:, columns]
        inner = rows[:, :, columns]
        weight, own, pulled = objective.weight[:, columns], error[:, columns], pull[:, columns]
        before = own.clone()
        for i, step in enumerate(some.tolist()):
            here = slice(i * dim, (i + 1) * dim)
            square, mine, original = inner[:, here, here], own[:, here], weight[:, here]
            others = torch.baddbmm(pulled[:, here], square.mT, mine, alpha=-1)
            # Row vectors times the inverse; these are columns.
            target = torch.baddbmm(original, inverse[:, step].mT, others)
            left = original - assigner.assign(step, target, factors[:, step])
            pulled.baddbmm_(inner[:, here].mT, left - mine)
            mine.copy_(left)
        error[:, columns] = own
        pull += rows.mT @ (own - before)
    return Fitted(assigner.codes, fitted.codebooks)


@dataclass
class _Assigner:
    """Codes of one step at a time.

    Attributes:
        objective: Gives shapes, and the zeros that stay.
        fitted: Gives the codebooks.
        codes: The codes so far, int64, ``(stages, rows, subspaces)``.
    """

    objective: Objective
    fitted: Fitted

    def __post_init__(self) -> None:
        self.codes = self.fitted.codes.long()
        self._importance: Tensor | None = None
        mass, dim = self.objective.mass, self.fitted.codebooks.shape[4]
        if self.objective.along_out and not bool((mass > 0).all()):
            # Padding, which must not choose.
            self._importance = (mass > 0).float().clamp_min(_LEAST).reshape(-1, dim)
        if self.objective.zeros is not None:
            tables = self.fitted.codebooks[0, :, 0, :, 0]
            self._zero_code = (tables == 0).float().argmax(1)
            self._has_zero = (tables == 0).any(1)

    def assign(self, step: int, target: Tensor, factor: Tensor) -> Tensor:
        """Codes of one step.

        Args:
            step: Index of the input (or of ``dim`` of them).
            target: What would be best, ``(groups, dim, outputs)``.
            factor: Lower factor of the metric, ``(groups, dim, dim)``.

        Returns:
            What was chosen instead, of the same shape.
        """
        if self.objective.along_out:
            return self._along_out(step, target)
        tables = self.fitted.codebooks[:, :, min(step, self.fitted.codebooks.shape[2] - 1)]
        if target.shape[1] == 1:
            return self._single(step, target, tables)
        groups, dim, outputs = target.shape
        points = target.mT @ factor
        centers = tables @ factor
        before = self.codes[:, :, step].reshape(len(tables), groups, outputs)
        codes = nearest_sum(Batch(points, None), centers, before).reshape(len(tables), -1)
        self.codes[:, :, step] = codes
        chosen = _sum_of(tables[:, 0], codes)
        return chosen.reshape(groups, outputs, dim).mT

    def _along_out(self, step: int, target: Tensor) -> Tensor:
        codebooks, dim = self.fitted.codebooks[:, 0], self.fitted.codebooks.shape[4]
        points = target.reshape(-1, dim)
        importance, shared = self._importance, codebooks.shape[1] == 1
        books = 0 if shared else 1
        batch = Batch(
            points.unsqueeze(books),
            None if importance is None else importance.unsqueeze(books),
        )
        before = self.codes[:, step].unsqueeze(books + 1)
        codes = nearest_sum(batch, codebooks, before).reshape(len(codebooks), -1)
        self.codes[:, step] = codes
        flat = codes if shared else codes + torch.arange(len(points)) * codebooks.shape[2]
        return _sum_of(codebooks.flatten(1, 2), flat).reshape(target.shape)

    def _single(self, step: int, target: Tensor, tables: Tensor) -> Tensor:
        """One weight per code; groups of rows may have tables of their own."""
        stages, groups, k, _ = tables.shape
        values = target.flatten()
        rows = self.objective.row_group if groups > 1 else len(values)
        assert rows is not None
        padded = functional.pad(values, (0, groups * rows - len(values)))
        batch = Batch(padded.reshape(groups, rows, 1), None)
        # There are no stages of single weights but of RQ, which has no groups of rows.
        codes = nearest_sum(batch, tables, self.codes[:, :, step].unsqueeze(1))
        codes = codes.reshape(stages, -1)[:, : len(values)]
        owner = torch.arange(len(values)) // rows
        if self.objective.zeros is not None:
            stays = self.objective.zeros[:, step].flatten() & self._has_zero[owner]
            codes = torch.where(stays, self._zero_code[owner], codes)
        self.codes[:, :, step] = codes
        return _sum_of(tables.flatten(1, 2), codes + owner * k).reshape(target.shape)


def _sum_of(tables: Tensor, codes: Tensor) -> Tensor:
    """Sums over stages of the rows of ``tables``, ``(stages, n, dim)``, that codes choose."""
    chosen = tables[0][codes[0]]
    for table, own in zip(tables[1:], codes[1:], strict=True):
        chosen = chosen + table[own]
    return chosen
