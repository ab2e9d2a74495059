"""The decoded weight of a layer, kept from one forward pass to the next."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Decoded:
    """Decodes again only when what the weight is made of has changed.

    For layers that no kernel serves faster than the float layer. It takes the memory of the float
    weight, from the first forward pass on; copies and pickles of a layer leave it behind.
    """

    def __init__(self) -> None:
        self._made_of: list[_Part] = []
        self._weight: Tensor | None = None

    def get(self, parts: tuple[Tensor | None, ...], decode: Callable[[], Tensor]) -> Tensor:
        """The weight that ``decode`` gives for ``parts``, the tensors that it reads."""
        there = [part for part in parts if part is not None]
        fresh = len(there) == len(self._made_of) and all(
            old.is_still(part) for old, part in zip(self._made_of, there, strict=True)
        )
        if self._weight is None or not fresh:
            with torch.no_grad():
                self._weight = decode()
            self._made_of = [_Part(part.detach(), _version(part)) for part in there]
        return self._weight

    def __getstate__(self) -> dict[str, object]:
        return {"_made_of": [], "_weight": None}


class _Part(NamedTuple):
    # Keeps the memory: another tensor cannot get the same address.
    tensor: Tensor
    version: int | None

    def is_still(self, part: Tensor) -> bool:
        """Whether ``part`` has not been written to, replaced, moved or cast."""
        return (
            part.data_ptr() == self.tensor.data_ptr()
            and part.dtype == self.tensor.dtype
            and part.device == self.tensor.device
            and _version(part) == self.version
        )


def _version(part: Tensor) -> int | None:
    # Tensors made in inference mode do not count their versions.
    return None if part.is_inference() else part._version
