"""One training that pays for the bits of the codes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vq_plugin.codebook import CodebookWeight
from vq_plugin.nn import Slot
from vq_plugin.rounding import round_centers
from vq_plugin.schemes import KM, torch_code_dtype
from vq_plugin.training.latent import REACH, LatentWeight
from vq_plugin.training.precision import Float32

# Codes are counted after so many steps.
_COUNT = 5
# Bits count fully from this part of the training on.
RAMP = 0.5
# From this part on codes stay, and centers go where the task wants them.
_SETTLED = 0.85
# Where bits are still too many then, weights below a limit become zero, which grows by this factor.
_WIDEN = 1.02
# The first step, over the deviation of the weight.
_STEP = 1.5
# Where a target is to be reached, and how the logarithm of what is too much falls until then: with
# this power of the part that is left, as seen on LeNet-300-100 at a price that stays.
_REACHED, _FALL = 0.7, 2.7
# How a target changes the price of a bit: its logarithm by so much over a whole training, for every
# unit of the logarithm of what is too much; and no more than this at once.
_GAIN = 6.0
_MOST_CHANGE = 1.0


class Learner(Float32):
    """A float32 model whose chosen weights are those of latent ones, see :class:`LatentWeight`.

    All that a step changes is in its ``state_dict``, so that a killed run can go on.

    Attributes:
        model: What runs; trained in place.
        latents: In the order of the chosen weights.
        rate_weight: What a bit costs, in units of the loss, float64; a target changes it.
        most_bits: What all codes together are to take; ``None`` where the weight is given.
    """

    rate_weight: Tensor
    first_bits: Tensor
    steps: Tensor
    done: Tensor
    steered: Tensor

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[Slot, nn.Parameter],
        rate_weight: float,
        most_bits: float | None,
    ) -> None:
        super().__init__(model)
        self.most_bits = most_bits
        self._slots = list(weights)
        self.latents = nn.ModuleList(LatentWeight(weight, _STEP) for weight in weights.values())
        chosen = {id(weight) for weight in weights.values()}
        self._others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
        self.register_buffer("rate_weight", torch.tensor(rate_weight, dtype=torch.float64))
        for name in ("done", "steered", "first_bits"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def groups(self, lr: float) -> list[dict[str, object]]:
        """What an optimizer trains, and how fast: centers in steps, when ``lr`` has nearly gone."""
        latents = list(self._latents())
        groups: list[dict[str, object]] = [
            {"params": [each.latent for each in latents], "lr": lr},
            {"params": [each.log_step for each in latents], "lr": 5 * lr},
            {"params": [each.shift for each in latents], "lr": 100 * lr},
        ]
        return groups + [{"params": self._others, "lr": lr}] * bool(self._others)

    def before_step(self, done: float) -> None:
        """Gives the model the weights that stand for the codes of now."""
        settled = self._settled
        self.done.fill_(done)
        if not self._settled and int(self.steps) % _COUNT == 0:
            self._count()
            self._steer(done)
        if self._settled and not settled:
            self._fit_in()
        self.steps += 1
        for each in self._latents():
            each.write(self._settled)

    def before_update(self, *_: object) -> None:
        """Gives the latent weights their gradients: a hook of the optimizer."""
        ramp = min(1.0, float(self.done) / RAMP)
        for each in self._latents():
            each.pull(float(self.rate_weight) * ramp, self._settled)

    @property
    def _settled(self) -> bool:
        return float(self.done) >= _SETTLED

    def _count(self) -> None:
        for each in self._latents():
            each.count()

    def _steer(self, done: float) -> None:
        """Changes what a bit costs, for as many bits as are wanted by now.

        Their logarithm is to fall as it does by itself at a price that fits: faster, and zeros that
        come too early hardly become weights again.
        """
        if self.most_bits is None:
            return
        bits = self.bits
        if float(self.first_bits) == 0:
            self.first_bits.fill_(bits)
        left = 1 - min(1.0, done / _REACHED)
        first = max(float(self.first_bits), self.most_bits)
        wanted = self.most_bits * (first / self.most_bits) ** left**_FALL
        passed = done - float(self.steered)
        self.steered.fill_(done)
        change = _GAIN * passed * math.log(max(bits, 1.0) / wanted)
        self.rate_weight *= math.exp(min(max(change, -_MOST_CHANGE), _MOST_CHANGE))

    def _fit_in(self) -> None:
        """Makes codes zero, those of the fewest steps first, until bits are as few as wanted."""
        self._count()
        most, limit = self.most_bits, 0.5
        while most is not None and self.bits > most and limit < REACH + 1:
            limit *= _WIDEN
            for each in self._latents():
                each.clear(limit)
            self._count()

    @property
    def bits(self) -> float:
        """Bits of all codes, when last counted."""
        return sum(float(each.bits) for each in self._latents())

    @property
    def weight_count(self) -> int:
        """Weights that are coded."""
        return sum(each.latent.numel() for each in self._latents())

    def coded(self) -> dict[str, CodebookWeight]:
        """The codes and centers of the chosen weights, by the names of their slots."""
        pairs = zip(self._slots, self._latents(), strict=True)
        return {slot.name: _coded(slot, latent) for slot, latent in pairs}

    def _latents(self) -> list[LatentWeight]:
        return list(self.latents)  # type: ignore[arg-type]


@torch.no_grad()
def _coded(slot: Slot, latent: LatentWeight) -> CodebookWeight:
    view = slot.view
    used, places = torch.unique(view.weight(latent.codes()).int() + REACH, return_inverse=True)
    scheme = KM(k=len(used), keep_zeros=True)
    geometry = scheme.geometry(view.shape)
    codes = geometry.matrix(places).reshape(geometry.code_shape)
    centers = latent.centers()[used].reshape(geometry.codebook_shape)
    return CodebookWeight(
        codes=codes.to(torch_code_dtype(len(used))),
        codebooks=round_centers(centers, scheme.codebook_dtype),
        scale=None,
        scheme=scheme,
        shape=view.shape,
        dtype=slot.value.dtype,
    )
