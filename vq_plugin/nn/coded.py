"""What every holder of a coded weight has: codes, codebooks, row scales, and their decoding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vq_plugin.codebook import CodebookWeight, decode
from vq_plugin.nn.decoded import Decoded
from vq_plugin.ops import dequantize_codebook, pack_codes, packs, unpack_codes
from vq_plugin.rounding import round_centers
from vq_plugin.schemes import Geometry, Scheme, torch_code_dtype
from vq_plugin.straight_through import straight_through

Memory = Literal["weight", "codes"]


class CodedWeight(nn.Module):
    """Base of the codebook layers and of coded parameters.

    Codebooks and row scales are parameters in the dtype of the weight, so that they train and
    follow ``.half()`` and ``.to()``. Whoever decodes sees them rounded to the scheme's
    ``codebook_dtype`` (gradients pass straight through), hence exactly the values that a file
    holds, also in training.

    Attributes:
        codes: Integers, ``(stages, rows, subspaces)``; unpacked at each access where they are held
            packed. They are in the ``state_dict`` like a buffer.
        codebooks: Parameter, ``(stages, groups, books, k, dim)``.
        scale: Parameter ``(rows,)``, or ``None``.
        scheme: The scheme that was asked for.
        weight_shape: Shape of the weight, ``(out, in, ...)``.
        geometry: How the weight is cut into sub-vectors.
        memory: ``"weight"`` keeps what was decoded, ``"codes"`` decodes in every pass; a setting
            of this run, not of the file.
    """

    # Whether codes are held in the layout of the kernels, which cannot be indexed by row.
    keeps_packed: ClassVar[bool] = True

    memory: Memory = "weight"
    codebooks: nn.Parameter
    scale: nn.Parameter | None
    scheme: Scheme
    weight_shape: tuple[int, ...]
    geometry: Geometry

    def __init__(self, small: CodebookWeight, *, trains: bool) -> None:
        """Takes over codes, and codebooks and scales, which want gradients if it ``trains``."""
        super().__init__()
        self.scheme, self.weight_shape, self.geometry = small.scheme, small.shape, small.geometry
        self.register_buffer("_codes", None, persistent=False)
        self._decoded = Decoded()
        self.codebooks = nn.Parameter(
            small.codebooks.to(small.dtype, copy=True), requires_grad=trains
        )
        scale = None
        if small.scale is not None:
            scale = nn.Parameter(small.scale.to(small.dtype, copy=True), requires_grad=trains)
        self.register_parameter("scale", scale)
        self._hold(small.codes)

    @property
    def kind(self) -> str:
        """Name of the class that the weight belongs to."""
        return type(self).__name__

    @property
    def codes(self) -> Tensor:  # noqa: D102 - described as an attribute
        assert self._codes is not None
        if self._codes.dim() == 3:
            return self._codes
        geometry = self.geometry
        return unpack_codes(
            self._codes,
            rows=geometry.rows,
            subspaces=geometry.subspaces,
            along_out=geometry.axis == "out",
        )

    def _hold(self, codes: Tensor) -> None:
        """Takes over codes, ``(stages, rows, subspaces)``, packed if a kernel reads them so."""
        geometry = self.geometry
        codes = codes.to(torch_code_dtype(geometry.k))
        packed = self.keeps_packed and packs(geometry.k, geometry.group)
        self._codes = (
            pack_codes(codes.contiguous(), along_out=geometry.axis == "out") if packed else codes
        )

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
        if tuple(codes.shape) != self.geometry.code_shape:
            error_msgs.append(
                f"size mismatch for {key}: copying a param with shape {codes.shape} from "
                f"checkpoint, the shape in current model is {torch.Size(self.geometry.code_shape)}."
            )
            return
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.geometry.k:
            error_msgs.append(f"{key} holds codes outside the codebook")
            return
        assert self._codes is not None
        self._hold(codes.detach().to(self._codes.device))

    @property
    def weight(self) -> Tensor:
        """The decoded weight, in the dtype of the codebooks; differentiable in them."""
        scale = None if self.scale is None else self._rounded_scale(self.scale)
        axis, group = self.geometry.axis, self.geometry.group
        codebooks = self._rounded_codebooks()
        # Programs that are traced keep torch's own operators, and gradients of every kind flow.
        if self._trains() or torch.compiler.is_compiling():
            return decode(
                self.codes, codebooks, scale, shape=self.weight_shape, axis=axis, group=group
            )
        codes = self._buffers["_codes"]
        assert codes is not None
        return dequantize_codebook(
            codes,
            codebooks.detach(),
            None if scale is None else scale.detach(),
            shape=self.weight_shape,
            along_out=axis == "out",
            group=group,
        )

    def _rounded_codebooks(self) -> Tensor:
        codebooks, dtype = self.codebooks, self.scheme.codebook_dtype
        if dtype == "float32":
            return codebooks
        return straight_through(codebooks, round_centers(codebooks.detach(), dtype))

    def _rounded_scale(self, scale: Tensor) -> Tensor:
        dtype = self.scheme.torch_codebook_dtype
        if dtype is torch.float32:
            return scale
        return straight_through(scale, scale.detach().to(dtype))

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

    def _kept_weight(self) -> Tensor:
        """:attr:`weight`, decoded once where no gradient has to reach the codebooks."""
        if self.memory == "codes" or self._trains() or torch.compiler.is_compiling():
            return self.weight
        return self._kept(self._decoded, lambda: self.weight)

    def _kept(self, decoded: Decoded, decode: Callable[[], Tensor]) -> Tensor:
        codes = self._buffers["_codes"]
        assert codes is not None
        tables = [table for table in self._tables() if table is not None]
        return decoded.get(codes, tables, decode)

    def _tables(self) -> tuple[Tensor | None, Tensor | None]:
        # Past nn.Module's look-up by name, which small layers notice.
        return self._parameters["codebooks"], self._parameters["scale"]

    def _trains(self) -> bool:
        """Whether a gradient has to reach the codebooks or the scale."""
        return torch.is_grad_enabled() and any(
            table is not None and table.requires_grad for table in self._tables()
        )

    def set_memory(self, memory: Memory) -> None:
        """Sets :attr:`memory`, and drops what was kept."""
        self.memory = memory
        self._decoded = Decoded()

    def share(self, other: CodedWeight) -> None:
        """Ties codes, codebooks and scale to those of ``other``."""
        self.codebooks, self.scale = other.codebooks, other.scale
        if self.keeps_packed == other.keeps_packed:
            self._codes = other._codes
        else:
            self._hold(other.codes)

    def _weight_repr(self) -> str:
        """Scheme, centers where a fit has reduced them, and bits per weight."""
        small = self.codebook_weight
        k = f", k={small.k}" if small.k != self.scheme.k else ""
        return f"{self.scheme}{k}, {small.bits_per_weight:.2f} bits/weight"
