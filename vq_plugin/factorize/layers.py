"""Layers that are products of two ordinary ones, in the place of one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vq_plugin.factors.factors import Factor
from vq_plugin.factors.splits import Split

# Where a layer has the shapes that it had.
_BEFORE = "whole_shapes"
_CONVOLUTIONS: Any = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class FactorizedLayer(nn.Module):
    """Base of :class:`LowRank` and :class:`KernelBasis`: two layers that multiply to one weight.

    Both are ordinary: whatever takes Linear or convolutions takes them, as it finds them below
    the name of the layer. Settings of the layer that it stands for, such as ``in_features``, stay
    readable.

    Attributes:
        factor: What made it, with a rank.
        parts: Names of the two layers; the second has the bias.
    """

    parts: ClassVar[tuple[str, str]]

    factor: Factor
    _whole_shape: tuple[int, ...] | None = None

    def __init__(
        self, source: nn.Module, weight: Tensor, trains: bool, factor: Factor, split: Split
    ) -> None:
        """In the place of ``source``, with weights of zeros that are like its, without its bias."""
        super().__init__()
        self.factor, self._split = factor, split
        assert factor.channels is not None
        for name, part in zip(self.parts, split.layers(source, factor.channels), strict=True):
            self.add_module(name, part)
            assert isinstance(part.weight, Tensor)
            zeros = torch.zeros(part.weight.shape, dtype=weight.dtype, device=weight.device)
            part.weight = nn.Parameter(zeros, requires_grad=trains)

    @property
    def layers(self) -> tuple[nn.Module, nn.Module]:
        """The two layers in their order."""
        first, second = (self.get_submodule(name) for name in self.parts)
        return first, second

    @property
    def weights(self) -> tuple[Tensor, Tensor]:
        """Those of the two layers."""
        first, second = (layer.weight for layer in self.layers)
        assert isinstance(first, Tensor)
        assert isinstance(second, Tensor)
        return first, second

    @property
    def shape(self) -> tuple[int, ...]:
        """That of :attr:`weight`."""
        return self._split.shape

    @property
    def weight(self) -> Tensor:
        """The weight that the two layers multiply to, computed at each access."""
        return self._split.weight(*self.weights)

    @property
    def bias(self) -> nn.Parameter | None:
        """That of the second layer."""
        bias = self.layers[1]._parameters["bias"]
        assert bias is None or isinstance(bias, nn.Parameter)
        return bias

    @torch.no_grad()
    def multiply(self, left: Tensor, right: Tensor) -> None:
        """Takes over factors of matrices, ``(groups, rows, rank)``, ``(groups, rank, columns)``."""
        for own, weight in zip(self.weights, self._split.weights(left, right), strict=True):
            own.copy_(weight)

    @torch.no_grad()
    def mix(self, second: Tensor) -> None:
        """Takes over the second layer's weight, in any shape of its size."""
        own = self.weights[1]
        own.copy_(second.reshape(own.shape))

    def sizes(self) -> dict[int, int]:
        """Weights of the two layers, coded or not, by what is one where layers share it."""
        assert self.factor.channels is not None
        split, sizes = self._split, dict[int, int]()
        for part, length in zip(self.layers, (split.columns, split.rows), strict=True):
            own = part._parameters.get("weight")
            key = getattr(part, "codebooks", part) if own is None else own
            sizes[id(key)] = split.count * length * self.factor.channels
        return sizes

    @property
    def whole_shape(self) -> tuple[int, ...]:
        """That of :attr:`weight` before channels went."""
        return self._whole_shape or self.shape

    def fits(self, outputs: int, inputs: int) -> bool:
        """Whether a weight of so many channels, of one group, could have its rank."""
        split = self._split.narrowed(outputs, inputs)
        return isinstance(self, KernelBasis) or len(self.weights[0]) <= split.most

    @property
    def widths(self) -> tuple[int, int]:
        """Outputs and inputs that its layers have, of one group."""
        first, second = self.weights
        inputs = second.shape[1] // len(first) if isinstance(self, KernelBasis) else first.shape[1]
        return len(second), inputs

    def settle(self) -> None:
        """Takes note of outputs, inputs and channels between that its layers have lost."""
        split, rank = self._split, len(self.weights[0])
        if split.groups != 1 or (*self.widths, rank) == (*self.shape[:2], self.factor.channels):
            return
        self._whole_shape = self.whole_shape
        self.factor, self._split = self.factor.resolved(rank), split.narrowed(*self.widths)
        for side, count in zip(("out", "in"), self.widths, strict=True):
            for name in (f"{side}_features", f"{side}_channels"):
                if hasattr(self, name):
                    setattr(self, name, count)

    def share(self, other: FactorizedLayer, parts: tuple[str, ...]) -> None:
        """Makes the weights of some parts those of the same parts of another layer."""
        for name in parts:
            self.get_submodule(name).weight = other.get_submodule(name).weight

    def extra_repr(self) -> str:  # noqa: D102 - inherited
        return str(self.factor)


class LowRank(FactorizedLayer):
    """A layer as ``second(first(input))``, with few channels between; see :class:`SVD`."""

    parts = ("first", "second")

    first: nn.Module
    second: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """As the layer it stands for."""
        output: Tensor = self.second(self.first(input))
        return output


class KernelBasis(FactorizedLayer):
    """A convolution of every channel by the basis kernels, then mixes of them; see :class:`Basis`.

    All channels have the same kernels: they are samples of one channel to the first convolution.
    """

    parts = ("basis", "coefficients")

    basis: nn.Module
    coefficients: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """As the convolution it stands for."""
        places, mixed = len(self._split.kernel), self._split.channels * (self.factor.channels or 0)
        # Only operations that do not ask whether there is a dimension of samples: traces keep them.
        filtered = self.basis(input.unsqueeze(-1 - places).flatten(0, -2 - places))
        shape = input.shape[: -1 - places] + (mixed,) + filtered.shape[2:]  # noqa: RUF005 - traced
        output: Tensor = self.coefficients(filtered.reshape(shape))
        return output

    def whole(self, input: Tensor) -> Tensor:
        """The same as one convolution, by kernels that are mixed first.

        For training, which takes a seventh of the time so; what is called are not the two layers.
        """
        basis: Any = self.basis
        mixes: Any = self.coefficients
        padding, border = basis.padding, basis._reversed_padding_repeated_twice
        if basis.padding_mode != "zeros":
            input, padding = functional.pad(input, border, basis.padding_mode), 0
        convolution = _CONVOLUTIONS[len(self._split.kernel)]
        output: Tensor = convolution(
            input, self.weight, mixes.bias, basis.stride, padding, basis.dilation, mixes.groups
        )
        return output


@contextmanager
def whole_kernels(model: nn.Module) -> Iterator[None]:
    """Has products of basis kernels and their mixes run as one convolution, see there."""
    products = [module for module in model.modules() if isinstance(module, KernelBasis)]
    for product in products:
        product.forward = product.whole  # type: ignore[method-assign]
    try:
        yield
    finally:
        for product in products:
            del product.forward


def parts_of_products(model: nn.Module) -> dict[nn.Module, str]:
    """The layers that products are made of, with the name of each one's product."""
    return {
        part: name
        for name, module in model.named_modules()
        if isinstance(module, FactorizedLayer)
        for part in module.layers
    }


def remember(layer: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Notes what shapes a layer's tensors have before it gets narrower for the first time."""
    vars(layer).setdefault(_BEFORE, dict(shapes))


def _narrowed(model: nn.Module) -> Iterator[tuple[str, nn.Module, Mapping[str, tuple[int, ...]]]]:
    """Layers that were narrowed, with the shapes that they had; of products not the weights."""
    parts = parts_of_products(model)
    for name, module in model.named_modules():
        if shapes := vars(module).get(_BEFORE):
            products = {"weight"} if module in parts else set()
            yield name, module, {each: shapes[each] for each in shapes.keys() - products}


def factorized_away(model: nn.Module) -> int:
    """How many weights fewer a model has than when it was whole; shared ones count once."""
    whole: dict[object, int] = {}
    parts: dict[int, int] = {}
    for module in model.modules():
        if isinstance(module, FactorizedLayer):
            sizes = module.sizes()
            parts |= sizes
            whole[tuple(sizes)] = math.prod(module.whole_shape)
    gone: int = sum(
        math.prod(shape) - getattr(module, name).numel()
        for _, module, shapes in _narrowed(model)
        for name, shape in shapes.items()
    )
    return sum(whole.values()) - sum(parts.values()) + gone


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """The ``state_dict`` of a model as if its layers were whole; their weights are on no device."""
    state = dict(model.state_dict())
    for name, _, shapes in _narrowed(model):
        prefix = f"{name}." if name else ""
        state |= {f"{prefix}{n}": torch.empty(s, device="meta") for n, s in shapes.items()}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, FactorizedLayer):
            prefix = f"{name}." if name else ""
            for part in module.parts:
                state.pop(f"{prefix}{part}.weight", None)
            bias = state.pop(f"{prefix}{module.parts[1]}.bias", None)
            state[f"{prefix}weight"] = torch.empty(module.whole_shape, device="meta")
            if bias is not None:
                state[f"{prefix}bias"] = bias
    return state
