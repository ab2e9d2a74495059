"""Codes of many steps of a sweep in one call of the native operator."""

from __future__ import annotations

import torch
from torch import Tensor

from vq_plugin.fit.kernels.protocol import Sweep, SweepBlock
from vq_plugin.ops.fit import operators

# Outputs of one thread, and of one call.
_STRIP = 256


class NativeChooser:
    """Chooses by the operator ``sweep_block``; see the protocol."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        stages, groups, books, k, dim = sweep.codebooks.shape
        _, inputs, outputs = sweep.shape
        self._codebooks = sweep.codebooks.reshape(stages, groups * books, k, dim)
        self._books = books
        self._by_step = not sweep.along_out and books > 1
        # Outputs of one point.
        self._width = dim if sweep.along_out else 1
        self._points = outputs // self._width
        self.strip = -(-_STRIP // self._width) * self._width
        self._rows = len(sweep.mass)
        if sweep.along_out and books > 1:
            self._rows = 1
        elif groups > 1:
            assert sweep.row_group is not None
            self._rows = sweep.row_group
        # (groups, stages, steps, points)
        codes = sweep.codes.byte()
        if sweep.along_out:
            by_group = codes.view(stages, inputs, -1, self._points).permute(2, 0, 1, 3)
        else:
            by_group = codes.view(stages, -1, self._points, codes.shape[2]).permute(1, 0, 3, 2)
        self._by_group = by_group.clone(memory_format=torch.contiguous_format)
        self._kept = None if sweep.zeros is None else self._codes_of_zeros(sweep.zeros)

    @property
    def codes(self) -> Tensor:
        """See :class:`vq_plugin.fit.kernels.protocol.Chooser`."""
        order = (1, 2, 0, 3) if self._sweep.along_out else (1, 0, 3, 2)
        by_row = self._by_group.permute(order).contiguous()
        return by_row.reshape(self._sweep.codes.shape).to(self._sweep.codes.dtype)

    def _codes_of_zeros(self, zeros: Tensor) -> Tensor:
        is_zero = self._codebooks[0, :, :, 0] == 0
        code = torch.where(is_zero.any(1), is_zero.float().argmax(1), -1).int()
        groups, _, outputs = zeros.shape
        book = torch.arange(groups * outputs) // self._rows
        return torch.where(zeros, code[book].reshape(groups, 1, outputs), -1)

    def choose(self, steps: Tensor, outputs: slice, block: SweepBlock) -> Tensor:
        """See :class:`vq_plugin.fit.kernels.protocol.Chooser`."""
        size = block.factor.shape[2]
        codebooks = self._codebooks
        if self._by_step:
            codebooks = codebooks[:, steps % self._books]
        elif size > 1:
            # The metric differs from step to step.
            codebooks = codebooks.expand(-1, len(steps), -1, -1)
        scored, factor = codebooks, None
        if size > 1:
            factor = block.factor.contiguous()
            scored = (codebooks @ factor.unsqueeze(1)).flatten(0, 1)
        points = slice(outputs.start // self._width, outputs.stop // self._width)
        several = len(codebooks) > 1
        before = self._by_group[:, :, steps, points].contiguous() if several else None
        kept = None if self._kept is None else self._kept[:, steps, points].contiguous()
        padding = 0
        if self._sweep.along_out:
            last_group = self._sweep.mass.reshape(len(block.base), -1)[-1, outputs]
            padding = int((last_group == 0).sum())
        change: Tensor
        codes, change = operators().sweep_block(
            block.inner.contiguous(), block.pull.contiguous(), block.base.contiguous(),
            block.inverse.contiguous(), factor, codebooks.contiguous(), scored.contiguous(),
            before, kept, self._sweep.along_out, padding,
            int(self._by_step or size > 1), points.start, self._points, self._rows,
        )  # fmt: skip
        self._by_group[:, :, steps, points] = codes
        return change
