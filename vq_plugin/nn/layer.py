"""What every codebook layer has beside its weight: the bias, and the choice of a kernel."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as every_module

from vq_plugin.codebook import CodebookWeight
from vq_plugin.fit.weight import quantize_weight
from vq_plugin.nn.coded import CodedWeight
from vq_plugin.nn.decoded import Decoded
from vq_plugin.ops import (
    KERNEL_CENTERS,
    PRECISIONS,
    Precision,
    native,
    recording,
    tracing,
    warn_without_native,
)
from vq_plugin.ops.choices import Choices, LinearChoices
from vq_plugin.schemes import Scheme

_HALVES = (torch.bfloat16, torch.float16)
# Not what torch.fx traces with, nor tensors of other kinds.
TENSORS = (Tensor, nn.Parameter)
_CHOSEN_BY = frozenset(["precision", "memory"])
# Looked up once: small layers notice.
_LINEAR = torch.ops.vq.codebook_linear.default
_LINEAR_INFERENCE = torch.ops.vq.codebook_linear.inference


class CodebookLayer(CodedWeight):
    """Base of the codebook layers; use one of its subclasses.

    Attributes:
        bias: Parameter, or ``None``.
        precision: ``"exact"``, or ``"high"`` or ``"fast"`` for fewer bits where a kernel is faster
            so; a setting of this run, not of the file.
    """

    float_type: ClassVar[type[nn.Module]]

    precision: Precision = "exact"
    bias: nn.Parameter | None
    # The forward pass where it is known that nothing records, and the input is plain.
    _unrecorded: ClassVar[Callable[[Any, Tensor], Tensor]]
    # Codebooks, in a tuple that is no parameter, and whether kernels read them.
    _asked: tuple[Tensor | None, bool]
    # Whether codes pay, by an input's number of values, or its shape. None until asked.
    _choices: Mapping[Any, bool] | None
    # Values of an input that make one of the vectors that _multiply() would get.
    _sample_length: int

    def __init__(self, source: nn.Module, small: CodebookWeight) -> None:
        """Takes over everything but the weight from a float layer, whose bias is copied.

        ``ValueError`` if ``small`` is not of the shape of the layer's weight.
        """
        assert isinstance(source.weight, Tensor)
        shape = tuple(source.weight.shape)
        if shape != small.shape:
            raise ValueError(f"the codebook weight has shape {small.shape}, the layer's is {shape}")
        super().__init__(small, trains=source.weight.requires_grad)
        bias = getattr(source, "bias", None)
        self.register_parameter("bias", None if bias is None else _copy(bias))
        if self.bias is not None and small.bias_shift is not None:
            self.bias.data += small.bias_shift.to(self.bias)
        geometry = self.geometry
        along_out, group = geometry.axis == "out", geometry.group or 0
        self._int8 = self.scheme.codebook_dtype == "int8"
        self._settings = (shape[0], along_out, group, self.scheme.torch_codebook_dtype)
        stages, _, _, k, dim = geometry.codebook_shape
        packed = self._codes.dim() == 4
        self._kernel_shape = (
            *(math.prod(shape[1:]), shape[0], stages, k, dim, group),
            *(geometry.books == 1, packed, along_out, len(shape) > 2),
        )
        self._take_settings(source)
        self.training = source.training

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """As every layer of torch: whole, a node of its own, in what ``torch.fx`` traces."""
        # What nn.Module does with a tensor, past calls that small layers notice.
        if len(arguments) == 1 and type(arguments[0]) is Tensor and not keywords:
            if self._compiled_call_impl is not None:
                return self._compiled_call_impl(arguments[0])
            if (
                recording()
                or self._forward_pre_hooks
                or self._forward_hooks
                or self._backward_pre_hooks
                or self._backward_hooks
                or every_module._global_forward_pre_hooks
                or every_module._global_forward_hooks
                or every_module._global_backward_pre_hooks
                or every_module._global_backward_hooks
                or "forward" in self.__dict__
            ):
                return self._call_impl(arguments[0])  # type: ignore[no-untyped-call]
            return self._unrecorded(arguments[0])
        for value in arguments or keywords.values():
            if isinstance(value, fx.Proxy) and isinstance(value.tracer, fx.Tracer):
                return self._traced(value.tracer, arguments, keywords)
        return super().__call__(*arguments, **keywords)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        # A subclass of a subclass may have a forward of its own.
        if "forward" in vars(cls):
            cls._unrecorded = vars(cls).get("_computed", cls.forward)

    def _traced(
        self, tracer: fx.Tracer, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> fx.Proxy:
        path = tracer.path_of_module(self)

        def node(*arguments: Any, **keywords: Any) -> fx.Proxy:
            proxy: fx.Proxy = tracer.create_proxy("call_module", path, arguments, keywords)
            return proxy

        # It knows what module the node is of.
        traced: fx.Proxy = tracer.call_module(self, node, arguments, keywords)
        return traced

    @classmethod
    def from_float(
        cls, module: nn.Module, scheme: Scheme, *, importance: Tensor | None = None, seed: int = 0
    ) -> Self:
        """The codebook layer of a float layer of type :attr:`float_type`, which is not changed.

        It keeps training mode, bias and settings. The rest is as for
        :func:`vq_plugin.quantize_weight`; a layer of another type is a ``TypeError``.
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

    def _kernel_runs(self, input: Tensor) -> bool:
        """Whether a native kernel takes a plain ``input`` and is no slower than the float layer.

        Not to be asked where torch records: there, it is no question of time.
        """
        choices = self._choices or self._choose()
        if torch.is_grad_enabled() and self._trains():
            # The float layer would decode its weight, as none can be kept, and hold it until the
            # backward pass. That takes about as long as four decodings (decision 109).
            choices = self._choices_of(PRECISIONS[self.precision], decodes=4)
        return choices[input.numel()] and self._kernels_take(input)

    def _choose(self) -> Mapping[Any, bool]:
        if native() is None:
            warn_without_native()
        found = self._choices = self._choices_of(PRECISIONS[self.precision], self.memory == "codes")
        return found

    def _choices_of(self, precision: int, decodes: int) -> Choices:
        return LinearChoices.of(self._kernel_shape, precision, self._sample_length, decodes)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _CHOSEN_BY:
            self._choices = None

    def _kernels_take(self, input: Tensor) -> bool:
        """Whether there are native kernels that take ``input``."""
        codebooks: Tensor | None = self._parameters.get("codebooks")
        read = self._asked
        # In one piece, as every pass by codes asks; the rest is for wrappers and what is new.
        if codebooks is None or codebooks is not read[0]:
            codebooks = self._tensor("codebooks")
            read = self._asked = codebooks, self._kernels_read(codebooks)
        return (
            read[1]
            and type(input) in TENSORS
            and (
                input.dtype is torch.float32
                # What layers give under autocast.
                or (input.dtype in _HALVES and torch.is_autocast_enabled("cpu"))
            )
            and input.is_cpu
            and not input.is_nested
        )

    @staticmethod
    def _kernels_read(codebooks: Tensor) -> bool:
        """Whether there are kernels that read codebooks; those that are replaced are asked anew."""
        if native() is None:
            warn_without_native()
            return False
        small = codebooks.size(3) <= KERNEL_CENTERS
        return small and codebooks.is_cpu and codebooks.dtype is torch.float32

    def _multiply(self, input: Tensor) -> Tensor:
        """``input · Wᵀ + bias`` with the weight in its 2-D view, ``(out, in)``."""
        # A trace may run where gradients are on.
        differentiable = torch.is_grad_enabled() or tracing()
        return self._run(_LINEAR if differentiable else _LINEAR_INFERENCE, input)

    def _run(self, operator: Callable[..., Tensor], input: Tensor) -> Tensor:
        parameters = self._parameters
        known = "scale" in parameters and "bias" in parameters
        return operator(
            input,
            self._codes,
            self._operand(),
            parameters["scale"] if known else self._optional("scale"),
            parameters["bias"] if known else self._optional("bias"),
            *self._settings,
            PRECISIONS[self.precision],
        )

    def _operand(self) -> Tensor:
        """Codebooks for an operator, which rounds them to float dtypes by itself."""
        codebooks: Tensor | None = self._parameters.get("codebooks")
        if codebooks is None:
            codebooks = self._tensor("codebooks")
        if not self._int8:
            return codebooks
        if self._recorded():
            return self._rounded_codebooks(codebooks)
        return self._int8_centers.get(self._codes, (codebooks,), self._rounded_codebooks)

    def _forget(self) -> None:
        super()._forget()
        self._int8_centers = Decoded()
        self._asked = None, False
        self._choices = None

    def to_float(self) -> nn.Module:
        """The float layer that computes the same: its weight is the decoded one."""
        plain = self._float_like(self.codebooks.device).to(self.codebooks.dtype)
        plain.weight = nn.Parameter(self._weight().detach().contiguous())
        plain.register_parameter("bias", None if self.bias is None else _copy(self.bias))
        plain.train(self.training)
        return plain

    def _settings_repr(self) -> str:
        """The settings of the float layer, as its own ``repr`` shows them."""
        raise NotImplementedError

    def extra_repr(self) -> str:  # noqa: D102 - inherited
        return f"{self._settings_repr()}, {self._weight_repr()}"


def _copy(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
