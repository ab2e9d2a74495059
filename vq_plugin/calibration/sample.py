"""Which rows of the inputs of a weight its moments are taken of: all, or a bounded sample."""

from __future__ import annotations

import torch
from torch import Tensor

from vq_plugin.fit.sample import stratified

# Moments of n inputs are known as well by some rows for each as by all: a fit believes them by
# nine tenths only. Numbers in the rows of a sample (16 MB), and rows for an input.
_NUMBERS = 1 << 22
_ROWS_FOR_INPUT = 4
_LEAST, _MOST = 512, 1 << 13


def most_rows(groups: int, inputs: int) -> int:
    """Rows after which a sample of them does."""
    most = min(_NUMBERS // max(1, groups * inputs), _MOST)
    return max(most, _ROWS_FOR_INPUT * inputs, _LEAST)


def sample_of(rows: int, before: int, most: int) -> Tensor | None:
    """Some of ``rows`` new rows, ascending int64; ``None`` for all.

    A batch gets its share of ``most`` among all rows so far, ``before`` it and in it: all data
    count alike, however they are cut, if each row counts ``rows / len(sample)``. One row is drawn
    from each stretch of equal length: every image of a batch, and every part of one, is there.
    """
    count = -(-most * rows // (before + rows))
    if count >= rows:
        return None
    return stratified(rows, count, torch.Generator().manual_seed(before))
