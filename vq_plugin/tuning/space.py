"""Which layers the search may change, and the schemes that each may choose from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from torch import nn

from vq_plugin.schemes import PQ, PRESETS, RQ, Scheme
from vq_plugin.select import Pattern, as_patterns, match, slots_by_name
from vq_plugin.slot_fit import check_not_lazy
from vq_plugin.ties import sharing

Ladder: TypeAlias = Scheme | str | Sequence[Scheme | str | None] | None
Candidates: TypeAlias = Ladder | Mapping[Pattern, Ladder]

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
    *PRESETS["auto"].schemes,
    None,
)


def search_space(
    model: nn.Module, candidates: Candidates = LADDER
) -> dict[str, tuple[Scheme | None, ...]]:
    """The schemes that every layer may choose from.

    Args:
        model: The float model.
        candidates: What each layer may become: a scheme, also as text, or ``None`` (fixed), or a
            sequence of them (to be searched); for all layers, or by patterns as in
            :func:`vq_plugin.compress`.

    Returns:
        Distinct schemes by layer name, in the order of the model. Layers that share a weight are
        one entry, under the name of the first.

    Raises:
        TypeError: If a pattern or a scheme is of the wrong type.
        ValueError: If a pattern matches nothing, a sequence is empty, no layer may change, a layer
            is lazy, or layers that share a weight have different candidates.

    Example:
        >>> import vq_plugin as vq
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        >>> search_space(model, {"1": None, "*": [vq.KM(k=4), vq.KM(k=16)]})
        {'0': (KM(k=4), KM(k=16)), '1': (None,)}
    """
    by_pattern = candidates if isinstance(candidates, Mapping) else {"*": candidates}
    ladders: dict[Pattern, tuple[Scheme | None, ...]] = {}
    for pattern, ladder in by_pattern.items():
        ladders[pattern] = _as_tuple(pattern, ladder)
    leaving = [pattern for pattern, ladder in ladders.items() if ladder == (None,)]
    owners = match(model, ladders, leaving)
    space = {name: ladders[pattern] for name, pattern in owners.items()}
    for slot in slots_by_name(model, space).values():
        check_not_lazy(slot)
    if not any(scheme for ladder in space.values() for scheme in ladder):
        raise ValueError("the candidates leave every layer as it is: there is nothing to search")
    return _merge_tied(model, space)


def _as_tuple(pattern: Pattern, ladder: Ladder) -> tuple[Scheme | None, ...]:
    if ladder is None or isinstance(ladder, Scheme | str):
        ladder = (ladder,)
    if not isinstance(ladder, Sequence):
        raise TypeError(
            f"candidates for {pattern!r} must be a scheme, None or a sequence of them, got "
            f"{ladder!r}"
        )
    if not ladder:
        raise ValueError(f"candidates for {pattern!r} are empty: give at least one scheme or None")
    # As a mapping of schemes, which has no presets: a search is to choose by itself.
    return tuple(dict.fromkeys(as_patterns({pattern: entry})[pattern] for entry in ladder))


def _merge_tied(
    model: nn.Module, space: dict[str, tuple[Scheme | None, ...]]
) -> dict[str, tuple[Scheme | None, ...]]:
    owners = sharing(model)
    merged: dict[str, tuple[Scheme | None, ...]] = {}
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
