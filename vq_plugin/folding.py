"""Batch norms folded into the layers before them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn
from torch.fx import Node, Tracer
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.nn.utils.parametrize import type_before_parametrizations

from vq_plugin.nn import CodebookLayer, coded_parameters
from vq_plugin.replace import assemble
from vq_plugin.select import check_model

_LAYERS = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d,
    nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Folds batch norms into the layers before them, where that is exact but for rounding.

    That is where nothing else, such as a hook, reads the output of a Linear, a convolution or a
    transposed one without groups, and both run once in a pass. A norm after a Linear is taken to
    be one of its features, as :mod:`torch.ao` takes it. Files are smaller by the norm, and fits
    see the weights that run. Fold before :func:`vq_plugin.tune` and :func:`vq_plugin.compress`;
    norms that are to train, as in :func:`vq_plugin.learn`, fold afterwards: codebook layers take
    them into row scales, which the ``codebook_dtype`` of their scheme rounds. Those with
    ``axis="out"`` have none, and layers that hold codes by a parametrization; their norms stay.

    Args:
        model: Model in eval mode that :mod:`torch.fx` can trace; it is not changed.

    Returns:
        A copy; folded norms are ``nn.Identity``.

    Raises:
        ValueError: If the model or such a norm is in training mode, or it cannot be traced.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
        >>> folded = fold_batch_norms(model)
        >>> sorted(folded.state_dict())
        ['0.bias', '0.weight']
        >>> x = torch.randn(1, 1, 8, 8)
        >>> torch.allclose(folded(x), model(x), atol=1e-6)
        True
    """
    check_model(model)
    if model.training:
        raise ValueError(
            "the model is in training mode: call model.eval() before folding its norms"
        )
    pairs = norm_pairs(model)
    for name in pairs:
        if model.get_submodule(name).training:
            raise ValueError(f"norm {name!r} is in training mode: call model.eval() before folding")
    return fold(model, pairs)


@torch.inference_mode(False)
@torch.no_grad()
def fold(model: nn.Module, pairs: dict[str, str]) -> nn.Module:
    """A copy with these norms, by their names with those of the layers before, folded."""
    folded = assemble(model, {})
    for norm_name, name in pairs.items():
        layer, norm = folded.get_submodule(name), folded.get_submodule(norm_name)
        assert isinstance(norm, _BatchNorm)
        if _is_coded(layer):
            rescaled = _rescaled(layer, norm) if isinstance(layer, CodebookLayer) else None
            if rescaled is not None:
                folded.set_submodule(name, rescaled)
                folded.set_submodule(norm_name, nn.Identity())
            continue
        assert norm.running_mean is not None
        assert norm.running_var is not None
        values = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, nn.Parameter)
        assert bias is None or isinstance(bias, nn.Parameter)
        if isinstance(layer, nn.Linear):
            layer.weight, layer.bias = fuse_linear_bn_weights(weight, bias, *values)
        else:
            transposed = isinstance(layer, _ConvTransposeNd)
            layer.weight, layer.bias = fuse_conv_bn_weights(weight, bias, *values, transposed)
        folded.set_submodule(norm_name, nn.Identity())
    return folded


def _rescaled(layer: CodebookLayer, norm: _BatchNorm) -> CodebookLayer | None:
    """A codebook layer and its norm as one whose rows have scales; ``None`` if they cannot.

    That is where rows are not outputs, and where a scale is beyond the range of its dtype.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    small = layer.codebook_weight
    if small.geometry.axis == "out":
        return None
    factor = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        factor *= norm.weight.double()
    dtype = small.scheme.torch_codebook_dtype
    scale = (factor if small.scale is None else factor * small.scale.double()).to(dtype)
    lost = (scale.abs() < torch.finfo(dtype).tiny) & (factor != 0)
    if not bool(scale.isfinite().all()) or bool(lost.any()):
        return None
    plain = layer.to_float()
    before = 0.0 if layer.bias is None else layer.bias.double()
    bias = (before - norm.running_mean.double()) * factor
    if norm.bias is not None:
        bias += norm.bias.double()
    trains = norm.bias is None or norm.bias.requires_grad
    plain.bias = nn.Parameter(bias.to(norm.running_mean.dtype), requires_grad=trains)
    scheme = replace(small.scheme, scale="row")
    rescaled = type(layer)(plain, replace(small, scale=scale, scheme=scheme))
    rescaled.precision = layer.precision
    return rescaled


def norm_pairs(model: nn.Module) -> dict[str, str]:
    """The layer before each norm that can be folded, by name; also codebook layers.

    ValueError if the model cannot be traced.
    """
    try:
        nodes = list(_Calls().trace(model).nodes)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"batch norms cannot be folded, as torch.fx cannot trace the model: {reason}; fold "
            "them by torch.nn.utils.fusion, or with example inputs by "
            "vq_plugin.torchao.fused_float"
        ) from error
    calls = Counter(str(node.target) for node in nodes if node.op == "call_module")
    owners = Counter(
        id(value) for module in model.modules() for value in module.parameters(recurse=False)
    )
    found: dict[str, str] = {}
    for node, before in _neighbours(nodes):
        names = str(node.target), str(before.target)
        norm, layer = map(model.get_submodule, names)
        alone = max(calls[name] for name in names) == 1 and all(
            owners[id(value)] == 1 for each in (layer, norm) for value in each.parameters()
        )
        hooks = layer._forward_hooks or norm._forward_pre_hooks or norm._forward_hooks
        plain = not hooks and not any("forward" in vars(each) for each in (layer, norm))
        if alone and plain and isinstance(norm, _BatchNorm) and _folds(layer, norm):
            found[names[0]] = names[1]
    return found


def _neighbours(nodes: list[Node]) -> Iterator[tuple[Node, Node]]:
    """Calls of modules whose only input is the output of another, which nothing else reads."""
    for node in nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if isinstance(before, Node) and before.op == "call_module" and len(before.users) == 1:
            yield node, before


def _folds(layer: nn.Module, norm: _BatchNorm) -> bool:
    if type(norm) not in _NORMS:
        return False  # It may do more, such as an activation.
    if norm.running_mean is None or norm.running_var is None:
        return False
    kind = type(layer)
    if isinstance(layer, CodebookLayer):
        kind = layer.float_type
    elif coded_parameters(layer):
        kind = type_before_parametrizations(layer)
    if kind not in _LAYERS:
        return False
    if issubclass(kind, nn.Linear):
        return bool(layer.out_features == norm.num_features)
    if layer.out_channels != norm.num_features:
        return False
    return not issubclass(kind, _ConvTransposeNd) or bool(layer.groups == 1)


def _is_coded(layer: nn.Module) -> bool:
    return isinstance(layer, CodebookLayer) or bool(coded_parameters(layer))


def foldable_nbytes(model: nn.Module) -> int:
    """Bytes in a file that folding probably saves: of norms that come right after a layer.

    By the order of modules, which is mostly that of calls: a hint must not call the model.
    """
    saved, before = 0, model
    for name, module in model.named_modules():
        if "parametrizations" in name.split("."):
            continue
        if isinstance(module, _BatchNorm) and _folds(before, module):
            saved += sum(value.nbytes for value in module.state_dict().values())
            if getattr(before, "bias", None) is None and module.running_mean is not None:
                # Which the layer has afterwards.
                saved -= module.running_mean.nbytes
        if next(module.children(), None) is None or coded_parameters(module):
            before = module
    return saved


class _Calls(Tracer):
    """Layers of torch and of codes are called, whatever they do inside."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is not looked into."""
        known = isinstance(m, CodebookLayer | _BatchNorm | _ConvNd | nn.Linear)
        return known or super().is_leaf_module(m, module_qualified_name)
