"""Tensors of four or five dimensions that are no images."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


def by_elements(convert: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What ``nn.Module._apply`` is given, for codebooks and packed codes.

    ``model.to(memory_format=torch.channels_last)`` is meant for images and kernels, and goes by the
    number of dimensions. Codebooks and packed codes go through as plain rows of elements.
    """

    def converted(tensor: Tensor) -> Tensor:
        if tensor.dim() <= 3:
            return convert(tensor)
        return convert(tensor.data.reshape(-1)).reshape(tensor.shape)

    return converted
