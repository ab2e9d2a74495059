"""The inputs that meet a weight: their product with it is what its module computes."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from vq_plugin.calibration import input_moments
from vq_plugin.nn import find_slots
from vq_plugin.nn.inputs import Arguments, Patches


def all_rows(piece: Tensor | Patches) -> Tensor:
    return piece if isinstance(piece, Tensor) else piece.rows(torch.arange(piece.shape[1]))


def products(module: nn.Module, name: str, arguments: Arguments) -> Tensor:
    """``(samples, out)``: the weight of a slot with every input that meets it."""
    slot = find_slots(module)[name]
    assert slot.observable
    assert slot.kind.inputs is not None
    with torch.no_grad():
        pieces = slot.kind.inputs(slot.host, arguments, slot.key)
        rows = torch.cat([all_rows(piece) for piece in pieces], 1)
        groups = len(rows)
        assert groups == slot.kind.groups(slot.host)
        weight = slot.weight.reshape(groups, -1, rows.shape[2])
        return (rows @ weight.mT).transpose(0, 1).flatten(1)


@settings(max_examples=60, deadline=None)
@given(
    dims=st.integers(1, 3),
    groups=st.sampled_from([1, 2]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    padding=st.integers(0, 3),
    output_padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    batched=st.booleans(),
)
def test_patches_of_a_transposed_convolution(
    dims: int,
    groups: int,
    kernel: int,
    stride: int,
    padding: int,
    output_padding: int,
    dilation: int,
    batched: bool,
) -> None:
    if output_padding >= max(stride, dilation):
        output_padding = 0
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    module = kind(
        4,
        6,
        kernel,
        stride=stride,
        padding=padding,
        output_padding=output_padding,
        dilation=dilation,
        groups=groups,
        bias=False,
    )
    x = torch.randn(2, 4, *[5] * dims)[slice(None) if batched else 0]
    if (5 - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1 < 1:
        return
    expected = module(x)
    expected = expected if batched else expected.unsqueeze(0)
    found = products(module, "", {"input": x})
    assert torch.allclose(found, expected.movedim(1, -1).reshape(-1, 6), atol=1e-4)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_patches_are_the_same_in_every_dtype_and_memory_format(data: st.DataObject) -> None:
    dims, groups = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))

    def drawn(least: int, most: int) -> tuple[int, ...]:
        return tuple(data.draw(st.integers(least, most)) for _ in range(dims))

    value = torch.randn(2, groups * data.draw(st.integers(1, 3)), *drawn(3, 7)).half().float()
    patches = Patches(
        value, drawn(1, 3), drawn(1, 3), tuple(zip(drawn(0, 3), drawn(-1, 3), strict=True)),
        drawn(1, 2), groups, data.draw(st.booleans()),
    )  # fmt: skip
    assume(min(patches.places) > 0)
    index = torch.randint(patches.shape[1], (9,))
    # Those of half precision are read by torch, with an index for every number.
    expected = replace(patches, value=value.half()).rows(index)
    assert torch.equal(patches.rows(index), expected)
    turned = replace(patches, value=value.transpose(1, -1).contiguous().transpose(1, -1))
    assert torch.equal(turned.rows(index), expected)


def test_pairs_of_a_bilinear_layer() -> None:
    module = nn.Bilinear(3, 4, 5, bias=False)
    one, two = torch.randn(2, 7, 3), torch.randn(2, 7, 4)
    found = products(module, "", {"input1": one, "input2": two})
    assert torch.allclose(found, module(one, two).reshape(-1, 5), atol=1e-5)


def test_query_key_and_value_meet_their_thirds_of_the_packed_projection() -> None:
    module = nn.MultiheadAttention(8, 2, bias=False, batch_first=True)
    query, memory = torch.randn(2, 3, 8), torch.randn(2, 6, 8)
    arguments = {"query": query, "key": memory, "value": memory}
    found = products(module, "in_proj_weight", arguments)
    # As many of each: every second of the memory.
    inputs = (query.reshape(-1, 8), *[memory.reshape(-1, 8)[::2]] * 2)
    thirds = zip(inputs, module.in_proj_weight.chunk(3), strict=True)
    assert torch.allclose(found, torch.cat([x @ w.T for x, w in thirds], 1), atol=1e-5)


@pytest.mark.parametrize("name", ["q_proj_weight", "k_proj_weight", "v_proj_weight"])
def test_separate_projections_meet_their_own_inputs(name: str) -> None:
    module = nn.MultiheadAttention(8, 2, kdim=5, vdim=6)
    arguments = {
        "query": torch.randn(3, 2, 8),
        "key": torch.randn(4, 2, 5),
        "value": torch.randn(4, 2, 6),
    }
    role = {"q": "query", "k": "key", "v": "value"}[name[0]]
    weight = getattr(module, name)
    expected = arguments[role].reshape(-1, weight.shape[1]) @ weight.T
    assert torch.allclose(products(module, name, arguments), expected, atol=1e-5)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_what_heads_attended_to_meets_the_projection_of_the_outputs(
    batch_first: bool, bias: bool
) -> None:
    module = nn.MultiheadAttention(8, 2, bias=bias, batch_first=batch_first).eval()
    x, y = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    hidden = torch.tensor([[False, True, False], [False, False, True]])
    arguments = {
        "query": x,
        "key": y,
        "value": y,
        "key_padding_mask": hidden if batch_first else None,
    }
    seen = len(module._forward_pre_hooks)
    found = products(module, "out_proj", arguments)
    expected, _ = module(**arguments)
    if bias:
        expected = expected - module.out_proj.bias
    assert torch.allclose(found, expected.reshape(-1, 8), atol=1e-5)
    assert len(module._forward_pre_hooks) == seen


def step_by_step(
    module: nn.RNN, layer: int, x: Tensor, lengths: list[int], start: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Output and pre-activations' hidden parts of one ReLU layer, sequence by sequence."""
    outputs = torch.zeros(len(x), x.shape[1], module.hidden_size * (1 + module.bidirectional))
    hidden_parts = []
    for direction in range(1 + module.bidirectional):
        suffix = "_reverse" * direction
        w_ih, w_hh = (getattr(module, f"weight_{kind}_l{layer}{suffix}") for kind in ("ih", "hh"))
        parts = torch.full((len(x), x.shape[1], module.hidden_size), torch.nan)
        for sample, length in enumerate(lengths):
            hidden = start[direction, sample]
            steps = range(length) if not direction else range(length - 1, -1, -1)
            for step in steps:
                parts[step, sample] = hidden @ w_hh.T
                hidden = (x[step, sample] @ w_ih.T + parts[step, sample]).relu()
                columns = slice(direction * module.hidden_size, None)
                outputs[step, sample, columns][: module.hidden_size] = hidden
        hidden_parts.append(parts)
    return outputs, hidden_parts


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("form", ["batch first", "steps first", "packed", "one sequence"])
@pytest.mark.parametrize("given_state", [True, False])
def test_inputs_and_hidden_states_of_a_recurrent_layer(
    bidirectional: bool, form: str, given_state: bool
) -> None:
    torch.manual_seed(0)
    module = nn.RNN(
        3,
        4,
        num_layers=2,
        nonlinearity="relu",
        bias=False,
        bidirectional=bidirectional,
        batch_first=form == "batch first",
    )
    directions, batch = 1 + bidirectional, 1 if form == "one sequence" else 3
    x = torch.randn(5, batch, 3)
    lengths = [2, 5, 3] if form == "packed" else [5] * batch
    state = (
        torch.rand(2 * directions, batch, 4)
        if given_state
        else torch.zeros(2 * directions, batch, 4)
    )
    value = {
        "batch first": x.transpose(0, 1),
        "steps first": x,
        "packed": pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False),
        "one sequence": x[:, 0],
    }[form]
    arguments: dict[str, object] = {"input": value}
    if given_state:
        arguments["hx"] = state[:, 0] if form == "one sequence" else state
    with torch.no_grad():
        real = torch.arange(5).unsqueeze(1) < torch.tensor(lengths)
        for layer in range(2):
            output, hidden = step_by_step(module, layer, x, lengths, state[layer * directions :])
            for direction in range(directions):
                suffix = f"_l{layer}{'_reverse' * direction}"
                weight = getattr(module, f"weight_ih{suffix}")
                found = products(module, f"weight_ih{suffix}", arguments)
                assert torch.allclose(found, x[real] @ weight.T, atol=1e-5)
                found = products(module, f"weight_hh{suffix}", arguments)
                assert torch.allclose(found, hidden[direction][real], atol=1e-5)
            x = output


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_hidden_states_of_gated_layers_are_their_outputs_a_step_before(
    kind: type[nn.RNNBase],
) -> None:
    module = kind(3, 4, batch_first=True)
    x = torch.randn(2, 6, 3)
    with torch.no_grad():
        before = torch.cat([torch.zeros(2, 1, 4), module(x)[0][:, :-1]], 1)
        expected = before.transpose(0, 1).reshape(-1, 4) @ module.weight_hh_l0.T
    assert torch.allclose(products(module, "weight_hh_l0", {"input": x}), expected, atol=1e-5)


def test_a_call_runs_every_recurrent_layer_once_for_all_its_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module, runs = nn.LSTM(3, 4, num_layers=3), []
    forward = nn.LSTM.forward

    def counted(self: nn.LSTM, input: Tensor, hx: object = None) -> object:
        runs.append(self.input_size)
        return forward(self, input, hx)

    monkeypatch.setattr(nn.LSTM, "forward", counted)
    input_moments(module, find_slots(module).values(), [torch.randn(5, 2, 3)])
    # The three layers, and the module itself.
    assert runs == [3, 4, 4, 3]


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_cells(kind: type[nn.RNNCellBase], batch: tuple[int, ...]) -> None:
    module = kind(3, 4)
    x, hidden = torch.randn(*batch, 3), torch.randn(*batch, 4)
    state = (hidden, torch.randn(*batch, 4)) if kind is nn.LSTMCell else hidden
    arguments = {"input": x, "hx": state}
    expected = (x @ module.weight_ih.T).reshape(-1, len(module.weight_ih))
    assert torch.allclose(products(module, "weight_ih", arguments), expected, atol=1e-5)
    expected = (hidden @ module.weight_hh.T).reshape(-1, len(module.weight_hh))
    assert torch.allclose(products(module, "weight_hh", arguments), expected, atol=1e-5)
    assert not products(module, "weight_hh", {"input": x}).any()
