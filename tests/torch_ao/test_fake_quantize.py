"""What the weight fake-quantizer keeps, follows and refuses while a model trains."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.ao.quantization.quantize_fx import convert_fx
from torch.nn.utils import prune

import vq_plugin as vq
from vq_plugin.replace import assemble
from vq_plugin.torch_ao import check_converted, get_backend_config, observe_inputs

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")

INPUTS = torch.randn(40, 12)
SCHEME = vq.PQ(k=6, dim=4, scale="row")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8), nn.ReLU())


def convert(prepared):
    return convert_fx(copy.deepcopy(prepared).eval(), backend_config=get_backend_config())


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def quantizers(prepared: nn.Module) -> list[nn.Module]:
    return [m for m in prepared.modules() if isinstance(m, quantization.FakeQuantizeBase)]


def test_the_gradient_goes_to_the_latent_weight_unchanged(prepare_qat):
    prepared = prepare_qat(nn.Sequential(nn.Linear(12, 10, bias=False)), SCHEME, INPUTS)
    prepared(INPUTS).square().sum().backward()
    layer = prepared.get_submodule("0")
    with torch.no_grad():
        decoded = layer.weight_fake_quant.eval()(layer.weight)
    assert not torch.equal(decoded, layer.weight)
    wanted = 2 * (INPUTS @ decoded.T).T @ INPUTS
    torch.testing.assert_close(layer.weight.grad, wanted)


def test_it_starts_from_the_fit_and_follows_the_means(prepare_qat):
    model = nn.Sequential(nn.Linear(12, 10))
    prepared = prepare_qat(model, vq.KM(k=5, codebook_dtype="float32"), INPUTS, seed=3)
    layer = prepared.get_submodule("0")
    quantizer, scheme = layer.weight_fake_quant, vq.KM(k=5, codebook_dtype="float32")
    prepared(INPUTS)
    start = vq.quantize_weight(layer.weight, scheme, seed=3)
    assert torch.equal(quantizer.codes, start.codes)
    assert torch.equal(quantizer.codebooks, start.codebooks)
    with torch.no_grad():
        layer.weight += 0.1 * torch.randn(10, 12)
    prepared(INPUTS)
    weight = layer.weight.detach().double().numpy()
    centers = start.codebooks.flatten().double().numpy()
    codes = np.abs(weight[..., None] - centers).argmin(-1)
    np.testing.assert_array_equal(quantizer.codes[0].numpy(), codes)
    means = np.array([weight[codes == code].mean() for code in range(5)])
    moved = 0.9 * centers + 0.1 * means
    np.testing.assert_allclose(quantizer.codebooks.flatten().numpy(), moved, rtol=1e-5)


def test_eval_mode_changes_nothing(prepare_qat, train):
    prepared = train(prepare_qat(network(), SCHEME, INPUTS), INPUTS).eval()
    before = snapshot(prepared)
    outputs = [prepared(INPUTS) for _ in range(3)]
    assert same(snapshot(prepared), before)
    assert torch.equal(outputs[0], outputs[2])


def test_disable_observer_keeps_codebooks_while_codes_follow(prepare_qat, train):
    prepared = train(prepare_qat(network(), SCHEME, INPUTS), INPUTS)
    prepared.apply(quantization.disable_observer)
    before = snapshot(prepared)
    with torch.no_grad():
        prepared.get_submodule("0").weight += 0.3
    train(prepared, INPUTS)
    after = snapshot(prepared)
    fixed = [k for k in before if k.endswith(("codebooks", "scale"))]
    assert len(fixed) == 4
    assert all(torch.equal(before[k], after[k]) for k in fixed)
    codes = "0.weight_fake_quant.codes"
    assert not torch.equal(before[codes], after[codes])
    prepared.apply(quantization.enable_observer)
    train(prepared, INPUTS)
    assert not any(torch.equal(before[k], prepared.state_dict()[k]) for k in fixed)


def test_disable_fake_quant_trains_in_float(prepare_qat, train):
    model = network()
    plain = train(copy.deepcopy(model), INPUTS)
    prepared = prepare_qat(model, SCHEME, INPUTS)
    prepared.apply(quantization.disable_fake_quant)
    train(prepared, INPUTS)
    assert torch.equal(prepared(INPUTS), plain(INPUTS))
    assert all(quantizer.codes is None for quantizer in quantizers(prepared))
    prepared.apply(quantization.enable_fake_quant)
    expected = vq.compress(plain, SCHEME)
    torch.testing.assert_close(prepared(INPUTS), expected(INPUTS))
    # Switched off later on, codes and codebooks go on following.
    prepared.apply(quantization.disable_fake_quant)
    before = snapshot(quantizers(prepared)[0])
    train(prepared, INPUTS)
    assert not same(before, snapshot(quantizers(prepared)[0]))


@pytest.mark.parametrize("done", [0, 3])
def test_a_saved_run_goes_on_bit_for_bit(prepare_qat, train, tmp_path, done):
    def fresh():
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(12, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 8))
        prepared = prepare_qat(model, {"0": vq.KM(k=4), "3": SCHEME}, INPUTS)
        optimizer = torch.optim.Adam(prepared.parameters(), lr=0.01)
        return prepared, optimizer

    whole, optimizer = fresh()
    train(whole, INPUTS, done, optimizer)
    torch.save([whole.state_dict(), optimizer.state_dict()], tmp_path / "run.pt")
    train(whole, INPUTS, 4, optimizer)

    resumed, optimizer = fresh()
    train(resumed, INPUTS, 1, optimizer)  # what is loaded goes before what is there
    for part, state in zip((resumed, optimizer), torch.load(tmp_path / "run.pt"), strict=True):
        part.load_state_dict(state)
    train(resumed, INPUTS, 4, optimizer)
    assert same(snapshot(whole), snapshot(resumed))


def test_copies_train_on_their_own(prepare_qat, train):
    prepared = train(prepare_qat(network(), SCHEME, INPUTS), INPUTS)
    before = snapshot(prepared)
    copied = copy.deepcopy(prepared)
    train(copied, INPUTS)
    assert same(snapshot(prepared), before)
    train(prepared, INPUTS)
    assert same(snapshot(prepared), snapshot(copied))


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_threads(
    prepare_qat, train, set_threads
):
    runs = []
    for threads, seed in ((1, 0), (3, 0), (1, 1)):
        torch.manual_seed(9)
        model = nn.Sequential(nn.Linear(12, 300), nn.Tanh(), nn.Linear(300, 4))
        prepared = prepare_qat(model, vq.PQ(k=8, dim=4, codebooks="tensor"), INPUTS, seed=seed)
        for _ in range(3):
            # The layers themselves may round differently on several threads.
            prepared(INPUTS[:1]).sum().backward()
            with torch.no_grad():
                for weight in prepared.parameters():
                    weight += 0.01 * weight.sign()
            set_threads(threads)
            for layer in (prepared.get_submodule("0"), prepared.get_submodule("2")):
                layer.weight_fake_quant(layer.weight)
            set_threads(1)
        runs.append([snapshot(quantizer) for quantizer in quantizers(prepared)])
    assert all(same(one, other) for one, other in zip(runs[0], runs[1], strict=True))
    assert not all(same(one, other) for one, other in zip(runs[0], runs[2], strict=True))


def test_pruned_zeros_stay(prepare_qat, train):
    model = network()
    for layer in (model[0], model[2]):
        prune.random_unstructured(layer, "weight", 0.6)
        prune.remove(layer, "weight")
    zeros = {name: model.get_submodule(name).weight == 0 for name in ("0", "2")}
    prepared = prepare_qat(model, vq.KM(k=5, keep_zeros=True), INPUTS)
    before = snapshot(prepared)
    optimizer = torch.optim.AdamW(prepared.parameters(), lr=0.05, weight_decay=0.1)
    train(prepared, INPUTS, 10, optimizer)
    converted = check_converted(convert(prepared), vq.KM(k=5, keep_zeros=True))
    for name, where in zeros.items():
        assert not converted.get_submodule(name).weight[where].any()
        trained = prepared.get_submodule(name).weight
        assert not torch.equal(trained, before[f"{name}.weight"])


def test_statistics_of_inputs_weigh_errors_from_the_fit_on(prepare_qat, assert_same):
    torch.manual_seed(0)
    model, scheme = nn.Sequential(nn.Linear(12, 10), nn.Conv1d(10, 4, 1, groups=2)), vq.KM(k=4)
    inputs = torch.randn(3, 10, 12) * torch.logspace(-1, 1, 12)
    with torch.no_grad():
        squares = inputs.double().square().mean((0, 1)), model[0](inputs).double().square()
        # The mean square of each input of each weight, and a little for what was never seen.
        channels = squares[1].mean((0, 2)).reshape(2, 1, 5).expand(2, 2, 5).reshape(4, 5, 1)
        importance = [(m + 1e-3 * m.mean()).float() for m in (squares[0], channels)]
    weights = {str(i): vq.quantize_weight(model[i].weight, scheme, importance[i]) for i in range(2)}
    expected = assemble(model, weights).eval()
    assert not torch.equal(expected[0].codes, vq.compress(model, scheme)[0].codes)
    prepared = observe_inputs(prepare_qat(model, scheme, inputs))
    with torch.no_grad():
        assert torch.equal(prepared.eval()(inputs), model(inputs))
    assert_same(convert(prepared), expected, inputs)

    prepared.train()
    prepared.apply(quantization.disable_observer)
    before = snapshot(prepared)
    torch.testing.assert_close(prepared(inputs), expected(inputs))
    after = snapshot(prepared)
    counts = [key for key in after if key.endswith("input_stats.count")]
    assert len(counts) == 2
    assert all(torch.equal(before[key], after[key]) for key in counts)
    assert_same(convert(copy.deepcopy(prepared)), expected, inputs)


def test_a_model_that_was_never_calibrated(prepare_qat):
    prepared = observe_inputs(prepare_qat(network(), SCHEME, INPUTS))
    with pytest.raises(ValueError, match="layer '0': calibration never ran it"):
        convert(prepared)


def test_weights_that_become_nan_name_the_layer(prepare_qat, train):
    prepared = train(prepare_qat(network(), SCHEME, INPUTS), INPUTS)
    with torch.no_grad():
        prepared.get_submodule("2").weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="layer '2': the weight holds 1 NaN"):
        prepared(INPUTS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes(prepare_qat, train, dtype):
    inputs = INPUTS.to(dtype)
    prepared = train(prepare_qat(network().to(dtype), vq.KM(k=4), inputs), inputs).eval()
    converted = check_converted(convert(prepared), vq.KM(k=4))
    assert converted.get_submodule("0").weight.dtype is dtype
    torch.testing.assert_close(converted(inputs), prepared(inputs))
