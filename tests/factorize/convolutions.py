"""Convolutions of all forms, and what they compute with another weight."""

import math
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@st.composite
def convolutions(draw: st.DrawFn, positions: int, outputs: int) -> Any:
    """A layer with kernels of that many positions and that many outputs in each group, or more."""
    torch.manual_seed(draw(st.integers(0, 99)))
    dims, groups = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 4]))
    size = st.tuples(*[st.integers(1, 3)] * dims)
    steps = st.tuples(*[st.integers(1, 2)] * dims)
    padding = draw(st.one_of(st.just("valid"), st.tuples(*[st.integers(0, 2)] * dims)))
    modes = ["zeros"] if padding == "valid" else ["zeros", "circular", "replicate"]
    return CONVOLUTIONS[dims](
        groups * draw(st.integers(3, 6)),
        groups * draw(st.integers(outputs, 2 * outputs)),
        draw(size.filter(lambda each: math.prod(each) >= positions)),
        draw(steps),
        padding,
        draw(steps),
        groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(modes)),
    )


def convolved(layer: Any, weight: Tensor, input: Tensor) -> Tensor:
    """The convolution of ``layer`` by another weight."""
    other = type(layer)(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
        layer.dilation, layer.groups, padding_mode=layer.padding_mode,
    )  # fmt: skip
    other.weight = nn.Parameter(weight)
    other.bias = layer.bias
    output: Tensor = other(input)
    return output
