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
    run = _Run.of(module, arguments)
    layer, _ = _place(parameter)
    yield run.steps.rows(run.before(layer))


def layer_hidden(module: nn.Module, arguments: Arguments, parameter: str) -> Iterator[Tensor]:
    """The hidden state of one layer and direction before each of its steps."""
    run = _Run.of(module, arguments)
    layer, backward = _place(parameter)
    steps, output = run.steps, run.before(layer + 1)
    hidden = output.chunk(2, -1)[backward] if run.module.bidirectional else output
    before = run.start(layer)[0][int(backward)].unsqueeze(0)
    if backward:
        # A sequence ends before the padding: its first step backwards has the initial state.
        later = torch.cat([hidden[1:], before])
        last = steps.lengths - 1
        later[last, torch.arange(len(last))] = before[0]
        yield steps.rows(later)
    else:
        yield steps.rows(torch.cat([before, hidden[:-1]]))


def _place(parameter: str) -> tuple[int, bool]:
    """Layer and direction of a parameter."""
    match = _NAME.fullmatch(parameter)
    assert match is not None
    return int(match[2]), match[3] is not None


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
    def padded(self) -> bool:
        """Whether any sequence is shorter than the longest."""
        return bool((self.lengths < len(self.value)).any())

    def rows(self, value: Tensor) -> Tensor:
        """Steps that are no padding: ``(1, samples, ...)`` of ``(steps, sequences, ...)``."""
        if self.padded:
            value = value[torch.arange(len(value)).unsqueeze(1) < self.lengths]
        else:
            value = value.flatten(0, 1)
        return value.unsqueeze(0).float()

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


class _Run:
    """What comes into the layers of a module in one call; each runs once, when it is asked for."""

    def __init__(self, module: nn.RNNBase, steps: _Steps) -> None:
        self.module, self.steps = module, steps
        self._values = [steps.value]

    @classmethod
    def of(cls, module: nn.Module, arguments: Arguments) -> _Run:
        """The one of a call that all weights of the module share."""
        assert isinstance(module, nn.RNNBase)
        computed = getattr(arguments, "computed", {})
        if "run" not in computed:
            computed["run"] = cls(module, _Steps.of(module, arguments))
        run: _Run = computed["run"]
        return run

    def start(self, layer: int) -> tuple[Tensor, ...]:
        """The state that a layer starts with."""
        directions = 1 + int(self.module.bidirectional)
        return tuple(each[layer * directions :][:directions] for each in self.steps.state)

    def before(self, layer: int) -> Tensor:
        """What comes into a layer; of the number of layers, what comes out of the last."""
        for at in range(len(self._values) - 1, layer):
            self._values.append(self._output(at, self._values[at]))
        return self._values[layer]

    def _output(self, layer: int, value: Tensor) -> Tensor:
        """The output of one layer alone, ``(steps, sequences, ...)``."""
        module = self.module
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
        start = self.start(layer)
        state = start if isinstance(module, nn.LSTM) else start[0]
        steps = self.steps
        if not steps.padded:
            whole, _ = torch.func.functional_call(single, weights, (value, state))
            assert isinstance(whole, Tensor)
            return whole
        packed = nn.utils.rnn.pack_padded_sequence(value, steps.lengths, enforce_sorted=False)
        output, _ = torch.func.functional_call(single, weights, (packed, state))
        padded, _ = pad_packed_sequence(output, total_length=len(value))
        return padded
