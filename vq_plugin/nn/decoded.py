"""What a layer decodes, kept from one forward pass to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vq_plugin.ops import native


class Decoded:
    """Decodes again only when what is decoded has changed.

    The weight of layers that no kernel serves faster than the float layer: it takes the memory of
    the float weight, from the first forward pass on. And the int8 centers of those that one does,
    which take longer to round than some kernels to run. Copies and pickles leave it behind.
    """

    def __init__(self) -> None:
        # Codes, tables and what they stand for, exchanged as one: passes of threads overlap.
        self._entry: tuple[Tensor, list[Tensor], Tensor] | None = None

    @property
    def kept(self) -> Tensor | None:
        """What is kept, if anything is."""
        return None if self._entry is None else self._entry[2]

    def get(
        self, codes: Tensor, tables: Sequence[Tensor | None], decode: Callable[..., Tensor]
    ) -> Tensor:
        """What ``decode`` gives for tables, codebooks and scale, and these codes."""
        given = [table for table in tables if table is not None]
        entry = self._entry
        # Codebooks are small, and values written through ``.data`` leave no other trace.
        if entry is not None and entry[0] is codes and all(map(_same, entry[1], given)):
            return entry[2]
        # Whatever mode the caller is in, later passes may ask for gradients of their inputs.
        with torch.inference_mode(False), torch.no_grad():
            # Of the copies: the tables themselves may change while they are decoded.
            copies = [None if t is None else _copy(t) for t in tables]
            decoded = decode(*copies)
        if type(decoded) is Tensor and not decoded.is_meta:
            self._entry = codes, [copy for copy in copies if copy is not None], decoded
        return decoded

    def __getstate__(self) -> dict[str, object]:
        return Decoded().__dict__


def _copy(table: Tensor) -> Tensor:
    return table.detach().clone(memory_format=torch.contiguous_format)


def _same(old: Tensor, new: Tensor) -> bool:
    module = native()
    if module is not None and old.is_cpu and new.is_cpu and new.is_contiguous():
        return (
            old.dtype is new.dtype
            and old.shape == new.shape
            and module.same_bytes(old.data_ptr(), new.data_ptr(), old.nbytes)
        )
    return old.dtype == new.dtype and old.device == new.device and torch.equal(old, new)
