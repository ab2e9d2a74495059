"""What the search may choose from."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from vq_plugin.codebook import expected_nbytes
from vq_plugin.schemes import KM, PQ, Scheme
from vq_plugin.select import Schemes, select

# From about 60x to 4x of a large layer. Shared codebooks keep their rate on small layers too.
LADDER: tuple[Scheme, ...] = (
    PQ(k=16, dim=8, codebooks="tensor"),
    PQ(k=64, dim=8, codebooks="tensor"),
    PQ(k=256, dim=8, codebooks="tensor"),
    PQ(k=8, dim=4, axis="out"),
    PQ(k=16, dim=4, axis="out"),
    PQ(k=16, dim=4, codebooks="tensor"),
    PQ(k=64, dim=4, codebooks="tensor"),
    PQ(k=256, dim=4, codebooks="tensor"),
    PQ(k=16, dim=2, codebooks="tensor"),
    PQ(k=256, dim=2, codebooks="tensor"),
    KM(k=4),
    KM(k=8),
    KM(k=16),
    KM(k=32),
    KM(k=256),
)


def model_nbytes(model: nn.Module, schemes: Schemes) -> int:
    """Bytes of the weights that a setting would compress or leave, before any fit.

    Args:
        model: The float model.
        schemes: The setting, as in :func:`vq_plugin.compress`.

    Returns:
        Expected bytes of the chosen weights plus the float bytes of all other parameters.
    """
    chosen: Mapping[str, Scheme] = select(model, schemes)
    modules = dict(model.named_modules())
    sizes = {id(p): p.nbytes for p in model.parameters()}
    for name, scheme in chosen.items():
        weight = modules[name].weight
        assert isinstance(weight, nn.Parameter)
        sizes[id(weight)] = expected_nbytes(tuple(weight.shape), scheme)
    return sum(sizes.values())
