"""Which of the weights that pay for their bits do so as vectors."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from vq_plugin.nn import Slot
from vq_plugin.schemes import Scheme
from vq_plugin.select import Schemes, select
from vq_plugin.ties import sharing
from vq_plugin.training.latent import WIDEST

_LONG = (1 << 16, 1 << 16)


def chosen_vectors(
    model: nn.Module, slots: Iterable[Slot], schemes: Schemes | None
) -> dict[str, Scheme]:
    """The schemes of the weights that learn as vectors, by the names of their slots.

    Args:
        model: Float model.
        slots: Those of the weights that learn.
        schemes: As for :func:`vq_plugin.learn`.

    Raises:
        TypeError, ValueError: As :func:`vq_plugin.select.select`; and ``ValueError`` for a scheme
            that does not learn, or for two of one weight.
    """
    if schemes is None:
        return {}
    asked, owners = select(model, schemes), sharing(model)
    vectors: dict[str, Scheme] = {}
    for slot in slots:
        own = {asked.get(each.name, WIDEST) for each in owners[slot.name]}
        if len(own) > 1:
            names = " and ".join(repr(each.name) for each in owners[slot.name])
            raise ValueError(f"layers {names} share one weight: choose one scheme for both")
        scheme = own.pop()
        if scheme == WIDEST:
            continue
        if not _learns(scheme, slot):
            raise ValueError(
                f"layer {slot.shown}: {scheme} does not learn: give pq(...) without scale=, or "
                "nothing for single numbers; what is to stay float is left out of layers="
            )
        vectors[slot.name] = scheme
    return vectors


def _learns(scheme: Scheme, slot: Slot) -> bool:
    """Whether sub-vectors of the weight are centers, nothing more, that may go anywhere."""
    geometry = scheme.geometry(slot.view.shape)
    plain = geometry.stages == geometry.groups == 1 and not geometry.scaled
    # Rows of this layer may be shorter than its vectors.
    return plain and scheme.trains and scheme.geometry(_LONG).dim > 1
