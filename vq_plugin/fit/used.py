"""Centers that no sub-vector has are not kept."""

from __future__ import annotations

import torch
from torch import Tensor

from vq_plugin.codebook import table_offsets
from vq_plugin.fit.output.objective import Quantized
from vq_plugin.schemes import torch_code_dtype


def used_centers(quantized: Quantized, group: int | None) -> Quantized:
    """The same weight, with as many centers in each codebook as the fullest one needs.

    Codes that make up for each other's errors leave centers behind, of large weights mostly. They
    would take bytes of a file and, past a power of two, bits of every code in memory.

    Args:
        quantized: Codes and codebooks.
        group: Rows that share a codebook; ``None`` where all do.

    Returns:
        Codes and codebooks that decode to the same; ``quantized`` itself where a codebook needs all
        its centers.
    """
    codes, codebooks = quantized
    stages, groups, books, k, dim = codebooks.shape
    _, rows, subspaces = codes.shape
    offset = table_offsets(rows, subspaces, codebooks.shape, group, codes.device)
    tables = groups * books

    def places(stage: Tensor) -> Tensor:
        """Where the codes of a stage are in its tables, one table after the other."""
        return stage.int() if offset is None else stage.int() + offset

    counts = [torch.bincount(places(stage).flatten(), minlength=tables * k) for stage in codes]
    used = torch.stack(counts).reshape(stages, tables, k) > 0
    count = int(used.sum(2).max())
    if count == k:
        return quantized
    # The fullest decides; the others keep the first of what they do not need.
    kept = used.byte().argsort(stable=True, dim=2, descending=True)[:, :, :count].sort(2).values
    centers = codebooks.reshape(stages, tables, k, dim)
    centers = centers.gather(2, kept.unsqueeze(3).expand(-1, -1, -1, dim))
    numbers = torch.zeros(stages, tables, k, dtype=torch_code_dtype(count))
    numbers.scatter_(2, kept, torch.arange(count).to(numbers.dtype).expand_as(kept))
    renumbered = [
        number.flatten()[places(stage)] for number, stage in zip(numbers, codes, strict=True)
    ]
    return Quantized(torch.stack(renumbered), centers.reshape(stages, groups, books, count, dim))
