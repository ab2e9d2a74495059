"""Which scheme a float layer gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from torch import nn

from vq_plugin.arguments import check_whole
from vq_plugin.hosting.conversion import Conversion
from vq_plugin.nn import layer_slot
from vq_plugin.schemes import Scheme
from vq_plugin.select import Schemes, select, slots_by_name
from vq_plugin.ties import tied_weights

Rules: TypeAlias = tuple[tuple[type[nn.Module], Scheme | None], ...]


@dataclass(frozen=True)
class Plan:
    """What a host is to do to the float layers that it finds the plan at.

    It travels inside the host's settings, hence deep copies of it are equal to it, and those that
    are made together share what they have fitted. The first class of ``rules`` that fits decides.
    ``name`` is that of the first layer of the weight; where the plan is for more, messages show a
    layer's settings instead. ``zero_row`` is the padding of an embedding, where it is zero.
    """

    rules: Rules
    seed: int
    conversion: Conversion = field(default_factory=Conversion, compare=False)
    name: str | None = None
    zero_row: int | None = None

    @property
    def scheme(self) -> Scheme:
        """The scheme of a plan for one layer."""
        ((_, scheme),) = self.rules
        assert scheme is not None
        return scheme

    def scheme_for(self, module: nn.Module) -> Scheme | None:
        """The scheme for a float layer, or ``None`` to leave it as it is."""
        if layer_slot(module) is None:
            return None
        return next((scheme for kind, scheme in self.rules if isinstance(module, kind)), None)

    def convert(self, module: nn.Module) -> nn.Module:
        """The codebook layer for a float layer, or ``module`` itself where no rule fits it."""
        scheme = self.scheme_for(module)
        if scheme is None:
            return module
        name = self.name
        if name is None:
            # Without its statistics, which it holds as submodules, on lines of their own.
            name = f"{type(module).__name__}({module.extra_repr()})"
        return self.conversion.layer(module, scheme, self.seed, name)


def plans(model: nn.Module, schemes: Schemes, seed: int) -> dict[str, Plan]:
    """A plan for every chosen layer by its name; layers that share a weight share theirs.

    Arguments and errors are those of :func:`vq_plugin.compress`, but that weights are not looked
    at yet, and that a weight whose module no codebook layer can replace is an error.

    Example:
        >>> import vq_plugin as vq
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        >>> type(plans(model, {"1": vq.KM(k=4)}, seed=0)["1"].convert(model[1])).__name__
        'CodebookLinear'
    """
    seed = check_whole("seed", seed)
    chosen = select(model, schemes)
    slots = slots_by_name(model, chosen)
    for slot in slots.values():
        if slot.layer is None:
            raise ValueError(
                f"{slot.name!r} is a weight of {type(slot.module).__name__}, which no codebook "
                f"layer can replace: leave it with {{{slot.name!r}: None}}, or use "
                "vq_plugin.compress"
            )
    return shared_plans(model, chosen, dict.fromkeys(chosen, seed))


def shared_plans(
    model: nn.Module, chosen: Mapping[str, Scheme], seeds: Mapping[str, int]
) -> dict[str, Plan]:
    """As :func:`plans`, for schemes and seeds by the names of slots, whatever module they are of.

    ``ValueError`` if slots that share a weight are not all chosen, with one scheme.
    """
    slots = slots_by_name(model, chosen)
    ties = tied_weights(model, chosen)
    by_name: dict[str, Plan] = {}
    for name, scheme in chosen.items():
        shared = by_name.get(ties.get(name, name))
        by_name[name] = shared or Plan(
            ((nn.Module, scheme),), seeds[name], name=name, zero_row=_zero_row(slots[name].module)
        )
    return by_name


def _zero_row(module: nn.Module) -> int | None:
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        return None if bool(module.weight[module.padding_idx].any()) else module.padding_idx
    return None
