"""What every codebook layer has: codes, codebooks, row scales and the weight they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from vq_plugin.codebook import CodebookWeight, decode
from vq_plugin.fit.weight import quantize_weight
from vq_plugin.schemes import KM, Scheme


class CodebookLayer(nn.Module):
    """Base of the codebook layers; use one of its subclasses.

    Codebooks and row scales are parameters in the layer's own dtype, so that they train and
    follow ``.half()`` and ``.to()``. The forward pass sees them rounded to the scheme's
    ``codebook_dtype`` (gradients pass straight through), so a layer computes with exactly the
    values that its file holds, also while it trains.

    Attributes:
        codes: Integer buffer, ``(stages, rows, subspaces)``.
        codebooks: Parameter, ``(stages, groups, books, k, dim)``.
        scale: Parameter ``(rows,)``, or ``None``.
        bias: Parameter, or ``None``.
        scheme: The scheme that was asked for.
        weight_shape: Shape of :attr:`weight`.
    """

    float_type: ClassVar[type[nn.Module]]

    codes: Tensor
    codebooks: nn.Parameter
    scale: nn.Parameter | None
    bias: nn.Parameter | None
    scheme: Scheme
    weight_shape: tuple[int, ...]

    def __init__(self, source: nn.Module, small: CodebookWeight) -> None:
        """Takes over everything but the weight from a float layer.

        Args:
            source: Float layer of type :attr:`float_type`; unchanged, its bias is copied.
            small: The compressed weight, of the shape of ``source.weight``.

        Raises:
            ValueError: If the shapes differ.
        """
        super().__init__()
        assert isinstance(source.weight, Tensor)
        shape = tuple(source.weight.shape)
        if shape != small.shape:
            raise ValueError(f"the codebook weight has shape {small.shape}, the layer's is {shape}")
        self.scheme = small.scheme
        self.weight_shape = small.shape
        self.register_buffer("codes", small.codes)
        trains = source.weight.requires_grad
        self.codebooks = nn.Parameter(
            small.codebooks.to(small.dtype, copy=True), requires_grad=trains
        )
        scale = None
        if small.scale is not None:
            scale = nn.Parameter(small.scale.to(small.dtype, copy=True), requires_grad=trains)
        self.register_parameter("scale", scale)
        bias = getattr(source, "bias", None)
        self.register_parameter("bias", None if bias is None else _copy(bias))
        self._take_settings(source)
        self.train(source.training)

    @classmethod
    def from_float(
        cls,
        module: nn.Module,
        scheme: Scheme,
        *,
        importance: Tensor | None = None,
        seed: int = 0,
    ) -> Self:
        """Compresses a float layer's weight and returns the codebook layer.

        Args:
            module: Float layer of type :attr:`float_type`; it is not changed.
            scheme: What to do.
            importance: As in :func:`vq_plugin.quantize_weight`.
            seed: Seed of the fit.

        Returns:
            The codebook layer, with the same training mode, bias and settings.

        Raises:
            TypeError: If ``module`` is of another type.
            ValueError: As :func:`vq_plugin.quantize_weight`.
        """
        if not isinstance(module, cls.float_type):
            expected = cls.float_type.__name__
            raise TypeError(f"{cls.__name__} replaces {expected}, got {type(module).__name__}")
        weight = module.weight
        assert isinstance(weight, Tensor)
        return cls(module, quantize_weight(weight, scheme, importance, seed))

    def _take_settings(self, source: nn.Module) -> None:
        """Copies the settings that the forward pass needs."""
        raise NotImplementedError

    def _float_like(self, device: torch.device) -> nn.Module:
        """A float layer with the same settings; its values do not matter."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:
        """The decoded weight, in the dtype of the codebooks; differentiable in them."""
        return decode(
            self.codes,
            _stored(self.codebooks, self.scheme),
            None if self.scale is None else _stored(self.scale, self.scheme),
            shape=self.weight_shape,
            axis=self.scheme.view_axis,
            group=self.scheme.group if isinstance(self.scheme, KM) else None,
        )

    @property
    def codebook_weight(self) -> CodebookWeight:
        """The compressed weight, with codebooks and scales as they are stored."""
        dtype = self.scheme.torch_codebook_dtype
        return CodebookWeight(
            codes=self.codes,
            codebooks=self.codebooks.detach().to(dtype),
            scale=None if self.scale is None else self.scale.detach().to(dtype),
            scheme=self.scheme,
            shape=self.weight_shape,
            dtype=self.codebooks.dtype,
        )

    def share(self, other: CodebookLayer) -> None:
        """Ties this layer's codes, codebooks and scale to those of ``other``."""
        self.codes, self.codebooks, self.scale = other.codes, other.codebooks, other.scale

    def to_float(self) -> nn.Module:
        """The float layer that computes the same: its weight is the decoded one."""
        plain = self._float_like(self.codes.device).to(self.codebooks.dtype)
        plain.weight = nn.Parameter(self.weight.detach().contiguous())
        plain.register_parameter("bias", None if self.bias is None else _copy(self.bias))
        plain.train(self.training)
        return plain

    def _settings_repr(self) -> str:
        """The settings of the float layer, as its own ``repr`` shows them."""
        raise NotImplementedError

    def extra_repr(self) -> str:  # noqa: D102 - inherited
        small = self.codebook_weight
        k = f", k={small.k}" if small.k != self.scheme.k else ""
        return f"{self._settings_repr()}, {self.scheme}{k}, {small.bits_per_weight:.2f} bits/weight"


def _copy(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)


class _StraightThrough(torch.autograd.Function):
    """Rounds to a dtype and back; the gradient passes unchanged (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: object, values: Tensor, dtype: torch.dtype) -> Tensor:
        return values.to(dtype).to(values.dtype)

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


_round_through: Callable[[Tensor, torch.dtype], Tensor] = _StraightThrough.apply


def _stored(values: Tensor, scheme: Scheme) -> Tensor:
    dtype = scheme.torch_codebook_dtype
    if dtype in (torch.float32, values.dtype):
        return values
    if torch.is_grad_enabled() and values.requires_grad:
        return _round_through(values, dtype)
    return values.to(dtype).to(values.dtype)
