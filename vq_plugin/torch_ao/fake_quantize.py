"""The weight fake-quantizer of quantization-aware training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase

from vq_plugin.codebook import CodebookWeight
from vq_plugin.fit.lloyd import lloyd_step, nearest_codes
from vq_plugin.fit.weight import quantize_weight
from vq_plugin.importance import INPUT_STATS
from vq_plugin.nn import CodebookLayer, codebook_type
from vq_plugin.rounding import round_centers
from vq_plugin.schemes import KM, Scheme
from vq_plugin.torch_ao.qconfig import TAG_DTYPE

_STATE = ("codes", "codebooks", "scale")
# How far codebooks go at each step; all the way, codes and weights chase each other.
_PACE = 0.1


@dataclass(frozen=True)
class TrainingPlan:
    """What one layer, or layers that share one weight, are trained for.

    It travels inside the qconfig, hence deep copies of it are equal to it.

    Attributes:
        name: Name of the layer in its model, of the first one where several share a weight.
        scheme: What its weight becomes.
        seed: Seed of the fit that training starts from.
        quantizers: The quantizer of each weight that several layers share, found when it runs.
        layers: What ``convert`` has made already.
    """

    name: str
    scheme: Scheme
    seed: int
    quantizers: list[CodebookFakeQuantize] = field(default_factory=list, compare=False)
    layers: list[CodebookLayer] = field(default_factory=list, compare=False)


class CodebookFakeQuantize(FakeQuantizeBase):
    """Lets a layer compute with the decoded weight while its float weight, the latent one, trains.

    The first forward pass fits codes and codebooks; where
    :func:`vq_plugin.torch_ao.observe_inputs` gathers statistics for the fit, the first one in
    training mode. From then on every forward pass in training mode gives the latent weight, as
    the optimizer has left it, its nearest codes, and moves codebooks a tenth of the way to the
    means of what they got: Lloyd's algorithm with a moving average, as in van den Oord et al. 2017
    (arXiv 1711.00937, appendix A.1). The gradient of the decoded weight goes to the latent one
    unchanged (straight-through, Bengio et al. 2013, arXiv 1308.3432), but for the zeros that
    ``KM(keep_zeros=True)`` keeps. In eval mode nothing changes.

    The switches of ``torch.ao.quantization`` work on it: ``disable_observer`` keeps codebooks and
    row scales, while codes go on following; ``disable_fake_quant`` trains in float.

    Attributes:
        plan: What it is to do; shared by layers that share one weight.
        codes: Buffer as in :class:`vq_plugin.CodebookWeight`; ``None`` before the fit.
        codebooks: Buffer, float32; ``None`` before the fit.
        scale: Buffer, float32; ``None`` before the fit and where there are no row scales.
    """

    dtype = TAG_DTYPE
    # As the host's embeddings ask for, and the one that asks for no more than an axis.
    qscheme = torch.per_channel_affine_float_qparams
    ch_axis = 0

    codes: Tensor | None
    codebooks: Tensor | None
    scale: Tensor | None

    def __init__(self, plan: TrainingPlan, factory_kwargs: dict[str, Any] | None = None) -> None:
        """An empty one: the host makes several for each layer.

        Args:
            plan: What it is to do.
            factory_kwargs: What the host passes; the fit is on the device of the weight.
        """
        super().__init__()
        self.plan = plan
        for name in _STATE:
            self.register_buffer(name, None)

    def forward(self, weight: Tensor) -> Tensor:  # noqa: D102 - the class says it
        leader = self._leader(weight)
        if leader is not self:
            output: Tensor = leader(weight)
            for name in _STATE:
                setattr(self, name, getattr(leader, name))
            return output
        if self.codebooks is None:
            if not self.fake_quant_enabled[0] or self._calibrates():
                return weight
            self._fit(weight)
        elif self.training:
            self._follow(weight)
        if not self.fake_quant_enabled[0]:
            return weight
        scheme = self.plan.scheme
        pruned = isinstance(scheme, KM) and scheme.keep_zeros
        return _through(weight, self.small(weight).decode(), pruned)

    def small(self, weight: Tensor) -> CodebookWeight:
        """Codes and rounded codebooks, for a weight of the shape and dtype of ``weight``."""
        assert self.codes is not None
        assert self.codebooks is not None
        scheme = self.plan.scheme
        return CodebookWeight(
            codes=self.codes,
            codebooks=round_centers(self.codebooks, scheme.codebook_dtype),
            scale=None if self.scale is None else self.scale.to(scheme.torch_codebook_dtype),
            scheme=scheme,
            shape=tuple(weight.shape),
            dtype=weight.dtype,
        )

    def convert(self, module: nn.Module) -> CodebookLayer:
        """The codebook layer for the float layer that the host made of the trained one.

        Args:
            module: Float layer, batch norm folded; its weight is fitted if nothing was before.

        Returns:
            A layer that decodes to what the quantizer gives in eval mode.

        Raises:
            ValueError: If there is nothing yet and the weight cannot be compressed.
        """
        kind = codebook_type(module)
        assert kind is not None
        weight = module.weight
        assert isinstance(weight, Tensor)
        if self.codebooks is None:
            self._fit(weight)
        small = self.small(weight)
        layer = kind(module, small)
        first = next((x for x in self.plan.layers if _same(x.codebook_weight, small)), None)
        if first is not None:
            layer.share(first)
        self.plan.layers.append(layer)
        return layer

    def extra_repr(self) -> str:  # noqa: D102 - inherited
        return str(self.plan.scheme)

    def calculate_qparams(self) -> tuple[CodebookFakeQuantize, None]:  # type: ignore[override]
        """Itself, in the place of a scale: the host hands it to the reference module."""
        return self, None

    def _leader(self, weight: Tensor) -> CodebookFakeQuantize:
        """The one quantizer that follows a weight which layers share."""
        # Where batch norm is folded in, the weight is a layer's own.
        if not (self.training and isinstance(weight, nn.Parameter)):
            return self
        if not self.plan.quantizers:
            self.plan.quantizers.append(self)
        return self.plan.quantizers[0]

    def _fit(self, weight: Tensor) -> None:
        small = self._named(
            quantize_weight, weight, self.plan.scheme, self._importance(), self.plan.seed
        )
        self.codes, self.codebooks = small.codes, small.codebooks.float()
        self.scale = None if small.scale is None else small.scale.float()

    def _follow(self, weight: Tensor) -> None:
        step = lloyd_step if self.observer_enabled[0] else nearest_codes
        moved = self._named(step, weight, self.small(weight), self._importance())
        self.codes = moved.codes
        if self.observer_enabled[0]:
            self.codebooks = _towards(moved.codebooks, self.codebooks)
            self.scale = _towards(moved.scale, self.scale)

    def _named(self, function: Callable[..., CodebookWeight], *arguments: Any) -> CodebookWeight:
        try:
            return function(*arguments)
        except ValueError as error:
            raise ValueError(f"layer {self.plan.name!r}: {error}") from error

    def _importance(self) -> Tensor | None:
        moments = getattr(self, INPUT_STATS, None)
        if moments is None:
            return None
        try:
            found: Tensor = moments.importance()
        except ValueError as error:
            raise ValueError(f"layer {self.plan.name!r}: {error}") from None
        return found

    def _calibrates(self) -> bool:
        """Whether statistics are gathered that the fit is to wait for."""
        return not self.training and hasattr(self, INPUT_STATS)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        # Their shapes are those of the fit that was saved.
        for name in _STATE:
            value = state_dict.get(prefix + name)
            device = self.fake_quant_enabled.device
            setattr(self, name, None if value is None else value.to(device, copy=True))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, decoded: Tensor, pruned: bool) -> Tensor:
        ctx.zeros = weight == 0 if pruned else None
        return decoded

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad if ctx.zeros is None else grad.masked_fill(ctx.zeros, 0), None, None


_through: Callable[[Tensor, Tensor, bool], Tensor] = _StraightThrough.apply


def _towards(aim: Tensor | None, now: Tensor | None) -> Tensor | None:
    return None if aim is None or now is None else torch.lerp(now, aim.to(now.dtype), _PACE)


def _same(a: CodebookWeight, b: CodebookWeight) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in _STATE]
    return all(x is y or (x is not None and torch.equal(x, y)) for x, y in pairs)
