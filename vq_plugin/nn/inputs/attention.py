"""Inputs of the projections of ``nn.MultiheadAttention``."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from vq_plugin.nn.inputs.matrix import Arguments
from vq_plugin.nn.shallow_copy import shallow_copy

_ROLES = ("query", "key", "value")


def projected(module: nn.Module, arguments: Arguments, parameter: str) -> Iterator[Tensor]:
    """Query, key and value, as three groups of the packed projection or each for its own."""
    del module
    rows = [_rows(arguments[role]) for role in _ROLES]
    if parameter == "in_proj_weight":
        # A query may be shorter than what it attends to: all three count alike.
        samples = min(map(len, rows))
        yield torch.stack([_thinned(each, samples) for each in rows])
    else:
        yield rows["qkv".index(parameter[0])].unsqueeze(0)


def attended(module: nn.Module, arguments: Arguments, parameter: str) -> Iterator[Tensor]:
    """What heads attended to, before the projection of the outputs."""
    del parameter
    assert isinstance(module, nn.MultiheadAttention)
    # The same module without hooks, with an identity in the place of that projection.
    twin = shallow_copy(module)
    for hooks in ("_forward_hooks", "_forward_pre_hooks"):
        twin.__dict__[hooks] = OrderedDict()
    width = module.embed_dim
    weight = module.out_proj.weight
    identity: dict[str, Tensor] = {
        "out_proj.weight": torch.eye(width, dtype=weight.dtype, device=weight.device)
    }
    if module.out_proj.bias is not None:
        identity["out_proj.bias"] = torch.zeros_like(module.out_proj.bias)
    call = {**arguments, "need_weights": False}
    output, _ = torch.func.functional_call(twin, identity, args=(), kwargs=call)
    yield _rows(output).unsqueeze(0)


def _rows(value: Tensor) -> Tensor:
    return value.reshape(-1, value.shape[-1]).float()


def _thinned(rows: Tensor, count: int) -> Tensor:
    return rows[torch.arange(count, device=rows.device) * len(rows) // count]
