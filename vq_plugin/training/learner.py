"""One training that pays for the bits of the codes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vq_plugin.codebook import CodebookWeight
from vq_plugin.nn import Slot
from vq_plugin.replace import assemble
from vq_plugin.schemes import Scheme
from vq_plugin.sizes import codes_nbytes
from vq_plugin.training.latent import REACH, LatentWeight
from vq_plugin.training.latent_base import Latent, Paying
from vq_plugin.training.latent_biases import LatentBiases
from vq_plugin.training.latent_vectors import LatentVectors
from vq_plugin.training.precision import Float32

# Codes are counted after so many steps.
_COUNT = 5
# Bits count fully from this part of the training on.
RAMP = 0.5
# From this part on codes stay, and centers go where the task wants them.
_SETTLED = 0.85
# Weights become zero by a limit that is found by halving an interval so many times.
_HALVINGS = 16
# So often, the first half of the times from where training left them.
_ATTEMPTS = 8
# The first step, over the deviation of the weight.
_STEP = 1.5
# Where a target is to be reached, and how the logarithm of what is too much falls until then: with
# this power of the part that is left, as seen on LeNet-300-100 at a price that stays.
_REACHED, _FALL = 0.85, 3.2
# How a target changes the price of a bit: its logarithm by so much over a whole training, for every
# unit of the logarithm of what is too much; at once by this; and no more than so much at once. A
# price that changes little costs the least accuracy.
_GAIN, _AT_ONCE = 16.0, 2.0
_MOST_CHANGE = 1.0
# How far bits are foreseen: a part of the training, and as many steps as Adam's momentum lasts.
_AHEAD, _MOMENTUM = 0.05, 15
# The file is measured again after such a part of the training: tables shrink with the codes.
_MEASURED = 0.1
# Of the target, what is left for norms and biases that change their size once codes have settled.
_SLACK = 0.004
# Bytes by which the header of equal weights may differ: the digits of its checksum.
_DIGITS = 16


@dataclass(frozen=True)
class Target:
    """What a file is to take.

    Attributes:
        nbytes: At most.
        file_size: Bytes of the file of a compressed model.
    """

    nbytes: int
    file_size: Callable[[nn.Module], int]


class Learner(Float32):
    """A float32 model whose chosen weights are those of latent ones, see :class:`Latent`.

    All that a step changes is in its ``state_dict``, so that a killed run can go on.

    Attributes:
        model: What runs; trained in place.
        latents: In the order of the chosen weights.
        biases: One, of all parameters that a file keeps as numbers, or none.
        rate_weight: What a bit costs in the long run, in units of the loss, float64; a target
            changes it.
        price: What it costs now.
        room: Bits of all codes that fit into the target, when last measured.
    """

    rate_weight: Tensor
    price: Tensor
    room: Tensor
    measured: Tensor
    first_bits: Tensor
    last_bits: Tensor
    slope: Tensor
    steps: Tensor
    done: Tensor
    steered: Tensor

    def __init__(
        self,
        model: nn.Module,
        weights: Mapping[Slot, nn.Parameter],
        rate_weight: float,
        target: Target | None,
        *,
        vectors: Mapping[str, Scheme],
        biases: Sequence[nn.Parameter],
        seed: int,
    ) -> None:
        """``vectors`` are schemes by the names of slots; other weights are numbers.

        Of the other parameters that train, ``biases`` are those that a file keeps as numbers.
        """
        super().__init__(model)
        self._target = target
        self._slots = list(weights)
        self._vectors = vectors
        self.latents = nn.ModuleList(
            LatentVectors(weight, slot, vectors[slot.name], seed)
            if slot.name in vectors
            else LatentWeight(weight, _STEP)
            for slot, weight in weights.items()
        )
        self.biases = nn.ModuleList([LatentBiases(biases)] if biases else [])
        chosen = {id(weight) for weight in (*weights.values(), *biases)}
        self._others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
        for name in ("rate_weight", "price"):
            self.register_buffer(name, torch.tensor(rate_weight, dtype=torch.float64))
        for name in ("done", "steered", "first_bits", "room", "measured", "last_bits", "slope"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def groups(self, lr: float) -> list[dict[str, object]]:
        """What an optimizer trains, and how fast."""
        groups = [group for each in self._paying() for group in each.groups(lr)]
        return groups + [{"params": self._others, "lr": lr}] * bool(self._others)

    def before_step(self, done: float) -> None:
        """Gives the model the weights that stand for the codes of now."""
        settled = self._settled
        self.done.fill_(done)
        if not self._settled and int(self.steps) % _COUNT == 0:
            self._count()
            if self._target is not None:
                self._steer(self._target, done)
        if self._settled and not settled:
            self.fit_in(_SLACK)
        self.steps += 1
        for each in self._paying():
            each.write(self._settled)

    def before_update(self, *_: object) -> None:
        """Gives the latent weights their gradients: a hook of the optimizer."""
        ramp = min(1.0, float(self.done) / RAMP)
        for each in self._paying():
            each.pull(float(self.price) * ramp, self._settled)

    @property
    def _settled(self) -> bool:
        return float(self.done) >= _SETTLED

    def _count(self) -> None:
        for each in self._paying():
            each.count()

    def _steer(self, target: Target, done: float) -> None:
        """Changes what a bit costs, for as many bits as are wanted by now.

        Their logarithm is to fall as it does by itself at a price that stays: faster, and zeros
        that come too early hardly become weights again; more slowly, and much is cut at the end.
        Where bits are, or are about to be, few enough to fit, they cost nothing.
        """
        bits = max(self.bits, 1.0)
        if float(self.first_bits) == 0:
            self.first_bits.fill_(bits)
        if float(self.room) == 0 or done - float(self.measured) >= _MEASURED:
            self._measure(target.nbytes * (1 - _SLACK))
            self.measured.fill_(done)
        most = float(self.room)
        passed = done - float(self.steered)
        self.steered.fill_(done)
        if passed > 0:
            slope = math.log(bits / float(self.last_bits)) / passed
            self.slope += min(1.0, passed / _AHEAD) * (slope - float(self.slope))
        self.last_bits.fill_(bits)
        # Weights on their way to zero go on for a while.
        ahead = max(_AHEAD, _MOMENTUM / _COUNT * passed)
        change = _clamp(ahead * float(self.slope))
        left = 1 - min(1.0, (done + ahead / 2) / _REACHED)
        wanted = most * max(1.0, float(self.first_bits) / most) ** left**_FALL
        too_much = math.log(bits / wanted) + change / 2
        self.rate_weight *= math.exp(_clamp(_GAIN * passed * too_much))
        self.price.copy_(self.rate_weight * math.exp(_clamp(_AT_ONCE * too_much)))
        if bits * math.exp(min(0.0, change)) < most:
            self.price.zero_()

    def _measure(self, nbytes: float) -> bool:
        """Finds how many bits of codes fit into a file of so many bytes; whether there are more."""
        assert self._target is not None
        small = assemble(self.model, self.coded())
        size, codes = self._target.file_size(small), codes_nbytes(small)
        # Tables of rows and columns need fewer bits than those that are counted here.
        share = max(self.bits, 8.0) / max(codes, 1)
        self.room.fill_(share * max(nbytes - (size - codes), 0.01 * nbytes))
        return size > nbytes

    def fit_in(self, slack: float) -> None:
        """Makes codes zero, those of the fewest steps first, until the file is as small as wanted.

        ``slack`` is a part of the target that stays free.
        """
        self._count()
        if self._target is None:
            return
        nbytes = self._target.nbytes * (1 - slack) - _DIGITS
        if not self._measure(nbytes):
            return
        before = [each.kept() for each in self._latents()]
        # What else is in the file changes with the codes: what fits is known better each time.
        for attempt in range(_ATTEMPTS):
            if attempt < _ATTEMPTS // 2:
                for each, kept in zip(self._latents(), before, strict=True):
                    each.restore(kept)
            self._clear()
            if not self._measure(nbytes) and attempt + 1 >= _ATTEMPTS // 2:
                return

    def _clear(self) -> None:
        """Makes as few weights zero as leave no more bits than there is room for."""
        low, high = 0.5, REACH + 1.0
        for _ in range(_HALVINGS):
            middle = math.sqrt(low * high)
            fits = sum(each.bits_above(middle) for each in self._latents()) < float(self.room)
            low, high = (low, middle) if fits else (middle, high)
        for each in self._latents():
            each.clear(high)
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
        return {slot.name: latent.coded(slot) for slot, latent in pairs}

    @property
    def vectors(self) -> dict[str, str]:
        """The schemes of the weights that learn as vectors, as texts."""
        return {f"scheme of {name}": str(scheme) for name, scheme in self._vectors.items()}

    def _paying(self) -> list[Paying]:
        return [*self._latents(), *self.biases]

    def _latents(self) -> list[Latent]:
        return list(self.latents)  # type: ignore[arg-type]


def _clamp(change: float) -> float:
    return min(max(change, -_MOST_CHANGE), _MOST_CHANGE)
