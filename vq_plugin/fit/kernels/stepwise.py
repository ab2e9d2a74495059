"""Codes of one step of a sweep after the other, in torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vq_plugin.fit.batch import Batch
from vq_plugin.fit.kernels.beam import nearest_sum
from vq_plugin.fit.kernels.protocol import Sweep, SweepBlock

_LEAST = 1e-8


class Stepwise:
    """Chooses in torch, for all outputs at once; see the protocol."""

    def __init__(self, sweep: Sweep) -> None:
        self.codes = sweep.codes.clone()
        self.strip = sweep.shape[2]
        self._sweep = sweep
        self._importance: Tensor | None = None
        if sweep.along_out and not bool((sweep.mass > 0).all()):
            # Padding, which must not choose.
            counts = (sweep.mass > 0).float().clamp_min(_LEAST)
            self._importance = counts.reshape(-1, sweep.codebooks.shape[4])
        if sweep.zeros is not None:
            tables = sweep.codebooks[0, :, 0, :, 0]
            self._zero_code = (tables == 0).float().argmax(1)
            self._has_zero = (tables == 0).any(1)

    def choose(self, steps: Tensor, outputs: slice, block: SweepBlock) -> Tensor:
        """See :class:`vq_plugin.fit.kernels.protocol.Chooser`."""
        del outputs
        dim = block.factor.shape[2]
        pulled, change = block.pull.clone(), torch.empty_like(block.base)
        for i, step in enumerate(steps.tolist()):
            here = slice(i * dim, (i + 1) * dim)
            base = block.base[:, here]
            # Row vectors times the inverse; these are columns.
            target = torch.baddbmm(base, block.inverse[:, i].mT, pulled[:, here])
            error = base - self._assign(step, target, block.factor[:, i])
            pulled.baddbmm_(block.inner[:, here].mT, error)
            change[:, here] = error
        return change

    def _assign(self, step: int, target: Tensor, factor: Tensor) -> Tensor:
        """Chooses one step's codes for ``target``, ``(groups, dim, outputs)``; gives their sum."""
        if self._sweep.along_out:
            return self._along_out(step, target)
        tables = self._sweep.codebooks[:, :, step % self._sweep.codebooks.shape[2]]
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
        codebooks, dim = self._sweep.codebooks[:, 0], self._sweep.codebooks.shape[4]
        points = target.reshape(-1, dim)
        shared = codebooks.shape[1] == 1
        books = 0 if shared else 1
        importance = None if self._importance is None else self._importance.unsqueeze(books)
        batch = Batch(points.unsqueeze(books), importance)
        before = self.codes[:, step].unsqueeze(books + 1)
        codes = nearest_sum(batch, codebooks, before).reshape(len(codebooks), -1)
        self.codes[:, step] = codes
        flat = codes if shared else codes + torch.arange(len(points)) * codebooks.shape[2]
        return _sum_of(codebooks.flatten(1, 2), flat).reshape(target.shape)

    def _single(self, step: int, target: Tensor, tables: Tensor) -> Tensor:
        """One weight per code; groups of rows may have tables of their own."""
        stages, groups, k, _ = tables.shape
        values = target.flatten()
        rows = self._sweep.row_group if groups > 1 else len(values)
        assert rows is not None
        padded = functional.pad(values, (0, groups * rows - len(values)))
        batch = Batch(padded.reshape(groups, rows, 1), None)
        # There are no stages of single weights but of RQ, which has no groups of rows.
        codes = nearest_sum(batch, tables, self.codes[:, :, step].unsqueeze(1))
        codes = codes.reshape(stages, -1)[:, : len(values)]
        group = torch.arange(len(values)) // rows
        if self._sweep.zeros is not None:
            stays = self._sweep.zeros[:, step].flatten() & self._has_zero[group]
            codes = torch.where(stays, self._zero_code[group], codes)
        self.codes[:, :, step] = codes
        return _sum_of(tables.flatten(1, 2), codes + group * k).reshape(target.shape)


def _sum_of(tables: Tensor, codes: Tensor) -> Tensor:
    """Sums over stages of the rows of ``tables``, ``(stages, n, dim)``, that codes choose."""
    chosen = tables[0][codes[0]]
    for table, stage_codes in zip(tables[1:], codes[1:], strict=True):
        chosen = chosen + table[stage_codes]
    return chosen
