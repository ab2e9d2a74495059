"""What every holder of a coded weight has: codes, codebooks, row scales, and their decoding."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from vq_plugin.codebook import CodebookWeight, decode
from vq_plugin.nn.decoded import Decoded
from vq_plugin.nn.memory_format import by_elements
from vq_plugin.nn.read_only import WRITTEN, read_only
from vq_plugin.ops import dequantize_codebook, pack_codes, packs, recording, stacked, unpack_codes
from vq_plugin.rounding import round_centers
from vq_plugin.schemes import Geometry, Scheme, torch_code_dtype
from vq_plugin.straight_through import straight_through

Memory = Literal["weight", "codes"]
_REGISTERED = (Tensor, nn.Module)
# Rows that are zero whatever their codes say; files without a model want to know them.
_ZERO_ROWS = "zero_rows"
_STACKED = (
    "vmap has a codebook for each of several models, and the codes of one, which all take: "
    "torch.func.stack_module_state stacks no codes. Where models have other codes, stack the "
    "tensors of their state_dicts for torch.func.functional_call"
)


class CodedWeight(nn.Module):
    """Base of the codebook layers and of coded parameters.

    Codebooks and row scales are parameters in the dtype of the weight, so that they train and
    follow ``.half()`` and ``.to()``. Whoever decodes sees them rounded to the scheme's
    ``codebook_dtype`` (gradients pass straight through), hence exactly the values that a file
    holds, also in training.

    Attributes:
        codes: Integers, ``(stages, rows, subspaces)``; unpacked at each access where they are held
            packed. They are in the ``state_dict``, but are no buffer.
        codebooks: Parameter, ``(stages, groups, books, k, dim)``.
        scale: Parameter ``(rows,)``, or ``None``.
        scheme: The scheme that was asked for.
        weight_shape: Shape of the weight, ``(out, in, ...)``.
        geometry: How the weight is cut into sub-vectors.
        memory: ``"weight"`` keeps what was decoded, ``"codes"`` decodes in every pass; a setting
            of this run, not of the file.
    """

    memory: Memory = "weight"
    # The row of a table that stands for padding; zero where it was, whatever its codes say.
    _padding: int | None = None
    _zero_row: bool = False
    # No buffer, as averages of weights take buffers in.
    _codes: Tensor
    codebooks: nn.Parameter
    scale: nn.Parameter | None
    scheme: Scheme
    weight_shape: tuple[int, ...]
    geometry: Geometry

    def __init__(self, small: CodebookWeight, *, trains: bool) -> None:
        """Takes over codes, and codebooks and scales, which want gradients if it ``trains``."""
        super().__init__()
        self.scheme, self.weight_shape, self.geometry = small.scheme, small.shape, small.geometry
        self._forget()
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
        return self._unpacked(self._codes)

    @codes.setter
    def codes(self, codes: Tensor) -> None:
        self._hold(codes)

    def _packed(self, codes: Tensor) -> Tensor:
        """Codes, ``(stages, rows, subspaces)``, as they are held: packed if a kernel reads that."""
        cut = self.geometry
        if not packs(cut.k, cut.group):
            return codes.clone()
        return pack_codes(codes.contiguous(), along_out=cut.axis == "out")

    def _unpacked(self, codes: Tensor) -> Tensor:
        if codes.dim() == 3:
            return codes
        cut = self.geometry
        return unpack_codes(
            codes, rows=cut.rows, subspaces=cut.subspaces, along_out=cut.axis == "out"
        )

    @torch.inference_mode(False)
    def _hold(self, codes: Tensor) -> None:
        """Takes over codes, ``(stages, rows, subspaces)``."""
        self._codes = self._packed(codes.to(torch_code_dtype(self.geometry.k)))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        fn = by_elements(fn)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        codes = fn(self._codes)
        # to_empty() leaves what was in memory, which need not be places in a codebook.
        self._codes = codes if self._fit(self._unpacked(codes)) else torch.zeros_like(codes)
        self._forget()
        return self

    def _fit(self, codes: Tensor) -> bool:
        """Whether codes are places in the codebooks, as far as their device knows."""
        if codes.is_meta or not codes.numel():
            return True
        least, most = torch.aminmax(codes)
        return 0 <= int(least) <= int(most) < self.geometry.k

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # A copy: averages that are written into the tensors of a state_dict must not reach codes.
        codes = self.codes
        destination[prefix + "codes"] = codes.clone() if codes is self._codes else codes
        if self._padding is not None:
            rows = [self._padding] if self._zero_row else []
            destination[prefix + _ZERO_ROWS] = torch.tensor(rows, dtype=torch.int64, device="cpu")

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
        own = {key, prefix + _ZERO_ROWS} if self._padding is not None else {key}
        unexpected_keys[:] = [each for each in unexpected_keys if each not in own]
        rows = state_dict.get(prefix + _ZERO_ROWS)
        if self._padding is not None and rows is not None:
            self._zero_row = rows.numel() > 0
        codes = state_dict.get(key)
        if codes is None:
            if strict:
                missing_keys.append(key)
            return
        assigned = local_metadata.get("assign_to_params_buffers", False)
        if problem := self._problem(codes, assigned=assigned):
            error_msgs.append(f"{key} {problem}")
            return
        self._hold(codes.detach() if assigned else codes.detach().to(self._codes.device))

    def _problem(self, codes: Tensor, *, assigned: bool) -> str | None:
        """What is wrong with codes of a ``state_dict``."""
        shape, expected = tuple(codes.shape), self.geometry.code_shape
        if shape != expected:
            return f"has a size mismatch: it is of shape {shape}, the model's codes are {expected}"
        if codes.is_floating_point() or codes.is_complex():
            return (
                f"is of dtype {codes.dtype}, as averages are: codes are places in a codebook and "
                "have no average. Average tensors of float dtypes only, of models that have the "
                "same codes, and take the codes of one of them"
            )
        if codes.dtype is torch.bool:
            return "is of dtype bool, which has lost all but two places of the codebook"
        if not self._fit(codes):
            return f"holds codes outside the codebook, which has {self.geometry.k} centers"
        if codes.is_meta and not (assigned or self._codes.is_meta):
            return "is on the meta device and has no values"
        return None

    @property
    def weight(self) -> Tensor:
        """The decoded weight, in the dtype of the codebooks; differentiable in them.

        To be read: operations in place, assignment and deletion are a ``RuntimeError``.
        """
        return read_only(self._weight())

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise RuntimeError(WRITTEN)
        held = vars(self)
        if (
            isinstance(value, _REGISTERED)
            or name in held.get("_parameters", ())
            or name in held.get("_modules", ())
            or name in held.get("_buffers", ())
        ):
            super().__setattr__(name, value)
        else:
            # Past torch's look at every store: layers have a dozen settings, models thousands.
            object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if name == "weight":
            raise RuntimeError(WRITTEN)
        super().__delattr__(name)

    def _weight(self) -> Tensor:
        """The decoded weight, to compute with."""
        codebooks, scale = self._tables()
        if not recording():
            return self._dequantized(self._codes, codebooks, scale)
        self._warn_if_stacked(codebooks)
        # Programs that are recorded keep torch's own operators, and derivatives of every kind flow.
        weight = decode(
            self.codes.to(codebooks.device),
            self._rounded_codebooks(codebooks),
            None if scale is None else self._rounded_scale(scale),
            shape=self.weight_shape,
            axis=self.geometry.axis,
            group=self.geometry.group,
        )
        return self._with_padding(weight)

    def _warn_if_stacked(self, codebooks: Tensor) -> None:
        if stacked(codebooks) and not stacked(self._codes):
            warnings.warn(_STACKED, stacklevel=2)

    def _with_padding(self, weight: Tensor) -> Tensor:
        if self._padding is None or not self._zero_row:
            return weight
        rows = torch.arange(len(weight), device=weight.device).unsqueeze(1)
        return weight.masked_fill(rows.eq(self._padding), 0)

    def _dequantized(self, codes: Tensor, codebooks: Tensor, scale: Tensor | None) -> Tensor:
        """The decoded weight, by an operator that has first derivatives."""
        cut, shape = self.geometry, self.weight_shape
        codebooks = self._rounded_codebooks(codebooks)
        if cut.axis == "channels":
            # The operator has one book for all subspaces, or one for each.
            repeats = 1 if cut.books == 1 else cut.positions
            codebooks = codebooks.repeat(1, 1, repeats, 1, 1)
            shape = (cut.rows, cut.subspaces * cut.dim)
        weight = dequantize_codebook(
            codes.to(codebooks.device),
            codebooks,
            None if scale is None else self._rounded_scale(scale),
            shape=shape,
            along_out=cut.axis == "out",
            group=cut.group,
        )
        if cut.axis == "channels":
            weight = cut.weight(weight).contiguous()
        return self._with_padding(weight)

    def _rounded_codebooks(self, codebooks: Tensor) -> Tensor:
        dtype = self.scheme.codebook_dtype
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
        """The decoded weight, decoded once where nothing has to see how it is made."""
        return self._weight() if recording() else self._weight_unrecorded()

    def _weight_unrecorded(self) -> Tensor:
        """The same, where it is known that nothing records."""
        entry, parameters = self._decoded.entry, self._parameters
        # In one piece where there is but one table: small layers notice every call.
        if (
            entry is not None
            and (kept := entry.alone) is not None
            and (codebooks := parameters.get("codebooks")) is not None
            and codebooks is kept.of
            and parameters.get("scale", self) is None
            and entry.codes is self._codes
            and self.memory == "weight"
            and not torch.is_grad_enabled()
            and codebooks.data_ptr() == kept.address
            and codebooks.is_contiguous()
            and kept.digest(kept.address, kept.nbytes) == kept.digested
        ):
            return entry.decoded
        return self._weight() if self.memory == "codes" or self._trains() else self._kept()

    def _kept(self) -> Tensor:
        codes, tables = self._codes, self._tables()
        kept = self._decoded.found(codes, tables)
        if kept is not None:
            return kept
        return self._decoded.get(codes, tables, partial(self._dequantized, codes))

    def _tables(self) -> tuple[Tensor, Tensor | None]:
        parameters = self._parameters
        codebooks = parameters.get("codebooks")
        # In one piece, as every pass of a kept weight asks; the rest is for wrappers.
        if codebooks is not None and "scale" in parameters:
            return codebooks, parameters["scale"]
        return self._tensor("codebooks"), self._optional("scale")

    def _tensor(self, name: str) -> Tensor:
        tensor = self._optional(name)
        assert tensor is not None
        return tensor

    def _optional(self, name: str) -> Tensor | None:
        # Past nn.Module's look-up by name, which small layers notice; but wrappers that keep
        # parameters elsewhere, such as FSDP, leave tensors among the other attributes.
        parameters = self._parameters
        return parameters[name] if name in parameters else getattr(self, name)

    def _recorded(self) -> bool:
        """Whether torch has to see how the weight is made."""
        return recording() or self._trains()

    def _trains(self) -> bool:
        """Whether a gradient has to reach the codebooks or the scale."""
        return torch.is_grad_enabled() and any(
            table is not None and table.requires_grad for table in self._tables()
        )

    def __prepare_scriptable__(self) -> nn.Module:
        """Torch calls it in ``torch.jit.script``, whose language lacks what is needed here."""
        raise RuntimeError(
            "torch.jit.script cannot read layers that hold codes: use torch.jit.trace, "
            "torch.export or torch.compile"
        )

    def set_memory(self, memory: Memory) -> None:
        """Sets :attr:`memory`, and drops what was kept."""
        self.memory = memory
        self._forget()

    def _forget(self) -> None:
        self._decoded = Decoded()

    def share(self, other: CodedWeight) -> None:
        """Ties codes, codebooks and scale to those of ``other``."""
        self.codebooks, self.scale = other.codebooks, other.scale
        if type(self)._packed is type(other)._packed:
            self._codes = other._codes
        else:
            self._hold(other.codes)

    def _weight_repr(self) -> str:
        """Scheme, centers where a fit has reduced them, and bits per weight."""
        small = self.codebook_weight
        k = f", k={small.k}" if small.k != self.scheme.k else ""
        return f"{self.scheme}{k}, {small.bits_per_weight:.2f} bits/weight"
