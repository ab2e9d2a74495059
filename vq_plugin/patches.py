"""The inputs of a layer as rows of the matrix product that it computes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

# Numbers in one piece of patches: 64 MB.
_PIECE = 1 << 24


def input_patches(layer: nn.Module, value: Tensor) -> Iterator[Tensor]:
    """Cuts a layer's input into the vectors that each row of its 2-D weight is multiplied with.

    Args:
        layer: Linear or ConvNd layer.
        value: Its input, batched or not, of any float dtype.

    Yields:
        Float32, ``(groups, samples, in/groups · kernel)``: together every sample of the batch and,
        for a convolution, every place of the kernel.

    Example:
        >>> x = torch.arange(4.0).reshape(1, 1, 4)
        >>> [patches] = input_patches(nn.Conv1d(1, 1, 3), x)
        >>> patches.tolist()
        [[[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]]]
    """
    if isinstance(layer, nn.Linear):
        yield value.reshape(1, -1, value.shape[-1]).float()
        return
    assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    dims = layer.weight.dim() - 2
    if value.dim() == dims + 1:
        value = value.unsqueeze(0)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = functional.pad(value.float(), layer._reversed_padding_repeated_twice, mode)
    steps = zip(layer.kernel_size, layer.stride, layer.dilation, padded.shape[2:], strict=True)
    # Where the kernel may stand, by dimension and by its own position there.
    places = [
        [
            slice(at * dilation, at * dilation + size - (kernel - 1) * dilation, stride)
            for at in range(kernel)
        ]
        for kernel, stride, dilation, size in steps
    ]
    one = layer.weight[0].numel() * layer.groups * padded[0, 0].numel()
    for some in torch.split(padded, max(1, _PIECE // one)):
        taken = [some[slice(None), slice(None), *at] for at in itertools.product(*places)]
        # (samples, channels, *places, kernel) to (groups, samples · places, channels · kernel)
        grid = torch.stack(taken, -1)
        grid = grid.reshape(len(grid), layer.groups, -1, *grid.shape[2:])
        grid = grid.movedim(1, 0).movedim(2, -2)
        yield grid.reshape(layer.groups, -1, layer.weight[0].numel())
