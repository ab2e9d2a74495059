"""What a layer decodes, kept from one forward pass to the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
            # Of the copies: the tables themselves may change while they are decoded.
            copies = [None if table is None else _Copy(table) for table in tables]
            decoded = decode(*(None if copy is None else copy.values for copy in copies))
        if type(decoded) is Tensor and not decoded.is_meta:
            first, *others = copies
            alone = None if first is None or first.of is None or any(others) else first
            self.entry = Entry(codes, copies, alone, decoded)
        return decoded

    def __getstate__(self) -> dict[str, object]:
        return Decoded().__dict__


class _Copy:
    """A table as it was."""

    __slots__ = ("address", "at", "nbytes", "of", "same_bytes", "values")

    def __init__(self, table: Tensor) -> None:
        self.values = table.detach().clone(memory_format=torch.contiguous_format)
        module = native()
        # Where both are, for kernels to compare.
        self.of = table if module is not None and type(table) in _TENSORS and table.is_cpu else None
        self.address = 0 if self.of is None else self.of.data_ptr()
        self.at = 0 if self.of is None else self.values.data_ptr()
        self.nbytes = self.values.nbytes
        self.same_bytes: Any = getattr(module, "same_bytes", None)

    def same(self, table: Tensor) -> bool:
        """Whether a table has the values, and the dtype, that this one had."""
        if table is self.of and table.data_ptr() == self.address and table.is_contiguous():
            # The very same memory: only what is in it may have changed.
            return bool(self.same_bytes(self.at, self.address, self.nbytes))
        old, module = self.values, native()
        if module is not None and old.is_cpu and table.is_cpu and table.is_contiguous():
            return (
                old.dtype is table.dtype
                and old.shape == table.shape
                and module.same_bytes(old.data_ptr(), table.data_ptr(), old.nbytes)
            )
        return old.dtype == table.dtype and old.device == table.device and torch.equal(old, table)


@dataclass(frozen=True, slots=True)
class Entry:
    """What was decoded, and from what."""

    codes: Tensor
    tables: Sequence[_Copy | None]
    # The only table, where its memory can be compared.
    alone: _Copy | None
    decoded: Tensor
