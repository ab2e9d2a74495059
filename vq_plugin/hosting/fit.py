"""The fit of one weight in a host's pipeline, which has inputs of layers and nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

from vq_plugin.codebook import CodebookWeight
from vq_plugin.fit.output.moments import Moments
from vq_plugin.schemes import Scheme
from vq_plugin.slot_fit import fit_named

_known: ContextVar[Mapping[str, CodebookWeight] | None] = ContextVar("known fits", default=None)


@contextmanager
def fitted_before(weights: Mapping[str, CodebookWeight]) -> Iterator[None]:
    """Hosts that convert within it take these, by the names of slots, in the place of fits.

    Between a host's calls there is no way but its own settings, which are text, or copied deeply.
    """
    token = _known.set(weights)
    try:
        yield
    finally:
        _known.reset(token)


def fit_gathered(
    name: str, weight: Tensor, scheme: Scheme, moments: Moments | None, seed: int
) -> CodebookWeight:
    """:func:`vq_plugin.slot_fit.fit_named`; warns of a scheme that goes by more than inputs."""
    known = _known.get()
    if known is not None:
        return known[name]
    if scheme.feels and moments is not None:
        warnings.warn(
            f"{scheme} goes by what the outputs of the model feel of each row, which hosts cannot "
            "know: here rows count by their size; vq.compress takes gradients",
            stacklevel=2,
        )
    return fit_named(name, weight, scheme, moments=moments, seed=seed)
