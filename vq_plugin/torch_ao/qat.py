"""Schemes as the ``QConfigMapping`` of quantization-aware training."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.ao.quantization import PlaceholderObserver, QConfig, QConfigMapping

from vq_plugin.model import check_layer, tied_weights
from vq_plugin.nn import CODEBOOK_LAYERS
from vq_plugin.select import Schemes, select
from vq_plugin.torch_ao.fake_quantize import CodebookFakeQuantize, Training


def get_qat_qconfig_mapping(
    model: nn.Module, schemes: Schemes, base: QConfigMapping | None = None, *, seed: int = 0
) -> QConfigMapping:
    """Tells ``prepare_qat_fx`` which layers learn to be codebook layers.

    It takes the model, unlike :func:`get_qconfig_mapping`: for training the host goes by exact
    names, hence patterns are resolved here, and what cannot be trained is an error before the
    training.

    Args:
        model: Float model; it is not changed.
        schemes: One scheme for every layer that can take it, or patterns to schemes, as in
            :func:`vq_plugin.compress`; ``None`` leaves a layer to ``base``.
        base: The mapping for everything that the schemes leave, such as
            ``get_default_qat_qconfig_mapping("x86")``; without it that stays float. Not changed.
        seed: Seed of the fits that training starts from.

    Returns:
        A mapping for ``prepare_qat_fx``, together with :func:`get_backend_config`.

    Raises:
        TypeError: If a pattern or a scheme is of the wrong type.
        ValueError: If a pattern matches nothing, a layer cannot be compressed or cannot be
            trained by torch.ao, or layers that share a weight would get different schemes.

    Example:
        >>> import vq_plugin as vq
        >>> from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx
        >>> from vq_plugin.torch_ao import check_converted, get_backend_config
        >>> model, schemes = nn.Sequential(nn.Linear(64, 32)).train(), vq.PQ(k=16, dim=4)
        >>> backend, batch = get_backend_config(), torch.randn(8, 64)
        >>> mapping = get_qat_qconfig_mapping(model, schemes)
        >>> prepared = prepare_qat_fx(model, mapping, (batch,), backend_config=backend)
        >>> optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
        >>> prepared(batch).square().mean().backward()
        >>> optimizer.step()
        >>> small = check_converted(convert_fx(prepared.eval(), backend_config=backend), schemes)
        >>> type(small.get_submodule("0")).__name__
        'CodebookLinear'
    """
    chosen = select(model, schemes)
    ties = tied_weights(model, chosen)
    mapping = QConfigMapping() if base is None else copy.deepcopy(base)
    plans: dict[str, Training] = {}
    for name, scheme in chosen.items():
        _check_trains(name, model.get_submodule(name))
        plans[name] = plans.get(ties.get(name, name)) or Training(name, scheme, seed)
        mapping.set_module_name(name, _qconfig(plans[name]))
    return mapping


def _qconfig(plan: Training) -> QConfig:
    return QConfig(  # type: ignore[no-untyped-call]
        activation=PlaceholderObserver.with_args(dtype=torch.float32),
        weight=CodebookFakeQuantize.with_args(plan=plan),
    )


def _check_trains(name: str, module: nn.Module) -> None:
    """Raises ``ValueError`` for a layer that training would be lost on."""
    check_layer(name, module)
    if not name:
        raise ValueError("torch.ao trains layers inside a model only: wrap it in nn.Sequential")
    kind = type(module).__name__
    leave = f"leave it with {{{name!r}: None}}"
    if type(module) not in CODEBOOK_LAYERS:
        raise ValueError(
            f"layer {name!r} is {kind}: torch.ao trains plain torch.nn layers only; {leave}"
        )
    if "weight" not in module._parameters:
        raise ValueError(
            f"layer {name!r}: its weight is computed from other parameters; make pruning permanent "
            f"with torch.nn.utils.prune.remove, or {leave}"
        )
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        raise ValueError(
            f"layer {name!r}: max_norm={module.max_norm} rewrites the weight as it runs; set it to "
            f"None, or {leave}"
        )
