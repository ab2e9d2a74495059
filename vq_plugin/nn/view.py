"""Between a parameter and its weight: outputs first, then inputs, then the kernel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor


@dataclass(frozen=True)
class View:
    """How the dimensions of a parameter become those of a weight.

    The parameter is reshaped to ``split``, its dimensions are taken in the ``order``, and the
    result is reshaped to ``shape``.

    Attributes:
        parameter_shape: Shape of the parameter.
        split: Shape before dimensions change places; of the same size.
        order: A permutation of the dimensions of ``split``.
        shape: Shape of the weight, ``(out, in, ...)``.

    Example:
        >>> import torch
        >>> view = View.ordered((30, 20), (1, 0))
        >>> view.shape, view.restore(view.weight(torch.empty(30, 20))).shape
        ((20, 30), torch.Size([30, 20]))
    """

    parameter_shape: tuple[int, ...]
    split: tuple[int, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        """Raises ``ValueError`` unless all of it is about one number of elements."""
        sizes = {math.prod(each) for each in (self.parameter_shape, self.split, self.shape)}
        if len(sizes) > 1 or sorted(self.order) != list(range(len(self.split))):
            raise ValueError(f"{self} is no view: sizes differ, or the order is no permutation")
        if len(self.shape) < 2:
            raise ValueError(f"a weight has 2 dimensions or more, not {self.shape}")

    @classmethod
    @lru_cache(maxsize=1024)
    def whole(cls, shape: tuple[int, ...]) -> View:
        """Of a parameter that is a weight as it stands."""
        return cls.ordered(shape, tuple(range(len(shape))))

    @classmethod
    def ordered(cls, shape: tuple[int, ...], order: tuple[int, ...]) -> View:
        """Of a parameter whose dimensions ``order`` brings to ``(out, in, ...)``."""
        shape = tuple(shape)
        moved = tuple(shape[at] for at in order if at < len(shape))
        return cls(shape, shape, tuple(order), moved)

    @property
    def plain(self) -> bool:
        """Whether the weight is the parameter."""
        return self.parameter_shape == self.shape and self.order == tuple(range(len(self.order)))

    def weight(self, parameter: Tensor) -> Tensor:
        """The weight, ``shape``."""
        return parameter.reshape(self.split).permute(self.order).reshape(self.shape)

    def restore(self, weight: Tensor) -> Tensor:
        """The parameter, ``parameter_shape``, contiguous; undoes :meth:`weight`."""
        if self.plain:
            return weight
        moved = weight.reshape([self.split[at] for at in self.order])
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return moved.permute(back).reshape(self.parameter_shape).contiguous()


def transposed_convolution(parameter: Tensor, groups: int) -> View:
    """Of ``(in, out/groups, *kernel)``, as the weight ``(out, in/groups, *kernel)``.

    Example:
        >>> import torch
        >>> transposed_convolution(torch.empty(6, 4, 3, 3), groups=2).shape
        (8, 3, 3, 3)
    """
    inputs, outputs, *kernel = parameter.shape
    split = (groups, inputs // groups, outputs, *kernel)
    order = (0, 2, 1, *range(3, 3 + len(kernel)))
    shape = (groups * outputs, inputs // groups, *kernel)
    return View(tuple(parameter.shape), split, order, shape)


def stacked_matrices(parameter: Tensor) -> View:
    """Of ``(experts, rows, columns)``, all rows below each other."""
    shape = tuple(parameter.shape)
    return View(shape, shape, tuple(range(len(shape))), (math.prod(shape[:-1]), shape[-1]))
