"""The fit of one weight in a host's pipeline, which has inputs of layers and nothing else."""

from __future__ import annotations

import warnings

from torch import Tensor

from vq_plugin.codebook import CodebookWeight
from vq_plugin.fit.output.moments import Moments
from vq_plugin.schemes import Scheme
from vq_plugin.slot_fit import fit_named


def fit_gathered(
    name: str, weight: Tensor, scheme: Scheme, moments: Moments | None, seed: int
) -> CodebookWeight:
    """:func:`vq_plugin.slot_fit.fit_named`; warns of a scheme that goes by more than inputs."""
    if scheme.feels and moments is not None:
        warnings.warn(
            f"{scheme} has a step for each row by what the outputs of the model feel of it, which "
            "hosts cannot know: here steps go by the size of rows; vq.compress takes gradients",
            stacklevel=2,
        )
    return fit_named(name, weight, scheme, moments=moments, seed=seed)
