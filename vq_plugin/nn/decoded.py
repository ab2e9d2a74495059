"""What a layer decodes, kept from one forward pass to the next."""

from __future__ import annotations

from collections.abc import Callable

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
        self._codes: Tensor | None = None
        self._tables: list[Tensor] = []
        self._weight: Tensor | None = None

    def get(self, codes: Tensor, tables: list[Tensor], decode: Callable[[], Tensor]) -> Tensor:
        """What ``decode`` gives for codes and tables, codebooks and scale."""
        # Codebooks are small, and values written through ``.data`` leave no other trace.
        fresh = self._codes is codes and all(map(_same, self._tables, tables))
        if self._weight is None or not fresh:
            with torch.no_grad():
                self._weight = decode()
                self._tables = [
                    table.clone(memory_format=torch.contiguous_format) for table in tables
                ]
            self._codes = codes
        return self._weight

    def __getstate__(self) -> dict[str, object]:
        return Decoded().__dict__


def _same(old: Tensor, new: Tensor) -> bool:
    module = native()
    if module is not None and old.is_cpu and new.is_cpu and new.is_contiguous():
        return (
            old.dtype is new.dtype
            and old.shape == new.shape
            and module.same_bytes(old.data_ptr(), new.data_ptr(), old.nbytes)
        )
    return old.dtype == new.dtype and old.device == new.device and torch.equal(old, new)
