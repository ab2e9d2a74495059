"""Weights held as codes in the place of parameters."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, weight_norm

import vq_plugin as vq
from vq_plugin.nn import CodedParameter, coded_parameters, coded_weights, find_slots

MODULES: dict[str, tuple[nn.Module, tuple[Tensor, ...]]] = {
    "lstm": (nn.LSTM(6, 8, 2, bidirectional=True, batch_first=True), (torch.randn(2, 5, 6),)),
    "projected lstm": (nn.LSTM(6, 8, proj_size=4), (torch.randn(5, 2, 6),)),
    "gru": (nn.GRU(6, 8, batch_first=True), (torch.randn(2, 5, 6),)),
    "rnn": (nn.RNN(6, 8), (torch.randn(5, 6),)),
    "lstm cell": (nn.LSTMCell(6, 8), (torch.randn(3, 6),)),
    "gru cell": (nn.GRUCell(6, 8), (torch.randn(3, 6),)),
    "packed attention": (
        nn.MultiheadAttention(8, 2, batch_first=True),
        (torch.randn(2, 3, 8),) * 3,
    ),
    "separate attention": (
        nn.MultiheadAttention(8, 2, kdim=6, vdim=4),
        (torch.randn(3, 2, 8), torch.randn(5, 2, 6), torch.randn(5, 2, 4)),
    ),
    "transposed 1d": (nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2), (torch.randn(2, 4, 7),)),
    "transposed 2d": (nn.ConvTranspose2d(4, 6, 3, padding=1), (torch.randn(2, 4, 7, 7),)),
    "transposed 3d": (nn.ConvTranspose3d(4, 6, 2), (torch.randn(2, 4, 3, 3, 3),)),
    "bilinear": (nn.Bilinear(4, 5, 6), (torch.randn(2, 4), torch.randn(2, 5))),
    "bag": (nn.EmbeddingBag(20, 6), (torch.randint(20, (3, 4)),)),
}


def first(output: object) -> Tensor:
    while not isinstance(output, Tensor):
        output = output[0]  # type: ignore[index]
    return output


def decoded(model: nn.Module, small: nn.Module) -> nn.Module:
    """The float model with the weights that the codes stand for."""
    result = copy.deepcopy(model)
    slots = find_slots(result)
    with torch.no_grad():
        for name, coded in coded_weights(small).items():
            slots[name].value.copy_(slots[name].view.restore(coded.codebook_weight.decode()))
    return result


@pytest.fixture(params=MODULES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, tuple[Tensor, ...]]:
    module, inputs = MODULES[request.param]
    return copy.deepcopy(module).eval(), inputs


Case = tuple[nn.Module, tuple[Tensor, ...]]


@pytest.mark.parametrize(
    "scheme",
    [vq.KM(k=8), vq.PQ(k=4, dim=3, axis="out"), vq.RQ(k=4, dim=2, scale="row")],
    ids=str,
)
@pytest.mark.parametrize("memory", ["weight", "codes"])
def test_a_module_computes_with_its_decoded_weights(
    case: Case, scheme: vq.Scheme, memory: Any
) -> None:
    model, inputs = case
    before = copy.deepcopy(model.state_dict())
    small = vq.compress(model, scheme)
    assert coded_weights(small).keys() == find_slots(model).keys()
    vq.set_memory(small, memory)
    expected = first(decoded(model, small)(*inputs))
    for _ in range(2):
        with torch.no_grad():
            assert torch.allclose(first(small(*inputs)), expected, atol=1e-5)
        assert torch.allclose(first(small(*inputs)), expected, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_calibration_lowers_the_error_of_the_output() -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    data = [torch.randn(8, 6, 16) * torch.linspace(0.1, 3, 16) for _ in range(8)]

    def error(small: nn.Module) -> float:
        with torch.no_grad():
            pairs = [(small(x, x, x)[0], model(x, x, x)[0]) for x in data]
        return sum(float((a - b).square().mean()) for a, b in pairs)

    scheme = vq.PQ(k=8, dim=4, codebooks="tensor")
    inputs = [(x, x, x) for x in data]
    for schemes, most in ((scheme, 0.95), ({"out_proj": scheme}, 0.75)):
        assert error(vq.compress(model, schemes, inputs)) < most * error(
            vq.compress(model, schemes)
        )


def test_codebooks_get_gradients_and_the_next_pass_sees_their_step(case: Case) -> None:
    model, inputs = case
    small = vq.compress(model, vq.KM(k=4))
    small.train()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    outputs = []
    for _ in range(3):
        output = first(small(*inputs))
        outputs.append(output.detach().clone())
        optimizer.zero_grad()
        output.square().mean().backward()
        assert all(coded.codebooks.grad is not None for coded in coded_weights(small).values())
        optimizer.step()
    assert not torch.equal(outputs[0], outputs[1])
    small.eval()
    expected = first(decoded(model_with_biases_of(model, small), small)(*inputs))
    with torch.no_grad():
        assert torch.allclose(first(small(*inputs)), expected, atol=1e-5)


def model_with_biases_of(model: nn.Module, small: nn.Module) -> nn.Module:
    result = copy.deepcopy(model)
    result.load_state_dict(
        {k: v for k, v in small.state_dict().items() if k in result.state_dict()}, strict=False
    )
    return result


def test_files_keep_codes_and_load_into_a_fresh_module(case: Case, tmp_path: Path) -> None:
    model, inputs = case
    small = vq.compress(model, vq.PQ(k=4, dim=2, codebooks="tensor"))
    vq.save(small, tmp_path / "m.vq")
    fresh = copy.deepcopy(model)
    for parameter in fresh.parameters():
        nn.init.zeros_(parameter)
    again = vq.load(tmp_path / "m.vq", fresh)
    assert coded_weights(again).keys() == coded_weights(small).keys()
    for name, coded in coded_weights(again).items():
        assert torch.equal(coded.codes, coded_weights(small)[name].codes)
    with torch.no_grad():
        assert torch.equal(first(again(*inputs)), first(small(*inputs)))


def test_copies_are_independent_and_a_state_dict_is_enough(case: Case) -> None:
    model, inputs = case
    small = vq.compress(model, vq.KM(k=4))
    with torch.no_grad():
        expected = first(small(*inputs))
        twin = copy.deepcopy(small)
        for coded in coded_weights(small).values():
            coded.codebooks += 1
        assert torch.equal(first(twin(*inputs)), expected)
        small.load_state_dict(twin.state_dict())
        assert torch.equal(first(small(*inputs)), expected)


def test_half_precision(case: Case) -> None:
    model, inputs = case
    small = vq.compress(model, vq.KM(k=4)).to(torch.bfloat16)
    cast = tuple(x.to(torch.bfloat16) if x.is_floating_point() else x for x in inputs)
    with torch.no_grad():
        assert first(small(*cast)).dtype is torch.bfloat16


@pytest.mark.parametrize("memory", ["weight", "codes"])
def test_what_is_held_between_passes(memory: Any) -> None:
    model = nn.LSTM(64, 64).eval()
    small = vq.compress(model, vq.KM(k=4))
    vq.set_memory(small, memory)
    with torch.no_grad():
        small(torch.randn(3, 64))
    held = [coded._decoded.kept for coded in coded_weights(small).values()]
    assert all((weight is None) == (memory == "codes") for weight in held)
    assert "_flat_weights" not in vars(small)
    assert not any(coded._passes for coded in coded_parameters(small).values())


def test_no_float_weight_stays_behind() -> None:
    small = vq.compress(nn.Sequential(nn.LSTM(32, 64), nn.LSTM(64, 32)), vq.KM(k=4))
    assert max(p.numel() for p in small.parameters()) <= 4 * 64
    weights = vq.summary(small)
    assert weights.float_nbytes == 4 * 4 * (64 * 32 + 64 * 64 + 32 * 64 + 32 * 32)
    assert weights.other_nbytes == 4 * 2 * (256 + 128)


def test_assigning_a_coded_parameter_is_an_error_that_says_what_to_do() -> None:
    small = vq.compress(nn.LSTM(4, 4), vq.KM(k=4))
    with pytest.raises(RuntimeError, match="compress it again"):
        small.weight_ih_l0 = torch.zeros(16, 4)
    with pytest.raises(KeyError):  # torch's own, for any parametrized parameter
        small.weight_ih_l0 = nn.Parameter(torch.zeros(16, 4))


@pytest.mark.parametrize("how", ["old weight norm", "new weight norm", "pruned"])
def test_weights_that_are_computed_become_codes_of_what_they_are(how: str) -> None:
    model = nn.LSTM(6, 8).eval()
    if how == "old weight norm":
        weight_norm(model, "weight_hh_l0")
    elif how == "new weight norm":
        parametrizations.weight_norm(model, "weight_hh_l0")
    else:
        prune.l1_unstructured(model, "weight_hh_l0", 0.5)
    x = torch.randn(5, 6)
    with torch.no_grad():
        expected = model(x)[0]
        small = vq.compress(model, vq.KM(k=256))
        assert torch.allclose(small(x)[0], expected, atol=1e-3)
        assert torch.equal(model(x)[0], expected)
    assert len(list(small.parameters())) == 4
    assert isinstance(coded_weights(small)["weight_hh_l0"], CodedParameter)
    assert parametrize.is_parametrized(model) == (how == "new weight norm")


def test_a_tied_recurrent_weight_stays_tied() -> None:
    model = nn.ModuleList([nn.LSTM(8, 8), nn.LSTM(8, 8)])
    model[1].weight_hh_l0 = model[0].weight_hh_l0
    small = vq.compress(model, vq.KM(k=4))
    weights = coded_weights(small)
    assert weights["1.weight_hh_l0"].codebooks is weights["0.weight_hh_l0"].codebooks
    assert [row.note for row in vq.summary(small).rows if row.note] == ["tied to 0.weight_hh_l0"]
    again = copy.deepcopy(small)
    assert len(list(again.parameters())) == 3 + 2 * 2


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("memory", ["weight", "codes"])
def test_an_encoder_packs_padded_batches_as_its_float_model_does(context: Any, memory: Any) -> None:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)
    model.eval()
    x, padded = torch.randn(3, 6, 16), torch.zeros(3, 6, dtype=torch.bool)
    padded[1, 4:] = True
    small = vq.compress(model, vq.KM(k=8), [{"src": x, "src_key_padding_mask": padded}])
    vq.set_memory(small, memory)
    expected = model_with_biases_of(decoded(model, small), small)
    with context():
        outputs = [each(x, src_key_padding_mask=padded) for each in (small, expected)]
    assert torch.allclose(*outputs, atol=1e-5)


@pytest.mark.parametrize("memory", ["weight", "codes"])
def test_passes_of_several_threads_do_not_meet(case: Case, memory: Any) -> None:
    model, inputs = case
    small = vq.compress(model, vq.KM(k=8))
    vq.set_memory(small, memory)
    expected = first(decoded(model, small)(*inputs))

    def run(_: int) -> bool:
        return all(torch.allclose(first(small(*inputs)), expected, atol=1e-5) for _ in range(30))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(4)))


def test_a_transposed_convolution_compiles_as_one_graph() -> None:
    model, inputs = MODULES["transposed 2d"]
    small = vq.compress(model, vq.KM(k=8))
    with torch.no_grad():
        expected = small(*inputs)
        compiled = torch.compile(small, fullgraph=True, backend="eager")
        assert torch.allclose(compiled(*inputs), expected, atol=1e-6)


@pytest.mark.parametrize("strict", [False, True])
def test_a_recurrent_layer_is_exported_whole(strict: bool) -> None:
    for name in ("lstm", "gru"):
        model, inputs = MODULES[name]
        small = vq.compress(model, vq.KM(k=8))
        program = torch.export.export(small, inputs, strict=strict)
        with torch.no_grad():
            outputs = [first(each(*inputs)) for each in (program.module(), small)]
        assert torch.allclose(*outputs, atol=1e-6)


def test_pickles_compute_the_same_and_go_on_as_codes(case: Case) -> None:
    model, inputs = case
    small = vq.compress(model, vq.KM(k=8))
    again = pickle.loads(pickle.dumps(small))
    shallow = copy.copy(small)
    with torch.no_grad():
        expected = first(small(*inputs))
        assert torch.equal(first(again(*inputs)), expected)
        assert torch.equal(first(shallow(*inputs)), expected)
        assert coded_weights(again).keys() == coded_weights(small).keys()
        for coded in coded_weights(again).values():
            coded.codebooks.zero_()
        assert torch.equal(first(small(*inputs)), expected)
        assert not torch.equal(first(again(*inputs)), expected)


def test_a_partly_coded_module_is_calibrated_further(case: Case) -> None:
    model, inputs = case
    name, *others = find_slots(model)
    once = vq.compress(model, {name: vq.KM(k=256)})
    with torch.no_grad():
        expected = first(once(*inputs))
    if others:
        twice = vq.compress(once, vq.KM(k=16), [inputs])
        assert coded_weights(twice).keys() == find_slots(model).keys()
        assert torch.equal(coded_weights(twice)[name].codes, coded_weights(once)[name].codes)
    with torch.no_grad():
        assert torch.equal(first(once(*inputs)), expected)
    assert coded_weights(once).keys() == {name}


def test_gradients_of_a_sparse_bag_reach_its_codebook() -> None:
    small = vq.compress(nn.EmbeddingBag(20, 6, sparse=True), vq.KM(k=4))
    small(torch.tensor([[1, 2, 3]])).sum().backward()
    assert coded_weights(small)[""].codebooks.grad is not None


def test_calibration_passes_over_empty_batches(case: Case) -> None:
    model, inputs = case
    if inputs[0].dim() == 2 and not isinstance(
        model, nn.EmbeddingBag | nn.Bilinear | nn.RNNCellBase
    ):
        return  # one sample has no empty batch
    side = 1 if getattr(model, "batch_first", True) is False else 0
    empty = tuple(x.narrow(side, 0, 0) for x in inputs)
    with torch.no_grad():
        try:
            model(*empty)
        except RuntimeError:
            return  # the float module takes none
    plain, with_empty = (
        vq.compress(model, vq.KM(k=4), data) for data in ([inputs], [inputs, empty])
    )
    for one, other in zip(
        coded_weights(plain).values(), coded_weights(with_empty).values(), strict=True
    ):
        assert torch.equal(one.codes, other.codes)


def test_a_recurrent_module_with_weight_norm_is_compressed_after_a_pass_with_gradients() -> None:
    model = parametrizations.weight_norm(nn.LSTM(6, 8), "weight_ih_l0")
    x = torch.randn(5, 6)
    expected = model(x)[0]
    small = vq.compress(model, {"weight_hh_l0": vq.KM(k=256)})
    assert torch.allclose(small(x)[0], expected, atol=1e-3)
    assert torch.equal(model(x)[0], expected)


def test_attributes_of_recurrent_layers_are_set_without_decoding(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FSDP sets parameters one by one, and some are sharded and others not meanwhile."""
    small = vq.compress(nn.LSTM(8, 8), vq.KM(k=4))

    def refused(_: object) -> Tensor:
        raise AssertionError("decoded")

    monkeypatch.setattr(CodedParameter, "forward", refused)
    small.bias_ih_l0 = nn.Parameter(torch.zeros(32))
    assert not small.bias_ih_l0.any()
