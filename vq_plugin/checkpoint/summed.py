"""Recurrent layers add two biases: of both a file needs the sum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

# Not the GRU, which multiplies one of them by a gate.
_LAYERS = (nn.LSTM, nn.RNN, nn.LSTMCell, nn.RNNCell)


def summed_biases(model: nn.Module) -> dict[int, Tensor]:
    """What does as well as the biases of recurrent layers: their sum, and zeros.

    Returns:
        By the ``id`` of each bias, new parameters: the sum in the place of that of the inputs,
        zeros in that of the hidden state. Biases of classes derived from torch's, which may use
        them otherwise, and such as have several names are not among them.

    Example:
        >>> layer = nn.LSTM(3, 2)
        >>> found = summed_biases(layer)
        >>> torch.equal(found[id(layer.bias_ih_l0)], layer.bias_ih_l0 + layer.bias_hh_l0)
        True
        >>> found[id(layer.bias_hh_l0)].any().item()
        False
    """
    named = model.named_parameters(remove_duplicate=False)
    names = Counter(id(value) for _, value in named)
    found: dict[int, Tensor] = {}
    for module in model.modules():
        if type_before_parametrizations(module) not in _LAYERS:
            continue
        for first, second in _pairs(module):
            once = names[id(first)] == names[id(second)] == 1 and not first.is_meta
            if once and first.dtype == second.dtype:
                total = (first.detach().double() + second.detach()).to(first.dtype)
                found[id(first)] = nn.Parameter(total, first.requires_grad)
                found[id(second)] = nn.Parameter(torch.zeros_like(second), second.requires_grad)
    return found


def _pairs(module: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    own = module._parameters
    for name, value in own.items():
        other = own.get(name.replace("_ih", "_hh"))
        if name.startswith("bias_ih") and value is not None and other is not None:
            yield value, other
