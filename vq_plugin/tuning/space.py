"""Which layers the search may change, and the schemes that each may choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from torch import nn

from vq_plugin.factorize.coded import checked_split
from vq_plugin.factorize.layers import parts_of_products
from vq_plugin.factors import SVD, Factored
from vq_plugin.nn import Slot
from vq_plugin.schemes import PQ, PRESETS, RQ, Scheme, Uniform
from vq_plugin.select import Form, Pattern, as_choices, match, no_preset, slots_by_name
from vq_plugin.slot_fit import check_not_lazy
from vq_plugin.ties import sharing

Ladder: TypeAlias = Form | str | Sequence[Form | str | None] | None
Candidates: TypeAlias = Ladder | Mapping[Pattern, Ladder]

# Smaller weights save less than their factors take in the header; larger ones take minutes to
# decompose.
_LEAST_WEIGHTS, _MOST_ROWS = 1 << 14, 2048

# From about 120x to 4x of a large layer, then float. Along the outputs each input feature has
# codebooks of its own, which suits large layers; one byte for each number keeps them small. Shared
# codebooks weigh nothing even on small layers. Networks that others trained need what presets
# choose from. Not here: what takes long to fit and is seldom chosen.
LADDER: tuple[Scheme | None, ...] = (
    PQ(k=4, dim=8, axis="out", codebook_dtype="int8"),
    PQ(k=8, dim=12, axis="out", codebook_dtype="int8"),
    PQ(k=16, dim=16, axis="out", codebook_dtype="int8"),
    PQ(k=8, dim=8, axis="out", codebook_dtype="int8"),
    PQ(k=32, dim=16, axis="out", codebook_dtype="int8"),
    PQ(k=8, dim=6, axis="out", codebook_dtype="int8"),
    PQ(k=16, dim=8, axis="out", codebook_dtype="int8"),
    PQ(k=32, dim=8, axis="out", codebook_dtype="int8"),
    PQ(k=16, dim=4, axis="out", codebook_dtype="int8"),
    PQ(k=16, dim=8, codebooks="tensor"),
    PQ(k=32, dim=8, codebooks="tensor"),
    PQ(k=64, dim=8, codebooks="tensor"),
    PQ(k=16, dim=6, codebooks="tensor"),
    PQ(k=16, dim=4, codebooks="tensor"),
    PQ(k=32, dim=4, codebooks="tensor"),
    PQ(k=16, dim=2, codebooks="tensor"),
    RQ(k=16, stages=2, dim=4, codebooks="tensor"),
    *(PQ(k=k, dim=1) for k in (16, 24, 32, 48, 64, 96)),
    *PRESETS["auto"].schemes,
    None,
)

# Where weights are nearly of a low rank, as large dense layers are: from about 20x to 500x.
FACTORS: tuple[Factored, ...] = tuple(
    Factored(SVD(rate=rate), Uniform(step=step))
    for rate in (2, 4, 8, 16, 32)
    for step in (0.5, 1.0)
)

#: What :func:`vq_plugin.tune` chooses from where nothing else is said.
BUILT_IN: tuple[Form | None, ...] = (*LADDER, *FACTORS)


def search_space(
    model: nn.Module, candidates: Candidates = BUILT_IN
) -> dict[str, tuple[Form | None, ...]]:
    """The schemes, and factors with theirs, that every layer may choose from.

    Args:
        model: The float model.
        candidates: What each layer may become: a scheme, also as text, or ``None`` (fixed), or a
            sequence of them (to be searched); for all layers, or by patterns as in
            :func:`vq_plugin.compress`. :class:`vq_plugin.Factored` among what a pattern gives to
            many layers is for those that have such factors, 2^14 weights or more and at most 2,048
            rows or columns; a layer that is named has to have them.

    Returns:
        Distinct schemes by layer name, in the order of the model. Layers that share a weight are
        one entry, under the name of the first.

    Raises:
        TypeError: If a pattern or a scheme is of the wrong type.
        ValueError: If a pattern matches nothing, a sequence is empty, no layer may change, a layer
            is lazy, or has no factors where there is nothing else for it, or layers that share a
            weight have different candidates.

    Example:
        >>> import vq_plugin as vq
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        >>> search_space(model, {"1": None, "*": [vq.KM(k=4), vq.KM(k=16)]})
        {'0': (KM(k=4), KM(k=16)), '1': (None,)}
    """
    by_pattern = candidates if isinstance(candidates, Mapping) else {"*": candidates}
    ladders: dict[Pattern, tuple[Form | None, ...]] = {}
    for pattern, ladder in by_pattern.items():
        ladders[pattern] = _as_tuple(pattern, ladder)
    leaving = [pattern for pattern, ladder in ladders.items() if ladder == (None,)]
    owners = match(model, ladders, leaving)
    space = {name: ladders[pattern] for name, pattern in owners.items()}
    slots, sharers = slots_by_name(model, space), sharing(model)
    parts = parts_of_products(model)
    refused: list[ValueError] = []
    for name, slot in slots.items():
        check_not_lazy(slot)
        named = owners[name] in (*slot.names, *slot.module_names)
        space[name], reasons = _possible(space[name], sharers[name], named, parts)
        refused += reasons
    if not any(scheme for ladder in space.values() for scheme in ladder):
        why = f"; {refused[0]}" if refused else ""
        raise ValueError(
            f"the candidates leave every layer as it is: there is nothing to search{why}"
        )
    return _merge_tied(model, space)


def _possible(
    ladder: tuple[Form | None, ...],
    slots: Sequence[Slot],
    named: bool,
    parts: Mapping[nn.Module, str],
) -> tuple[tuple[Form | None, ...], list[ValueError]]:
    """A ladder without the factors that a weight does not have; ``slots`` are all that have it.

    And why: raised for a layer that is named for them, or gets nothing else.
    """
    possible, reasons = [], []
    for form in ladder:
        try:
            if isinstance(form, Factored):
                for slot in slots:
                    _check_factors(form, slot, named, parts)
            possible.append(form)
        except ValueError as error:
            if named:
                raise
            # Where it came from would hold the model, and itself, beyond the search.
            reasons.append(error.with_traceback(None))
    if not possible:
        raise reasons[0]
    return tuple(possible), reasons


def _check_factors(form: Factored, slot: Slot, named: bool, parts: Mapping[nn.Module, str]) -> None:
    """``ValueError`` if a layer has no such factors, or is not named and better off without."""
    split, weights = checked_split(slot, form, parts), slot.weight.numel()
    if named:
        return
    remedy = "name the layer if they are meant, or give it a scheme alone"
    if weights < _LEAST_WEIGHTS:
        raise ValueError(
            f"layer {slot.shown}: factors seldom pay below {_LEAST_WEIGHTS:,} weights, and it has "
            f"{weights:,}: {remedy}"
        )
    if split.most > _MOST_ROWS:
        raise ValueError(
            f"layer {slot.shown}: factors take minutes above {_MOST_ROWS:,} rows, and it has "
            f"{split.most:,}: {remedy}"
        )


def _as_tuple(pattern: Pattern, ladder: Ladder) -> tuple[Form | None, ...]:
    if ladder is None or isinstance(ladder, Form | str):
        ladder = (ladder,)
    if not isinstance(ladder, Sequence):
        raise TypeError(
            f"candidates for {pattern!r} must be a scheme, None or a sequence of them, got "
            f"{ladder!r}"
        )
    if not ladder:
        raise ValueError(f"candidates for {pattern!r} are empty: give at least one scheme or None")
    # No presets: a search is to choose by itself.
    return tuple(
        dict.fromkeys(no_preset(pattern, as_choices({pattern: entry})[pattern]) for entry in ladder)
    )


def _merge_tied(
    model: nn.Module, space: dict[str, tuple[Form | None, ...]]
) -> dict[str, tuple[Form | None, ...]]:
    owners = sharing(model)
    merged: dict[str, tuple[Form | None, ...]] = {}
    for name, ladder in space.items():
        first, *others = (slot.name for slot in owners[name])
        for other in {first, *others} - {name}:
            if space.get(other, (None,)) != ladder:
                raise ValueError(
                    f"layers {name!r} and {other!r} share one weight: give both the same candidates"
                )
        if first == name:
            merged[name] = ladder
    return merged
