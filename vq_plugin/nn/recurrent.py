"""Recurrent layers whose steps run by codes: the product with the hidden state is of few samples.

Torch's own loop needs decoded weights. Here torch computes the gates, and an operator the products.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vq_plugin.nn.coded import CodedWeight
from vq_plugin.ops import KERNEL_CENTERS, PRECISIONS, native, recording
from vq_plugin.ops.choices import LinearChoices, RecurrentChoices
from vq_plugin.ops.costs import LinearShape

_PLAIN = (Tensor, nn.Parameter)
_EXACT = PRECISIONS["exact"]
_ARGUMENTS = ("input", "hx")
_REMEMBERED = 256  # kinds of layers
_SHAPE = "_shape_of_kernels"

# With an input or a hidden state, its weight and its bias.
_Product = Callable[[Tensor], Tensor]
_State = tuple[Tensor, ...]
# Of what comes in at each step, (sequences, gates), the product with the hidden state, the state at
# the start, and where each hidden state goes: the state at the end.
_Steps = Callable[[Sequence[Tensor], _Product, _State, Sequence[Tensor]], _State]


def computed_by_codes(
    module: nn.Module,
    coded: Mapping[str, CodedWeight],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> tuple[Tensor, Any] | None:
    """What ``nn.LSTM``, ``nn.GRU`` or ``nn.RNN`` computes, where codes are expected to be faster.

    ``None`` where they are not, where something records, gradients are on, dropout is at work or
    sequences are packed, and for arguments that torch has errors for.

    Args:
        module: The layer.
        coded: Its coded parameters, by name.
        args: Of the call.
        kwargs: Of the call.
    """
    assert isinstance(module, nn.RNNBase)
    named = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
    if len(named) != len(args) + len(kwargs) or not named.keys() <= {*_ARGUMENTS}:
        return None
    input, hx = named.get("input"), named.get("hx")
    if not _takes(module, input):
        return None
    assert isinstance(input, Tensor)
    alone = input.dim() == 2
    steps = input.unsqueeze(1) if alone else input.transpose(0, 1) if module.batch_first else input
    if steps.numel() == 0 or not (_pays(module, coded, steps) and _read(module, coded)):
        return None
    start = _start(module, steps, hx, alone)
    if start is None:
        return None
    output, ends = run_by_codes(module, coded, steps, start)
    if alone:
        output, ends = output.squeeze(1), tuple(each.squeeze(1) for each in ends)
    elif module.batch_first:
        output = output.transpose(0, 1)
    return output, ends if isinstance(module, nn.LSTM) else ends[0]


def _takes(module: nn.RNNBase, input: Any) -> bool:
    return (
        not (torch.is_grad_enabled() or recording() or torch.is_autocast_enabled("cpu"))
        and type(input) in _PLAIN
        and input.dim() in (2, 3)
        and input.size(-1) == module.input_size
        and _floats(input)
        and not (module.training and module.dropout)
        and not module.proj_size
    )


def _floats(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.dtype is torch.float32 and not tensor.is_nested


def _read(module: nn.RNNBase, coded: Mapping[str, CodedWeight]) -> bool:
    """Whether kernels read every weight that meets the hidden state, and all is of one dtype."""
    names = module._flat_weights_names
    hidden = [name for name in names if name.startswith("weight_hh")]
    if native() is None or not coded.keys() >= set(hidden):
        return False
    tables = [table for each in coded.values() for table in each._tables() if table is not None]
    own = [getattr(module, name) for name in names if name not in coded]
    return all(type(each) in _PLAIN and _floats(each) for each in (*tables, *own)) and all(
        each.codebooks.size(3) <= KERNEL_CENTERS for each in coded.values()
    )


def _start(module: nn.RNNBase, steps: Tensor, hx: Any, alone: bool) -> _State | None:
    """Hidden and, of an LSTM, cell state: ``(layers · directions, sequences, ...)`` each."""
    shape = (
        module.num_layers * (1 + module.bidirectional), steps.size(1), module.hidden_size
    )  # fmt: skip
    count = 1 + isinstance(module, nn.LSTM)
    if hx is None:
        return (steps.new_zeros(shape),) * count
    states = hx if isinstance(hx, tuple | list) and count == 2 else (hx,)
    if len(states) != count or not all(type(each) in _PLAIN and _floats(each) for each in states):
        return None
    found = tuple(each.unsqueeze(1) if alone and each.dim() == 2 else each for each in states)
    return found if all(each.shape == shape for each in found) else None


def _pays(module: nn.RNNBase, coded: Mapping[str, CodedWeight], steps: Tensor) -> bool:
    shapes: dict[bool, list[LinearShape]] = {False: [], True: []}
    for name, each in coded.items():
        shapes["_hh_" in name].append(shape_of(each))
    decodes = any(each.memory == "codes" for each in coded.values())
    kind = next(kind for kind in _STEPS if isinstance(module, kind))
    choices = _choices(BESIDE[kind], tuple(shapes[True]), tuple(shapes[False]), decodes)
    return choices[steps.size(0), steps.size(1)]


# What is shared goes with the last that holds it, and layers of torch hold nothing of ours.
_choices = lru_cache(_REMEMBERED)(RecurrentChoices.of)


def shape_of(weight: CodedWeight) -> LinearShape:
    """What kernels are told apart by."""
    # Found once: it follows from the geometry, and short passes notice.
    known: LinearShape | None = vars(weight).get(_SHAPE)
    if known is None:
        known = _shape_of(weight)
        setattr(weight, _SHAPE, known)
    return known


def _shape_of(weight: CodedWeight) -> LinearShape:
    cut = weight.geometry
    stages, _, _, k, dim = cut.codebook_shape
    packed = weight._codes.dim() == 4
    along_out = cut.axis == "out"
    out, in_ = weight.weight_shape
    return in_, out, stages, k, dim, cut.group or 0, cut.books == 1, packed, along_out, False


def run_by_codes(
    module: nn.RNNBase, coded: Mapping[str, CodedWeight], value: Tensor, start: _State
) -> tuple[Tensor, _State]:
    """Outputs, ``(steps, sequences, ...)``, and the state at the end, of an input likewise."""
    steps = next(run for kind, run in _STEPS.items() if isinstance(module, kind))
    if isinstance(module, nn.RNN) and module.nonlinearity == "relu":
        steps = _relu_steps
    directions, width = 1 + int(module.bidirectional), module.hidden_size
    samples = value.size(0) * value.size(1)
    ends: list[_State] = []
    for layer in range(module.num_layers):
        output = value.new_empty(*value.shape[:2], directions * width)
        for direction, there in enumerate(output.chunk(directions, 2)):
            suffix = f"_l{layer}" + "_reverse" * direction
            incoming = _product(module, coded, "ih" + suffix, samples)(value).unbind(0)
            hidden = there.unbind(0)
            if direction:
                incoming, hidden = incoming[::-1], hidden[::-1]
            product = _product(module, coded, "hh" + suffix, None)
            first = tuple(each[len(ends)] for each in start)
            ends.append(steps(incoming, product, first, hidden))
        value = output
    return value, tuple(torch.stack(each) for each in zip(*ends, strict=True))


def _product(
    module: nn.RNNBase, coded: Mapping[str, CodedWeight], name: str, samples: int | None
) -> _Product:
    """With the weight and the bias of a name.

    By codes, or decoded where codes do not pay for so many samples; ``None``: those of a step.
    """
    bias = getattr(module, f"bias_{name}") if module.bias else None
    own = coded.get(f"weight_{name}")
    if own is None:
        weight = getattr(module, f"weight_{name}")
        return lambda input: functional.linear(input, weight, bias)
    decodes = own.memory == "codes"
    if samples is not None and not LinearChoices.of(shape_of(own), _EXACT, 1, decodes)[samples]:
        kept = own._kept_weight()
        return lambda input: functional.linear(input, kept, bias)
    codebooks, scale = own._tables()
    # Rounded here, once for all steps.
    codebooks = own._rounded_codebooks(codebooks)
    scale = None if scale is None else own._rounded_scale(scale)
    cut, out, codes = own.geometry, own.weight_shape[0], own._codes
    settings = (out, cut.axis == "out", cut.group or 0, torch.float32, _EXACT)
    operator = torch.ops.vq.codebook_linear.inference
    return lambda input: operator(input, codes, codebooks, scale, bias, *settings)


def _lstm_steps(
    incoming: Sequence[Tensor], product: _Product, state: _State, outputs: Sequence[Tensor]
) -> _State:
    hidden, cell = state[0], state[1].clone()
    width = hidden.size(1)
    gates = torch.empty_like(incoming[0])
    opened, candidate, shown = gates.split_with_sizes([2 * width, width, width], 1)
    added, kept = opened.chunk(2, 1)
    squashed = torch.empty_like(cell)
    for value, output in zip(incoming, outputs, strict=True):
        torch.add(product(hidden), value, out=gates)
        opened.sigmoid_()
        candidate.tanh_()
        shown.sigmoid_()
        cell.mul_(kept).addcmul_(added, candidate)
        torch.tanh(cell, out=squashed)
        hidden = torch.mul(shown, squashed, out=output)
    return hidden.clone(), cell


def _gru_steps(
    incoming: Sequence[Tensor], product: _Product, state: _State, outputs: Sequence[Tensor]
) -> _State:
    hidden = state[0]
    width = hidden.size(1)
    gates = torch.empty_like(incoming[0])
    opened, candidate = gates.split_with_sizes([2 * width, width], 1)
    reset, update = opened.chunk(2, 1)
    for value, output in zip(incoming, outputs, strict=True):
        into, mixed = value.split_with_sizes([2 * width, width], 1)
        from_hidden, remembered = product(hidden).split_with_sizes([2 * width, width], 1)
        torch.add(from_hidden, into, out=opened).sigmoid_()
        torch.addcmul(mixed, remembered, reset, out=candidate).tanh_()
        hidden = torch.sub(hidden, candidate, out=output).mul_(update).add_(candidate)
    return (hidden.clone(),)


def _plain_steps(
    activate: Callable[[Tensor], Tensor],
    incoming: Sequence[Tensor],
    product: _Product,
    state: _State,
    outputs: Sequence[Tensor],
) -> _State:
    hidden = state[0]
    for value, output in zip(incoming, outputs, strict=True):
        hidden = activate(torch.add(product(hidden), value, out=output))
    return (hidden.clone(),)


_tanh_steps = partial(_plain_steps, torch.tanh_)
_relu_steps = partial(_plain_steps, torch.relu_)


_STEPS: dict[type[nn.RNNBase], _Steps] = {
    nn.LSTM: _lstm_steps,
    nn.GRU: _gru_steps,
    nn.RNN: _tanh_steps,
}
# Picoseconds that a step takes more here, as shipped, than in torch's own loop, beside products.
BESIDE = {nn.LSTM: 16e6, nn.GRU: 12e6, nn.RNN: 3e6}
# Whose loop this is; a subclass may have another one.
OWN_LOOPS = frozenset(kind.forward for kind in _STEPS)
