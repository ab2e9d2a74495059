"""The operators ``vq::*``: schemas, what they compute in pure torch, fakes and gradients.

CPU kernels in C++ are registered for the same operators when :mod:`vq_plugin.ops.native` loads
them; tensors on other devices, dtypes other than float32 and more than 256 centers take the
implementation in this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.library import Library, register_fake

from vq_plugin.codebook import decode
from vq_plugin.ops.gradients import codebook_gradients
from vq_plugin.ops.linear_gradients import linear_gradients
from vq_plugin.ops.native import native
from vq_plugin.ops.packing import LANES, NIBBLE_CENTERS, pack, packed_shape, unpack
from vq_plugin.ops.recording import compiled_by_codes, transforming
from vq_plugin.ops.rounding import rounded

Precision = Literal["exact", "high", "fast"]
# What operators call them.
PRECISIONS: dict[Precision, int] = {"exact": 0, "high": 1, "fast": 2}
# The native kernels read codes of a byte at most.
KERNEL_CENTERS = 256


def load_kernels() -> None:
    """Registers the native kernels, where there are any."""
    # Nothing that torch.compile could trace; layers loaded them when they packed their codes.
    if not torch.compiler.is_compiling():
        native()


def codebook_linear(
    input: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    out_features: int,
    along_out: bool = False,
    group: int | None = None,
    codebook_dtype: torch.dtype = torch.float32,
    precision: Precision = "exact",
) -> Tensor:
    """``F.linear`` with a weight that is codes into codebooks, without decoding it.

    Differentiable in ``input``, ``codebooks``, ``scale`` and ``bias``.

    Args:
        input: Floats, ``(..., in_features)``.
        codes: Integers, ``(stages, rows, subspaces)``, or what :func:`pack_codes` made of them.
        codebooks: Floats, ``(stages, groups, books, k, dim)``.
        scale: Floats, ``(rows,)``, or ``None``.
        bias: Floats, ``(out_features,)``, or ``None``.
        out_features: Outputs.
        along_out: Whether sub-vectors run along the outputs; rows are then the inputs.
        group: Rows per codebook group; ``None`` when there is one group.
        codebook_dtype: What codebooks and scale are rounded to before they are used; gradients
            pass through.
        precision: ``"exact"`` is as near to the products' sums as float32 is. ``"high"`` and
            ``"fast"`` may be off by 1e-4 and 2e-2 of the outputs' root mean square where a kernel
            is faster so; docs/kernels.md says how.

    Returns:
        Floats, ``(..., out_features)``, in the dtype of ``input``.

    Raises:
        RuntimeError: If the shapes do not fit.

    Example:
        >>> import vq_plugin as vq
        >>> small = vq.quantize_weight(torch.randn(32, 64), vq.PQ(k=16, dim=4))
        >>> x = torch.randn(2, 64)
        >>> y = codebook_linear(x, small.codes, small.codebooks.float(), out_features=32)
        >>> bool(torch.allclose(y, x @ small.decode().T, atol=1e-5))
        True
    """
    load_kernels()
    result: Tensor = torch.ops.vq.codebook_linear(
        input, codes, codebooks, scale, bias,
        out_features, along_out, group or 0, codebook_dtype, PRECISIONS[precision],
    )  # fmt: skip
    return result


def dequantize_codebook(
    codes: Tensor,
    codebooks: Tensor,
    scale: Tensor | None = None,
    *,
    shape: tuple[int, ...],
    along_out: bool = False,
    group: int | None = None,
    codebook_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The weight that codes and codebooks stand for; differentiable in codebooks and scale.

    Args:
        codes: As :func:`codebook_linear`.
        codebooks: As :func:`codebook_linear`.
        scale: As :func:`codebook_linear`.
        shape: Shape of the weight.
        along_out: Whether sub-vectors run along the outputs.
        group: Rows per codebook group; ``None`` when there is one group.
        codebook_dtype: As :func:`codebook_linear`.

    Returns:
        The weight, ``shape``, in the dtype of ``codebooks``.

    Example:
        >>> import vq_plugin as vq
        >>> small = vq.quantize_weight(torch.randn(32, 64), vq.KM(k=4))
        >>> weight = dequantize_codebook(small.codes, small.codebooks.float(), shape=(32, 64))
        >>> bool(torch.equal(weight, small.decode()))
        True
    """
    load_kernels()
    result: Tensor = torch.ops.vq.dequantize_codebook(
        codes, codebooks, scale, list(shape), along_out, group or 0, codebook_dtype
    )
    return result


def packs(k: int, group: int | None = None) -> bool:
    """Whether the kernels read codes into ``k`` centers packed, two to a byte.

    Example:
        >>> packs(16), packs(17), packs(16, group=5)
        (True, False, False)
    """
    return k <= NIBBLE_CENTERS and (group is None or group % LANES == 0)


def pack_codes(codes: Tensor, *, along_out: bool = False) -> Tensor:
    """Codes below 16 in the layout that the kernels read, two to a byte.

    Args:
        codes: Uint8, ``(stages, rows, subspaces)``, below 16.
        along_out: As for :func:`codebook_linear`, which must get the same.

    Returns:
        Int32, 4-D; padded to 16 rows and 8 subspaces.
    """
    load_kernels()
    packed: Tensor = torch.ops.vq.pack_codes(codes, along_out)
    return packed


def unpack_codes(packed: Tensor, *, rows: int, subspaces: int, along_out: bool = False) -> Tensor:
    """Undoes :func:`pack_codes`.

    Example:
        >>> codes = torch.randint(16, (1, 5, 3), dtype=torch.uint8)
        >>> bool(torch.equal(unpack_codes(pack_codes(codes), rows=5, subspaces=3), codes))
        True
    """
    if torch.compiler.is_compiling() and not compiled_by_codes(packed):
        return unpack(packed, rows, subspaces, along_out)
    load_kernels()
    codes: Tensor = torch.ops.vq.unpack_codes(packed, rows, subspaces, along_out)
    return codes


def canonical(codes: Tensor, rows: int, length: int, dim: int, along_out: bool = False) -> Tensor:
    """Codes ``(stages, rows, subspaces)``, of those or of packed ones."""
    if codes.dim() != 4:
        return codes
    unpacked: Tensor = torch.ops.vq.unpack_codes(codes, rows, -(-length // dim), along_out)
    return unpacked


def dequantize_in_torch(
    codes: Tensor,
    codebooks: Tensor,
    scale: Tensor | None,
    shape: list[int],
    along_out: bool,
    group: int,
    codebook_dtype: torch.dtype,
) -> Tensor:
    """The decoded weight, by torch's own operators; arguments are those of the operator."""
    columns = math.prod(shape[1:])
    rows, length = (columns, shape[0]) if along_out else (shape[0], columns)
    plain = canonical(codes, rows, length, codebooks.shape[4], along_out)
    fits = plain.shape[1] == rows and plain.shape[0] == codebooks.shape[0]
    if not fits or codebooks.shape[2] not in (1, plain.shape[2]):
        raise RuntimeError(
            f"codes {tuple(codes.shape)} and codebooks {tuple(codebooks.shape)} do not make a "
            f"weight of shape {tuple(shape)}"
        )
    return decode(
        plain,
        rounded(codebooks, codebook_dtype),
        None if scale is None else rounded(scale, codebook_dtype),
        shape=tuple(shape),
        axis="out" if along_out else "in",
        group=group or None,
    ).contiguous()


def _linear(
    input: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    out_features: int,
    *settings: Any,
) -> Tensor:
    shape = [out_features, input.shape[-1]]
    # But for the last setting: torch has no faster way.
    weight = dequantize_in_torch(codes, codebooks, scale, shape, *settings[:-1])
    return torch.nn.functional.linear(input, weight, bias)


def _pointwise(linear: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda input, *rest: linear(input.mT, *rest).mT.contiguous()


def _linear_fake(input: Tensor, *rest: Any) -> Tensor:
    out_features: int = rest[4]
    return input.new_empty((*input.shape[:-1], out_features))


def _dequantize_fake(
    codes: Tensor, codebooks: Tensor, scale: Tensor | None, shape: list[int], *rest: object
) -> Tensor:
    return codebooks.new_empty(shape)


def _pack_fake(codes: Tensor, along_out: bool) -> Tensor:
    stages, rows, subspaces = codes.shape
    return codes.new_empty(packed_shape(stages, rows, subspaces, along_out), dtype=torch.int32)


def _unpack_fake(packed: Tensor, rows: int, subspaces: int, along_out: bool) -> Tensor:
    return packed.new_empty((packed.shape[0], rows, subspaces), dtype=torch.uint8)


_LINEAR = (
    "(Tensor input, Tensor codes, Tensor codebooks, Tensor? scale, Tensor? bias, "
    "int out_features, bool along_out, int group, ScalarType codebook_dtype, int precision) "
    "-> Tensor"
)
_DEQUANTIZE = (
    "(Tensor codes, Tensor codebooks, Tensor? scale, int[] shape, bool along_out, int group, "
    "ScalarType codebook_dtype) -> Tensor"
)
_PACK = "(Tensor codes, bool along_out) -> Tensor"
_UNPACK = "(Tensor packed, int rows, int subspaces, bool along_out) -> Tensor"
_library = Library("vq", "DEF")  # type: ignore[no-untyped-call]
for _name, _schema, _body, _fake in (
    ("codebook_linear", _LINEAR, _linear, _linear_fake),
    # The same without a gradient: what autograd adds costs more than a small layer.
    ("codebook_linear.inference", _LINEAR, _linear, _linear_fake),
    # A 1x1 convolution: (images, in, places) to (images, out, places); without a gradient, too.
    ("codebook_linear.pointwise", _LINEAR, _pointwise(_linear), _pointwise(_linear_fake)),
    # The same in torch: what the native kernels leave to it.
    ("decoded_linear", _LINEAR, _linear, _linear_fake),
    ("decoded_linear.pointwise", _LINEAR, _pointwise(_linear), _pointwise(_linear_fake)),
    ("dequantize_codebook", _DEQUANTIZE, dequantize_in_torch, _dequantize_fake),
    ("dequantize_codebook.in_torch", _DEQUANTIZE, dequantize_in_torch, _dequantize_fake),
    ("pack_codes", _PACK, pack, _pack_fake),
    ("unpack_codes", _UNPACK, unpack, _unpack_fake),
):
    _library.define(_name + _schema, tags=torch.Tag.pt2_compliant_tag)  # type: ignore[no-untyped-call]
    _library.impl(_name, _body, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    register_fake(f"vq::{_name}", _fake, lib=_library)


class _Linear(torch.autograd.Function):
    """``codebook_linear`` and its gradients."""

    @staticmethod
    def forward(ctx: Any, keys: Any, *operands: Any) -> Any:
        input, codes, codebooks, scale, _, out_features, along_out, group, dtype, _ = operands
        ctx.save_for_backward(input, codes, codebooks, scale)
        ctx.settings = ([out_features, input.shape[-1]], along_out, group, dtype)
        return below_autograd(torch.ops.vq.codebook_linear.default, keys, operands)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        input, codes, codebooks, scale = ctx.saved_tensors
        _, along_out, group, dtype = ctx.settings
        _, wants_input, _, wants_codebooks, wants_scale, wants_bias, *_ = ctx.needs_input_grad
        flat = grad.reshape(-1, grad.shape[-1])
        grad_input, grad_codebooks, grad_scale = linear_gradients(
            flat,
            input.reshape(flat.shape[0], input.shape[-1]),
            codes,
            codebooks,
            scale,
            along_out=along_out,
            group=group,
            codebook_dtype=dtype,
            wants_input=wants_input,
            wants_tables=wants_codebooks or wants_scale,
        )
        if grad_input is not None:
            grad_input = grad_input.reshape(input.shape)
        grad_bias = flat.sum(0) if wants_bias else None
        found = (None, grad_input, None, grad_codebooks, grad_scale, grad_bias)
        return *found, None, None, None, None, None


class _Dequantize(torch.autograd.Function):
    """``dequantize_codebook`` and its gradients."""

    @staticmethod
    def forward(ctx: Any, keys: Any, *operands: Any) -> Any:
        codes, codebooks, scale, *ctx.settings = operands
        ctx.save_for_backward(codes, codebooks, scale)
        return below_autograd(torch.ops.vq.dequantize_codebook.default, keys, operands)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        found = _weight_backward(ctx, grads[0], *ctx.saved_tensors)
        return None, None, *found, None, None, None, None


def _weight_backward(
    ctx: Any, grad: Tensor, codes: Tensor, codebooks: Tensor, scale: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    shape, along_out, group, dtype = ctx.settings
    matrix = grad.reshape(shape[0], -1)
    matrix = matrix.T if along_out else matrix
    scale = None if scale is None else rounded(scale, dtype)
    return codebook_gradients(
        matrix, codes, rounded(codebooks, dtype), scale, along_out=along_out, group=group
    )


def below_autograd(operator: Any, keys: Any, operands: tuple[Any, ...]) -> Tensor:
    """An operator's kernel, past its gradients."""
    with torch._C._AutoDispatchBelowAutograd():
        output: Tensor = operator.redispatch(keys & torch._C._after_autograd_keyset, *operands)
    return output


def differentiable(
    operator: Any, function: type[torch.autograd.Function], body: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    """What an operator does where derivatives may be asked for."""

    def run(keys: Any, *operands: Any) -> Any:
        if transforming():
            return body(*operands)
        if not torch.is_grad_enabled():
            return below_autograd(operator, keys, operands)
        return function.apply(keys, *operands)  # type: ignore[no-untyped-call]

    return run


def under_autocast(operator: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """What an operator does on a CPU under autocast: ``F.linear``'s dtype, by a float32 kernel."""

    def run(*operands: Any) -> Tensor:
        halves = (torch.bfloat16, torch.float16)
        wide = [o.float() if isinstance(o, Tensor) and o.dtype in halves else o for o in operands]
        with torch.autocast("cpu", enabled=False):
            output = operator(*wide)
        # F.linear leaves float64 as it is.
        narrows = output.dtype is torch.float32
        return output.to(torch.get_autocast_dtype("cpu")) if narrows else output

    return run


for _operator, _function, _body in (
    (torch.ops.vq.codebook_linear.default, _Linear, _linear),
    (torch.ops.vq.dequantize_codebook.default, _Dequantize, dequantize_in_torch),
):
    _run = differentiable(_operator, _function, _body)
    _library.impl(_operator, _run, "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]
for _overload in ("default", "inference", "pointwise"):
    _operator = getattr(torch.ops.vq.codebook_linear, _overload)
    _library.impl(_operator, under_autocast(_operator), "AutocastCPU")  # type: ignore[no-untyped-call]
# Elsewhere F.linear itself takes the half of float32.
for _device in ("AutocastCUDA", "AutocastXPU", "AutocastMPS"):
    for _name in ("codebook_linear", "codebook_linear.inference"):
        _library.impl(_name, _linear, _device)  # type: ignore[no-untyped-call]
