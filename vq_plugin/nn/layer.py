"""What every codebook layer has: codes, codebooks, row scales and the weight they stand for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from vq_plugin.codebook import CodebookWeight, code_dtype, decode, matrix_view
from vq_plugin.fit.weight import quantize_weight
from vq_plugin.nn.decoded import Decoded
from vq_plugin.ops import (
    KERNEL_CENTERS,
    Precision,
    native,
    pack_codes,
    packs,
    unpack_codes,
    warn_without_native,
)
from vq_plugin.rounding import round_centers
from vq_plugin.schemes import KM, Scheme


class CodebookLayer(nn.Module):
    """Base of the codebook layers; use one of its subclasses.

    Codebooks and row scales are parameters in the layer's own dtype, so that they train and
    follow ``.half()`` and ``.to()``. The forward pass sees them rounded to the scheme's
    ``codebook_dtype`` (gradients pass straight through), so a layer computes with exactly the
    values that its file holds, also while it trains.

    Attributes:
        codes: Integers, ``(stages, rows, subspaces)``; unpacked at each access where the layer
            holds them packed. They are in the ``state_dict`` like a buffer.
        codebooks: Parameter, ``(stages, groups, books, k, dim)``.
        scale: Parameter ``(rows,)``, or ``None``.
        bias: Parameter, or ``None``.
        scheme: The scheme that was asked for.
        weight_shape: Shape of :attr:`weight`.
        precision: ``"exact"``, or ``"fast"`` for 8-bit arithmetic where a kernel has it; a setting
            of this run, not of the file.
    """

    float_type: ClassVar[type[nn.Module]]
    # Whether codes are kept in the layout of the kernels, which cannot be indexed by row.
    keeps_packed: ClassVar[bool] = True

    precision: Precision = "exact"
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
        self.register_buffer("_codes", None, persistent=False)
        self._decoded, self._int8_centers = Decoded(), Decoded()
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
        if self.bias is not None and small.bias_shift is not None:
            self.bias.data += small.bias_shift.to(self.bias)
        self._settings = (
            self.weight_shape[0],
            self.along_out,
            self.group or 0,
            self.scheme.torch_codebook_dtype,
        )
        self._hold(small.codes)
        stages, _, books, k, dim = self.codebooks.shape
        out, *rest = self.weight_shape
        packed = self._buffers["_codes"].dim() == 4  # type: ignore[union-attr]
        self._kernel_shape = (
            *(math.prod(rest), out, stages, k, dim, self.group or 0),
            *(books == 1, packed, self.along_out, len(rest) > 1),
        )
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
    def along_out(self) -> bool:
        """Whether sub-vectors run along the outputs: rows are then the inputs."""
        return self.scheme.view_axis == "out"

    @property
    def group(self) -> int | None:
        """Rows per codebook group, ``None`` where all rows share their codebooks."""
        return self.scheme.group if isinstance(self.scheme, KM) else None

    @property
    def _code_shape(self) -> tuple[int, int, int]:
        stages, _, _, _, dim = self.codebooks.shape
        view = matrix_view(torch.empty(self.weight_shape, device="meta"), self.scheme.view_axis)
        return stages, view.shape[0], -(-view.shape[1] // dim)

    @property
    def codes(self) -> Tensor:  # noqa: D102 - described as an attribute
        assert self._codes is not None
        if self._codes.dim() == 3:
            return self._codes
        _, rows, subspaces = self._code_shape
        return unpack_codes(self._codes, rows=rows, subspaces=subspaces, along_out=self.along_out)

    def _hold(self, codes: Tensor) -> None:
        """Takes over codes, ``(stages, rows, subspaces)``, packed if a kernel reads them so."""
        k = self.codebooks.shape[3]
        codes = codes.to(code_dtype(k))
        packed = self.keeps_packed and packs(k, self.group)
        self._codes = pack_codes(codes.contiguous(), along_out=self.along_out) if packed else codes

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "codes"] = self.codes

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        key = prefix + "codes"
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        codes = state_dict.get(key)
        if codes is None:
            if strict:
                missing_keys.append(key)
            return
        if tuple(codes.shape) != self._code_shape:
            error_msgs.append(
                f"size mismatch for {key}: copying a param with shape {codes.shape} from "
                f"checkpoint, the shape in current model is {torch.Size(self._code_shape)}."
            )
            return
        if (
            codes.numel()
            and not 0 <= int(codes.min()) <= int(codes.max()) < self.codebooks.shape[3]
        ):
            error_msgs.append(f"{key} holds codes outside the codebook")
            return
        assert self._codes is not None
        self._hold(codes.detach().to(self._codes.device))

    @property
    def weight(self) -> Tensor:
        """The decoded weight, in the dtype of the codebooks; differentiable in them."""
        return self._decode(self.codes, self.scale, self.weight_shape)

    def _decode(self, codes: Tensor, scale: Tensor | None, shape: tuple[int, ...]) -> Tensor:
        return decode(
            codes,
            self._rounded_codebooks(),
            None if scale is None else _rounded_scale(scale, self.scheme),
            shape=shape,
            axis=self.scheme.view_axis,
            group=self.group,
        )

    def _rounded_codebooks(self) -> Tensor:
        codebooks, dtype = self.codebooks, self.scheme.codebook_dtype
        if dtype == "float32":
            return codebooks
        return _through(codebooks, round_centers(codebooks.detach(), dtype))

    @property
    def codebook_weight(self) -> CodebookWeight:
        """The compressed weight, with codebooks and scales as they are stored."""
        dtype = self.scheme.torch_codebook_dtype
        return CodebookWeight(
            codes=self.codes,
            codebooks=round_centers(self.codebooks.detach(), self.scheme.codebook_dtype),
            scale=None if self.scale is None else self.scale.detach().to(dtype),
            scheme=self.scheme,
            shape=self.weight_shape,
            dtype=self.codebooks.dtype,
        )

    def _kernel_runs(self, input: Tensor, length: int) -> bool:
        """Whether a native kernel takes ``input`` and is no slower than the float layer.

        Args:
            input: What :meth:`forward` got.
            length: Values of ``input`` for each vector that :meth:`_multiply` would get.
        """
        module = native()
        if module is None:
            warn_without_native()
            return False
        codebooks = self._parameters["codebooks"]
        assert codebooks is not None
        # What torch.fx traces with is no tensor.
        return (
            isinstance(input, Tensor)
            and input.dtype is torch.float32
            and codebooks.dtype is torch.float32
            and input.is_cpu
            and codebooks.is_cpu
            and codebooks.shape[3] <= KERNEL_CENTERS
            # While codebooks train no weight can be kept: the kernel saves decoding it.
            and (
                module.faster_than_float(
                    input.numel() // max(length, 1), *self._kernel_shape, self.precision == "fast"
                )
                or self._trains()
            )
        )

    def _multiply(self, input: Tensor) -> Tensor:
        """``input · Wᵀ + bias`` with the weight in its 2-D view, ``(out, in)``."""
        linear = torch.ops.vq.codebook_linear
        return self._run(linear.default if torch.is_grad_enabled() else linear.inference, input)

    def _run(self, operator: Callable[..., Tensor], input: Tensor) -> Tensor:
        parameters = self._parameters
        return operator(
            input,
            self._buffers["_codes"],
            self._operand(),
            parameters["scale"],
            parameters["bias"],
            *self._settings,
            self.precision == "fast",
        )

    def _operand(self) -> Tensor | None:
        """Codebooks for an operator, which rounds them to float dtypes by itself."""
        codebooks = self._parameters["codebooks"]
        if self.scheme.codebook_dtype != "int8":
            return codebooks
        if self._trains() or torch.compiler.is_compiling():
            return self._rounded_codebooks()
        codes = self._buffers["_codes"]
        assert codes is not None
        assert codebooks is not None
        return self._int8_centers.get(codes, [codebooks], self._rounded_codebooks)

    def _kept_weight(self) -> Tensor:
        """:attr:`weight`, decoded once where no gradient has to reach the codebooks."""
        if self._trains() or torch.compiler.is_compiling():
            return self.weight
        codes = self._buffers["_codes"]
        tables = [table for table in self._tables() if table is not None]
        assert codes is not None
        return self._decoded.get(codes, tables, lambda: self.weight)

    def _tables(self) -> tuple[Tensor | None, Tensor | None]:
        # Past nn.Module's look-up by name, which small layers notice.
        return self._parameters["codebooks"], self._parameters["scale"]

    def _trains(self) -> bool:
        """Whether a gradient has to reach the codebooks or the scale."""
        return torch.is_grad_enabled() and any(
            table is not None and table.requires_grad for table in self._tables()
        )

    def share(self, other: CodebookLayer) -> None:
        """Ties this layer's codes, codebooks and scale to those of ``other``."""
        self.codebooks, self.scale = other.codebooks, other.scale
        if self.keeps_packed == other.keeps_packed:
            self._codes = other._codes
        else:
            self._hold(other.codes)

    def to_float(self) -> nn.Module:
        """The float layer that computes the same: its weight is the decoded one."""
        plain = self._float_like(self.codebooks.device).to(self.codebooks.dtype)
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
    """Takes rounded values; the gradient passes unchanged (Bengio et al. 2013)."""

    @staticmethod
    def forward(ctx: object, values: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


_replace: Callable[[Tensor, Tensor], Tensor] = _StraightThrough.apply


def _through(values: Tensor, rounded: Tensor) -> Tensor:
    """``rounded`` in the dtype of ``values``, which get its gradient."""
    rounded = rounded.to(values.dtype)
    if torch.is_grad_enabled() and values.requires_grad:
        return _replace(values, rounded)
    return rounded


def _rounded_scale(scale: Tensor, scheme: Scheme) -> Tensor:
    dtype = scheme.torch_codebook_dtype
    return scale if dtype is torch.float32 else _through(scale, scale.detach().to(dtype))
