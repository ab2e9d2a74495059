"""Codes and codebooks that follow a weight while it trains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from vq_plugin.calibration import InputSquares
from vq_plugin.codebook import CodebookWeight
from vq_plugin.fit.lloyd import lloyd_step, nearest_codes
from vq_plugin.fit.weight import quantize_weight
from vq_plugin.hosting.plan import Plan
from vq_plugin.hosting.statistics import INPUT_STATS
from vq_plugin.nn import CodebookLayer, find_slots, layer_slot
from vq_plugin.nn.inputs import call_arguments
from vq_plugin.nn.memory_format import by_elements
from vq_plugin.rounding import round_centers
from vq_plugin.straight_through import straight_through

_STATE = ("codes", "codebooks", "scale")
# How far codebooks go at each step; all the way, codes and weights chase each other.
_PACE = 0.1


class CodebookFollower(nn.Module):
    """Gives the decoded weight for the float weight, the latent one, that trains behind it.

    The first forward pass fits codes and codebooks; where :meth:`observe_inputs` gathers statistics
    for the fit, the first one in training mode. From then on every forward pass in training mode
    gives the latent weight, as the optimizer has left it, its nearest codes, and moves codebooks a
    tenth of the way to the means of what they got: Lloyd's algorithm with a moving average, as in
    van den Oord et al. 2017 (arXiv 1711.00937, appendix A.1). The gradient of the decoded weight
    goes to the latent one unchanged (straight-through), but for the zeros that
    ``KM(keep_zeros=True)`` keeps. In eval mode nothing changes. The buffers are as in
    :class:`vq_plugin.CodebookWeight`, tables in float32; ``None`` before the fit.

    Example:
        >>> import vq_plugin as vq
        >>> weight = nn.Parameter(torch.tensor([[0.1, 0.3], [0.9, 0.7]]))
        >>> CodebookFollower(Plan(((nn.Module, vq.KM(k=2)),), seed=0))(weight).unique().half()
        tensor([0.2000, 0.7998], dtype=torch.float16, grad_fn=<ToCopyBackward0>)
    """

    codes: Tensor | None
    codebooks: Tensor | None
    scale: Tensor | None
    _place: Tensor

    def __init__(self, plan: Plan) -> None:
        """An empty one: hosts make several for each layer."""
        super().__init__()
        self.plan = plan
        for name in _STATE:
            self.register_buffer(name, None)
        self.register_buffer("_place", torch.empty(0), persistent=False)
        # A tuple, lest torch take the weight for a parameter of the follower.
        self._last: tuple[Tensor, ...] = ()

    @property
    def moves(self) -> bool:
        """Whether codebooks, row scales and statistics move; a host's switch."""
        return True

    @property
    def quantizes(self) -> bool:
        """Whether the decoded weight is given, not the float one; a host's switch."""
        return True

    def forward(self, weight: Tensor) -> Tensor:  # noqa: D102 - the class says it
        leader = self._leader(weight)
        if leader is not self:
            output: Tensor = leader(weight)
            for name in _STATE:
                setattr(self, name, getattr(leader, name))
            return output
        if self.codebooks is None:
            # The fit waits for the statistics that are gathered in eval mode.
            if not self.quantizes or (hasattr(self, INPUT_STATS) and not self.training):
                return weight
            self._fit(weight)
        elif self.training:
            self._follow(weight)
        if not self.quantizes:
            return weight
        self._last = (weight,)
        return straight_through(*self._pair(weight))

    @property
    def latent(self) -> Tensor | None:
        """The weight that the last pass has decoded; ``None`` in copies, until their first pass."""
        return self._last[0] if self._last else None

    def distance(self) -> Tensor:
        """Sum of squares between the latent weight and what it decodes to, a float32 scalar.

        There has to be one, see :attr:`latent`. The gradient goes to it alone.
        """
        latent, decoded = self._pair(*self._last)
        return (latent.float() - decoded.detach().float()).square().sum()

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
        """The layer that decodes to what the follower gives in eval mode, fitted now if need be."""
        slot = layer_slot(module)
        assert slot is not None
        if self.codebooks is None:
            self._fit(slot.weight)
        small = self.small(slot.weight)
        layer = slot.codebook_layer(small)
        assert layer is not None
        followed = self.plan.conversion.followed
        first = next((layer for layer in followed if _equal(layer.codebook_weight, small)), None)
        if first is not None:
            layer.share(first)
        followed.append(layer)
        return layer

    def observe_inputs(self, layer: nn.Module) -> bool:
        """Makes room for statistics of a layer's inputs, for every step; whether there was none.

        Its host then registers a pre-hook of the layer that calls :meth:`observe`, by way of the
        layer: a copy's hook must find the copy's follower.
        """
        fresh = not hasattr(self, INPUT_STATS)
        if fresh:
            slot = find_slots(layer)[""]
            self.add_module(INPUT_STATS, InputSquares(slot).to(slot.value.device))
        return fresh

    def observe(
        self, layer: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]
    ) -> None:
        """Adds the input of one forward pass of the layer to the statistics."""
        if self.moves:
            statistics = self.get_submodule(INPUT_STATS)
            assert isinstance(statistics, InputSquares)
            named = call_arguments(layer, arguments, keywords)
            if named is not None:
                statistics.add(layer, named)

    def extra_repr(self) -> str:  # noqa: D102 - inherited
        return str(self.plan.scheme)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(by_elements(fn), recurse)  # type: ignore[no-untyped-call,no-any-return]

    def __getstate__(self) -> dict[str, Any]:
        # torch copies no tensor that was computed from parameters.
        return {**self.__dict__, "_last": ()}

    def _pair(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The latent weight, and what it decodes to."""
        pinned = self.plan.scheme.pinned(weight.detach())
        latent = weight if pinned is None else weight.masked_fill(pinned, 0)
        decoded = self.small(weight).decode()
        if self.plan.zero_row is not None:
            decoded = decoded.index_fill(0, torch.tensor(self.plan.zero_row).to(decoded.device), 0)
        return latent, decoded

    def _leader(self, weight: Tensor) -> nn.Module:
        """The one follower of a weight which layers share."""
        # Where batch norm is folded in, the weight is a layer's own.
        if not (self.training and isinstance(weight, nn.Parameter)):
            return self
        followers = self.plan.conversion.followers
        if not followers:
            followers.append(self)
        return followers[0]

    def _fit(self, weight: Tensor) -> None:
        plan = self.plan
        small = self._named(quantize_weight, weight, plan.scheme, self._importance(), plan.seed)
        self.codes, self.codebooks = small.codes, small.codebooks.float()
        self.scale = None if small.scale is None else small.scale.float()

    def _follow(self, weight: Tensor) -> None:
        step = lloyd_step if self.moves else nearest_codes
        moved = self._named(step, weight, self.small(weight), self._importance())
        self.codes = moved.codes
        if self.moves:
            self.codebooks = _towards(moved.codebooks, self.codebooks)
            self.scale = _towards(moved.scale, self.scale)

    def _named(self, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except ValueError as error:
            raise ValueError(f"layer {self.plan.name!r}: {error}") from error

    def _importance(self) -> Tensor | None:
        statistics = getattr(self, INPUT_STATS, None)
        return None if statistics is None else self._named(statistics.importance)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any
    ) -> None:
        # Their shapes are those of the fit that was saved.
        for name in _STATE:
            value = state_dict.get(prefix + name)
            setattr(self, name, None if value is None else value.to(self._place.device, copy=True))
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def _towards(aim: Tensor | None, now: Tensor | None) -> Tensor | None:
    return None if aim is None or now is None else torch.lerp(now, aim.to(now.dtype), _PACE)


def _equal(a: CodebookWeight, b: CodebookWeight) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in _STATE]
    return all(x is y or (x is not None and torch.equal(x, y)) for x, y in pairs)
