"""What a layer decodes, kept from one forward pass to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vq_plugin.ops import native

_TENSORS = (Tensor, nn.Parameter)


class Decoded:
    """Decodes again only when what is decoded has changed.

    The weight of layers that no kernel serves faster than the float layer: it takes the memory of
    the float weight, from the first forward pass on. And the int8 centers of those that one does,
    which take longer to round than some kernels to run. Copies and pickles leave it behind.
    """

    def __init__(self) -> None:
        # What is kept, if anything is. Exchanged as one: passes of threads overlap.
        self.entry: Entry | None = None

    @property
    def kept(self) -> Tensor | None:
        """What is kept, if anything is."""
        return None if self.entry is None else self.entry.decoded

    def found(self, codes: Tensor, tables: Sequence[Tensor | None]) -> Tensor | None:
        """What is kept, if it is of these codes and tables: codebooks, and a scale or ``None``."""
        entry = self.entry
        if entry is None or entry.codes is not codes:
            return None
        # Tables are small, and values written through ``.data`` leave no other trace.
        for old, new in zip(entry.tables, tables, strict=True):
            if old is None:
                if new is not None:
                    return None
            elif new is None or not old.same(new):
                return None
        return entry.decoded

    def get(
        self, codes: Tensor, tables: Sequence[Tensor | None], decode: Callable[..., Tensor]
    ) -> Tensor:
        """What ``decode`` gives for tables and these codes."""
        kept = self.found(codes, tables)
        if kept is not None:
            return kept
        # Whatever mode the caller is in, later passes may ask for gradients of their inputs.
        with torch.inference_mode(False), torch.no_grad():
            # Of copies: the tables themselves may change while they are decoded.
            copies = [None if table is None else _copied(table) for table in tables]
            decoded = decode(*copies)
        if type(decoded) is Tensor and not decoded.is_meta:
            seen = [
                None if table is None or copy is None else Seen(table, copy)
                for table, copy in zip(tables, copies, strict=True)
            ]
            first, *others = seen
            alone = None if first is None or first.of is None or any(others) else first
            self.entry = Entry(codes, seen, alone, decoded)
        return decoded

    def __getstate__(self) -> dict[str, object]:
        return Decoded().__dict__


def _copied(table: Tensor) -> Tensor:
    return table.detach().clone(memory_format=torch.contiguous_format)


class Seen:
    """A table as it was."""

    __slots__ = ("address", "digest", "digested", "dtype", "nbytes", "of", "shape", "values")
    # Of tables that kernels read.
    address: int
    digest: Callable[[int, int], bytes]
    digested: bytes

    def __init__(self, table: Tensor, copy: Tensor) -> None:
        """Of a table and a contiguous copy of what it held."""
        self.dtype, self.shape, self.nbytes = copy.dtype, copy.shape, copy.nbytes
        self.of: Tensor | None = None
        self.values = copy
        module = native()
        # Where kernels read it, a digest takes the place of the values.
        if module is not None and type(table) in _TENSORS and table.is_cpu:
            self.of, self.address, self.digest = table, table.data_ptr(), module.digest
            self.digested = self.digest(copy.data_ptr(), self.nbytes)
            self.values = copy.new_empty(0)

    def same(self, table: Tensor) -> bool:
        """Whether a table has the values, and the dtype, that this one had."""
        of = self.of
        if of is None:
            old = self.values
            alike = old.dtype == table.dtype and old.device == table.device
            return alike and torch.equal(old, table)
        # In the very same memory, only what is in it may have changed.
        if table is not of or table.data_ptr() != self.address or not table.is_contiguous():
            if table.dtype != self.dtype or table.shape != self.shape or not table.is_cpu:
                return False
            table = table.contiguous()
        return self.digest(table.data_ptr(), self.nbytes) == self.digested


@dataclass(frozen=True, slots=True)
class Entry:
    """What was decoded, and from what."""

    codes: Tensor
    tables: Sequence[Seen | None]
    # The only table, where kernels read it.
    alone: Seen | None
    decoded: Tensor
