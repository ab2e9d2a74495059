"""Recurrent layers whose steps run by codes."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_sequence

import vq_plugin as vq
from tests.nn.test_parameter import decoded
from vq_plugin.nn import coded_parameters, coded_weights, recurrent
from vq_plugin.ops import native
from vq_plugin.ops.choices import RecurrentChoices

pytestmark = pytest.mark.skipif(native() is None, reason="there are no native kernels")

LAYERS: dict[str, Callable[[], nn.RNNBase]] = {
    "lstm": lambda: nn.LSTM(6, 32),
    "deep lstm": lambda: nn.LSTM(6, 32, 2, bidirectional=True, batch_first=True),
    "lstm without bias": lambda: nn.LSTM(6, 32, bias=False),
    "gru": lambda: nn.GRU(6, 32, 2),
    "gru both ways": lambda: nn.GRU(6, 32, bidirectional=True),
    "rnn": lambda: nn.RNN(6, 32, batch_first=True),
    "relu": lambda: nn.RNN(6, 32, nonlinearity="relu", bidirectional=True),
}
SCHEMES = [
    vq.PQ(k=16, dim=4),
    vq.PQ(k=16, dim=4, axis="out"),
    vq.PQ(k=20, dim=8),
    vq.RQ(k=8, stages=2, dim=4, scale="row"),
    vq.KM(k=16, group=32),
    vq.KM(k=40, codebook_dtype="int8"),
]


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> nn.RNNBase:
    torch.manual_seed(0)
    return LAYERS[request.param]().eval()


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RecurrentChoices, "_decide", lambda self, input: True)
    recurrent._choices.cache_clear()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each pass ran by codes."""
    passes: list[bool] = []
    plain = recurrent.run_by_codes

    def run(*arguments: Any) -> Any:
        passes.append(True)
        return plain(*arguments)

    monkeypatch.setattr(recurrent, "run_by_codes", run)
    return passes


def tensors(output: Any) -> list[Tensor]:
    return (
        [output]
        if isinstance(output, Tensor)
        else [one for each in output for one in tensors(each)]
    )


def assert_close(got: Any, expected: Any) -> None:
    for a, b in zip(tensors(got), tensors(expected), strict=True):
        assert a.shape == b.shape
        assert torch.allclose(a, b, atol=2e-6, rtol=1e-5)


def state_of(layer: nn.RNNBase, sequences: int) -> Any:
    count = layer.num_layers * (1 + layer.bidirectional)
    state = torch.randn(count, sequences, layer.hidden_size)
    return (state, torch.randn_like(state)) if isinstance(layer, nn.LSTM) else state


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@torch.no_grad()
def test_steps_by_codes_are_those_of_the_decoded_layer(
    layer: nn.RNNBase, scheme: vq.Scheme, always: None, counted: list[bool]
) -> None:
    small = vq.compress(layer, scheme)
    plain = decoded(layer, small)
    several, one = torch.randn(5, 7, 6), torch.randn(9, 6)
    assert_close(small(several), plain(several))
    state = state_of(layer, 5 if layer.batch_first else 7)
    assert_close(small(several, state), plain(several, state))
    assert_close(small(one), plain(one))
    alone = state_of(layer, 1)
    alone = tuple(each[:, 0] for each in alone) if isinstance(alone, tuple) else alone[:, 0]
    assert_close(small(one, hx=alone), plain(one, hx=alone))
    assert len(counted) == 4


@torch.no_grad()
def test_the_weight_of_the_hidden_state_is_not_decoded(always: None) -> None:
    small = vq.compress(nn.LSTM(32, 32).eval(), vq.PQ(k=16, dim=4))
    small(torch.randn(3, 1, 32))
    assert coded_parameters(small)["weight_hh_l0"]._decoded.kept is None


@torch.no_grad()
def test_weights_that_meet_inputs_may_be_float(
    layer: nn.RNNBase, always: None, counted: list[bool]
) -> None:
    names = [name for name, _ in layer.named_parameters() if name.startswith("weight_hh")]
    small = vq.compress(layer, dict.fromkeys(names, vq.PQ(k=16, dim=4)))
    assert coded_parameters(small).keys() == set(names)
    x = torch.randn(4, 2, 6)
    assert_close(small(x), decoded(layer, small)(x))
    assert counted


@torch.no_grad()
def test_a_float_weight_of_a_hidden_state_keeps_torchs_loop(
    always: None, counted: list[bool]
) -> None:
    small = vq.compress(
        nn.GRU(6, 32, 2).eval(), {"weight_ih_l1": vq.KM(k=4), "weight_hh_l1": vq.KM(k=4)}
    )
    small(torch.randn(4, 2, 6))
    assert not counted


def test_what_torch_records_and_packs_stays_with_torch(always: None, counted: list[bool]) -> None:
    layer = nn.LSTM(6, 32, 2, dropout=0.5).eval()
    small = vq.compress(layer, vq.KM(k=16))
    x = torch.randn(4, 2, 6)
    small(x.requires_grad_())[0].sum().backward()
    assert x.grad is not None
    assert bool(x.grad.any())
    x = x.detach()
    with torch.no_grad():
        small(pack_sequence([x[:, 0], x[:2, 1]]))
        small.train()(x)
        small.eval()
        with torch.autocast("cpu"):
            small(x)
        torch.jit.trace(small, (x,), check_trace=False)
    assert not counted
    with torch.no_grad():
        small(x)
    assert counted


@pytest.mark.parametrize(
    ("shape", "state"),
    [((4, 2, 5), None), ((4, 2, 6), (1, 3, 32)), ((4, 2, 6), (2, 2, 32)), ((4, 6), (1, 2, 32))],
    ids=str,
)
@torch.no_grad()
def test_wrong_shapes_have_torchs_errors(
    shape: tuple[int, ...], state: tuple[int, ...] | None, always: None
) -> None:
    layer = nn.GRU(6, 32).eval()
    small = vq.compress(layer, vq.KM(k=16))
    arguments = (torch.randn(shape), None if state is None else torch.randn(state))
    with pytest.raises((RuntimeError, ValueError)) as expected:
        layer(*arguments)
    with pytest.raises(expected.type) as found:
        small(*arguments)
    assert str(found.value) == str(expected.value)


@torch.no_grad()
def test_arguments_that_torch_does_not_have_are_its_errors(always: None) -> None:
    layer = nn.GRU(6, 32).eval()
    small = vq.compress(layer, vq.KM(k=16))
    x = torch.randn(4, 2, 6)
    for arguments, named in (
        ((), {}),
        ((x, None, None), {}),
        ((x,), {"h": x}),
        ((x,), {"input": x}),
    ):
        with pytest.raises(TypeError, match="forward"):
            small(*arguments, **named)


@torch.no_grad()
def test_a_write_to_codebooks_is_seen_by_the_next_pass(always: None) -> None:
    layer = nn.LSTM(6, 32).eval()
    small = vq.compress(layer, vq.PQ(k=16, dim=4))
    x = torch.randn(3, 2, 6)
    small(x)
    for weight in coded_weights(small).values():
        weight.codebooks.data.mul_(2)
    assert_close(small(x), decoded(layer, small)(x))


@torch.no_grad()
def test_the_state_given_is_not_written_to_and_that_returned_is_its_own(
    layer: nn.RNNBase, always: None
) -> None:
    small = vq.compress(layer, vq.PQ(k=16, dim=4))
    x, state = torch.randn(5, 5, 6), state_of(layer, 5)
    before = copy.deepcopy(state)
    output, end = small(x, state)
    assert all(map(torch.equal, tensors(state), tensors(before)))
    kept = output.clone()
    for each in tensors(end):
        each.zero_()
    assert torch.equal(output, kept)


class Twice(nn.Module):
    def forward(self, value: Tensor) -> Tensor:
        return 2 * value


@pytest.mark.parametrize("by_codes", [False, True])
def test_what_is_computed_of_a_coded_weight_is_what_runs(
    by_codes: bool, request: pytest.FixtureRequest
) -> None:
    if by_codes:
        request.getfixturevalue("always")
    small = vq.compress(nn.LSTM(24, 24), vq.PQ(k=16, dim=4)).eval()
    parametrize.register_parametrization(small, "weight_hh_l0", Twice(), unsafe=True)
    plain = nn.LSTM(24, 24).eval()
    x = torch.randn(3, 1, 24)
    with torch.no_grad():
        for name in plain._flat_weights_names:
            getattr(plain, name).copy_(getattr(small, name))
        assert torch.allclose(small(x)[0], plain(x)[0], atol=1e-6)


@torch.no_grad()
def test_bits_do_not_depend_on_threads(layer: nn.RNNBase, always: None) -> None:
    small = vq.compress(layer, vq.PQ(k=16, dim=4))
    x = torch.randn(5, 5, 6)
    before = torch.get_num_threads()
    outputs = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            outputs.append(small(x))
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, *map(tensors, outputs)))


@torch.no_grad()
def test_large_layers_run_by_codes_and_small_ones_by_torch(
    monkeypatch: pytest.MonkeyPatch, counted: list[bool]
) -> None:
    monkeypatch.setenv("VQ_PLUGIN_COSTS", "shipped")
    recurrent._choices.cache_clear()
    small = vq.compress(nn.LSTM(16, 16).eval(), vq.PQ(k=16, dim=4))
    small(torch.randn(8, 1, 16))
    assert not counted
    if vq.ops.isa() in ("avx512", "avx2"):
        large = vq.compress(nn.LSTM(64, 768).eval(), vq.PQ(k=16, dim=8, codebooks="tensor"))
        large(torch.randn(8, 1, 64))
        assert counted
