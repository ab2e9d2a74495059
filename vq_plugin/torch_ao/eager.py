"""Eager mode: ``convert(prepare(assign_qconfigs(model, schemes)), mapping=...)``."""

from __future__ import annotations

from torch import nn
from torch.ao.nn import intrinsic

from vq_plugin.hosting.plan import plans
from vq_plugin.replace import assemble
from vq_plugin.select import Schemes
from vq_plugin.torch_ao.backend import LAYERS, CodebookReference
from vq_plugin.torch_ao.qconfig import plan_of, plan_qconfig

_FUSED = (intrinsic.LinearReLU, intrinsic.ConvReLU1d, intrinsic.ConvReLU2d, intrinsic.ConvReLU3d)


class FusedReference(nn.Module):
    """Where the host turns a fused float module into a quantized one; never instantiated."""

    @classmethod
    def from_float(cls, module: nn.Sequential) -> nn.Sequential:
        """Makes a codebook layer of the first of the fused modules and keeps the rest."""
        plan = plan_of(module)
        first, *rest = module
        return nn.Sequential(first if plan is None else plan.convert(first), *rest)


def get_eager_mapping() -> dict[type[nn.Module], type[nn.Module]]:
    """The ``mapping`` for the host's eager ``convert``.

    Returns:
        Float classes, fused ones included, to the classes that make codebook layers of them.

    Example:
        >>> import vq_plugin as vq
        >>> from torch.ao.quantization import convert, prepare
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        >>> prepared = prepare(assign_qconfigs(model, vq.PQ(k=16, dim=4)))
        >>> type(convert(prepared, mapping=get_eager_mapping())[0]).__name__
        'CodebookLinear'
    """
    plain: dict[type[nn.Module], type[nn.Module]] = dict.fromkeys(LAYERS, CodebookReference)
    return {**plain, **dict.fromkeys(_FUSED, FusedReference)}


def assign_qconfigs(model: nn.Module, schemes: Schemes, *, seed: int = 0) -> nn.Module:
    """Sets ``.qconfig`` on the layers that are to become codebook layers.

    Args:
        model: Float model; it is not changed.
        schemes: One scheme for every layer that can take it, or patterns to schemes, as in
            :func:`vq_plugin.compress`.
        seed: Seed of the fits.

    Returns:
        A copy of the model for ``torch.ao.quantization.prepare``.

    Raises:
        TypeError: If a pattern or a scheme is of the wrong type.
        ValueError: If a pattern matches nothing, a layer cannot be compressed, or layers that
            share a weight would get different schemes.

    Example:
        >>> import vq_plugin as vq
        >>> model = assign_qconfigs(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), {"1": vq.PQ()})
        >>> [hasattr(layer, "qconfig") for layer in model]
        [False, True]
    """
    by_name = plans(model, schemes, seed)
    model = assemble(model, {})
    for name, plan in by_name.items():
        qconfig = plan_qconfig(plan)
        parent = model.get_submodule(name.rpartition(".")[0])
        layer = model.get_submodule(name)
        # Eager convert replaces what fuse_modules made as a whole.
        for owner in (layer, parent) if isinstance(parent, _FUSED) else (layer,):
            owner.qconfig = qconfig  # type: ignore[assignment]
    return model
