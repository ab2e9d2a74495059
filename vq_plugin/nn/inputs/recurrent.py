"""Inputs of recurrent layers and cells: what comes in, and the hidden state before each step."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from vq_plugin.nn.inputs.matrix import Arguments

_NAME = re.compile(r"weight_(ih|hh)_l(\d+)(_reverse)?")


def cell_hidden(module: nn.Module, arguments: Arguments, parameter: str) -> Iterator[Tensor]:
    """The hidden state of a cell before its step."""
    del parameter
    state = arguments.get("hx")
    hidden = state[0] if isinstance(state, tuple | list) else state
    if hidden is None:
        value = arguments["input"]
        hidden = value.new_zeros(*value.shape[:-1], int(module.hidden_size))  # type: ignore[arg-type]
    yield hidden.reshape(1, -1, hidden.shape[-1]).float()


def layer_input(module: nn.Module, arguments: Arguments, parameter: str) -> Iterator[Tensor]:
    """What comes into one layer: the input, or the output of the layer before it."""
    assert isinstance(module, nn.RNNBase)
    match = _NAME.fullmatch(parameter)
    assert match is not None
    steps = _Steps.of(module, arguments)
    value, _ = _outputs(module, steps, int(match[2]))
    yield value[steps.real].unsqueeze(0).float()


def layer_hidden(module: nn.Module, arguments: Arguments, parameter: str) -> Iterator[Tensor]:
    """The hidden state of one layer and direction before each of its steps."""
    assert isinstance(module, nn.RNNBase)
    match = _NAME.fullmatch(parameter)
    assert match is not None
    layer, backward = int(match[2]), match[3] is not None
    steps = _Steps.of(module, arguments)
    value, start = _outputs(module, steps, layer)
    output, initial = _run_layer(module, steps, layer, value, start)
    hidden = output.chunk(2, -1)[backward] if module.bidirectional else output
    before = initial[int(backward)].unsqueeze(0)
    if backward:
        # A sequence ends before the padding: its first step backwards has the initial state.
        later = torch.cat([hidden[1:], before])
        last = steps.lengths - 1
        later[last, torch.arange(len(last))] = before[0]
        yield later[steps.real].unsqueeze(0).float()
    else:
        yield torch.cat([before, hidden[:-1]])[steps.real].unsqueeze(0).float()


@dataclass(frozen=True)
class _Steps:
    """A batch of sequences, padded.

    Attributes:
        value: ``(steps, sequences, inputs)``.
        lengths: Steps of every sequence, ``(sequences,)``.
        state: Hidden and, for an LSTM, cell state at the start, ``(layers · directions,
            sequences, ...)`` each.
    """

    value: Tensor
    lengths: Tensor
    state: tuple[Tensor, ...]

    @property
    def real(self) -> Tensor:
        """Which steps are no padding, ``(steps, sequences)``."""
        return torch.arange(len(self.value)).unsqueeze(1) < self.lengths

    @classmethod
    def of(cls, module: nn.RNNBase, arguments: Arguments) -> _Steps:
        value, state = arguments["input"], arguments.get("hx")
        states = () if state is None else state if isinstance(state, tuple) else (state,)
        if isinstance(value, PackedSequence):
            value, lengths = pad_packed_sequence(value)
        else:
            if value.dim() == 2:
                value = value.unsqueeze(1)
                states = tuple(each.unsqueeze(1) for each in states)
            elif module.batch_first:
                value = value.transpose(0, 1)
            lengths = torch.full((value.shape[1],), len(value))
        if not states:
            count = module.num_layers * (1 + module.bidirectional)
            width = module.proj_size or module.hidden_size
            states = (value.new_zeros(count, value.shape[1], width),)
            if isinstance(module, nn.LSTM):
                cells = value.new_zeros(count, value.shape[1], module.hidden_size)
                states = (*states, cells)
        return cls(value, lengths, states)


def _outputs(module: nn.RNNBase, steps: _Steps, layer: int) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What comes into a layer, and the state that it starts with."""
    directions = 1 + int(module.bidirectional)
    value = steps.value
    for before in range(layer):
        start = tuple(each[before * directions :][:directions] for each in steps.state)
        value, _ = _run_layer(module, steps, before, value, start)
    return value, tuple(each[layer * directions :][:directions] for each in steps.state)


def _run_layer(
    module: nn.RNNBase, steps: _Steps, layer: int, value: Tensor, start: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The output of one layer alone, ``(steps, sequences, ...)``, and its initial hidden state."""
    kind = next(kind for kind in (nn.LSTM, nn.GRU, nn.RNN) if isinstance(module, kind))
    single = kind(
        value.shape[-1],
        module.hidden_size,
        bias=module.bias,
        bidirectional=module.bidirectional,
        device="meta",
        dtype=value.dtype,
        **({"proj_size": module.proj_size} if module.proj_size else {}),
        **({"nonlinearity": module.nonlinearity} if isinstance(module, nn.RNN) else {}),
    )
    weights = {
        name: getattr(module, re.sub(r"_l0", f"_l{layer}", name))
        for name, _ in single.named_parameters()
    }
    packed = nn.utils.rnn.pack_padded_sequence(value, steps.lengths, enforce_sorted=False)
    state = start if isinstance(module, nn.LSTM) else start[0]
    output, _ = torch.func.functional_call(single, weights, (packed, state))
    padded, _ = pad_packed_sequence(output, total_length=len(value))
    return padded, start[0]
