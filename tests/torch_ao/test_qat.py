"""Quantization-aware training by the host's own calls: prepare_qat_fx, a loop, convert_fx."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn import quantized
from torch.ao.nn.intrinsic import quantized as fused_quantized
from torch.ao.quantization import get_default_qat_qconfig_mapping
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.nn import CodebookLayer
from vq_plugin.torch_ao import (
    check_converted,
    fused_float,
    get_backend_config,
    get_qat_qconfig_mapping,
)
from vq_plugin.workloads import digits

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")


def convert(prepared, schemes):
    converted = convert_fx(copy.deepcopy(prepared).eval(), backend_config=get_backend_config())
    return check_converted(converted, schemes)


def decoded(layer: CodebookLayer) -> np.ndarray:
    """The weight of a codebook layer by the formula of the docs, number by number."""
    small = layer.codebook_weight
    codes = small.codes.numpy().astype(int)
    books = small.codebooks.float().numpy()
    stages, rows, subspaces = codes.shape
    dim = books.shape[4]
    shape = layer.weight_shape
    out, rest = shape[0], int(np.prod(shape[1:]))
    length = rest if small.scheme.geometry((1, 1)).axis == "in" else out
    matrix = np.zeros((rows, subspaces * dim), np.float32)
    for r in range(rows):
        group = r // (small.geometry.group or rows)
        for s in range(subspaces):
            book = s if books.shape[2] > 1 else 0
            for t in range(stages):
                matrix[r, s * dim : (s + 1) * dim] += books[t, group, book, codes[t, r, s]]
        if small.scale is not None:
            matrix[r] *= small.scale.float().numpy()[r]
    matrix = matrix[:, :length]
    return (matrix if small.scheme.geometry((1, 1)).axis == "in" else matrix.T).reshape(shape)


def quantized_weight(layer: nn.Module) -> Tensor:
    """What the layer of a prepared model computes with, in eval mode."""
    weight = layer.weight.detach()
    if hasattr(layer, "bn"):
        factor = layer.bn.weight / torch.sqrt(layer.bn.running_var + layer.bn.eps)
        weight = weight * factor.detach().reshape(-1, *[1] * (weight.dim() - 1))
    return layer.weight_fake_quant(weight)


SCHEMES = [
    vq.KM(k=4),
    vq.KM(k=4, group=3, codebook_dtype="bfloat16"),
    vq.PQ(k=8, dim=4),
    vq.PQ(k=8, dim=4, codebook_dtype="int8"),
    vq.PQ(k=8, dim=3, axis="out", scale="row"),
    vq.PQ(k=8, dim=2, codebooks="tensor", codebook_dtype="float32"),
    vq.RQ(k=8, stages=2),
    vq.Binary(scale="row"),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_every_scheme_trains_and_converts(prepare_qat, train, scheme):
    model = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 10), nn.ReLU())
    inputs = torch.randn(20, 16)
    prepared = prepare_qat(model, scheme, inputs)
    before = prepared(inputs)
    train(prepared, inputs, steps=20)
    prepared.eval()
    assert (prepared(inputs) - 1).square().mean() < 0.9 * (before - 1).square().mean()
    converted = convert(prepared, scheme)
    torch.testing.assert_close(converted(inputs), prepared(inputs))
    for name in ("0", "2"):
        layer, trained = converted.get_submodule(name), prepared.get_submodule(name)
        np.testing.assert_array_equal(decoded(layer), quantized_weight(trained).numpy())
        assert layer.codebook_weight.codebooks.dtype is scheme.torch_codebook_dtype


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("settings", [{}, {"groups": 2, "bias": False, "padding_mode": "circular"}])
def test_convolutions_with_and_without_batch_norm_and_relu(prepare_qat, train, dims, settings):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    model = nn.Sequential(
        conv(2, 4, 3, padding=1, **settings), norm(4), nn.ReLU(),
        conv(4, 4, 3, padding=1, **settings), norm(4), nn.MaxPool1d(1) if dims == 1 else nn.Tanh(),
        conv(4, 6, 3, padding=1, **settings), nn.ReLU(),
        conv(6, 6, 1, **settings),
    )  # fmt: skip
    inputs, scheme = torch.randn(8, 2, *[5] * dims), vq.PQ(k=8, dim=3)
    prepared = train(prepare_qat(model, scheme, inputs), inputs).eval()
    converted = convert(prepared, scheme)
    names = {name for name, m in converted.named_modules() if isinstance(m, CodebookLayer)}
    assert names == {"0", "3", "6", "8"}
    torch.testing.assert_close(converted(inputs), prepared(inputs), rtol=1e-4, atol=1e-5)
    for name in names:
        layer, trained = converted.get_submodule(name), prepared.get_submodule(name)
        np.testing.assert_array_equal(decoded(layer), quantized_weight(trained).numpy())


def test_linear_with_batch_norm(prepare_qat, train):
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    inputs = torch.randn(9, 6)
    prepared = train(prepare_qat(model, vq.KM(k=4), inputs), inputs).eval()
    converted = convert(prepared, vq.KM(k=4))
    torch.testing.assert_close(converted(inputs), prepared(inputs))
    layer = converted.get_submodule("0")
    np.testing.assert_array_equal(decoded(layer), quantized_weight(prepared.get_submodule("0")))


class Tied(nn.Module):
    """Two layers with one weight, and a layer called twice."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first = first
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.first.weight

    def forward(self, x):
        return self.head(self.body(torch.tanh(self.body(self.first(x)[..., :8]))))


def test_tied_weights_stay_tied(prepare_qat, train):
    inputs, scheme = torch.randn(40, 8), vq.PQ(k=6, dim=4)
    prepared = prepare_qat(Tied(nn.Linear(8, 20)), scheme, inputs)
    assert prepared.head.weight is prepared.first.weight
    for _ in range(2):
        train(prepared, inputs)
        converted = convert(prepared, scheme)
        assert converted.head.codebooks is converted.first.codebooks
        assert torch.equal(converted.head.codes, converted.first.codes)
        torch.testing.assert_close(converted(inputs), prepared.eval()(inputs))
        assert "tied to first" in str(vq.summary(converted))
        prepared = copy.deepcopy(prepared).train()


def test_ties_that_cannot_be_trained_are_refused():
    with pytest.raises(ValueError, match="'first' and 'head' share one weight"):
        get_qat_qconfig_mapping(Tied(nn.Linear(8, 20)), {"first": vq.KM(k=8), "head": vq.KM(k=4)})
    # The host's embedding for training has a parameter of its own.
    with pytest.raises(ValueError, match=r"'head' shares the weight of 'first'.*None"):
        get_qat_qconfig_mapping(Tied(nn.Embedding(20, 8)), vq.KM(k=8))


def test_an_embedding_trains(prepare_qat, train):
    model = nn.Sequential(nn.Embedding(20, 8, padding_idx=0), nn.Linear(8, 3))
    words, scheme = torch.randint(0, 20, (40,)), vq.PQ(k=6, dim=4)
    prepared = train(prepare_qat(model, scheme, words), words).eval()
    converted = convert(prepared, scheme)
    torch.testing.assert_close(converted(words), prepared(words))
    table = converted.get_submodule("0").weight.detach().numpy()
    np.testing.assert_array_equal(table, quantized_weight(prepared.get_submodule("0")))
    assert not table[0].any()


def test_a_convolution_with_two_batch_norms_keeps_two_weights(prepare_qat, train):
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3)
            self.b.weight = self.a.weight
            self.a_norm, self.b_norm = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, x):
            return self.a_norm(self.a(x)) - self.b_norm(self.b(2 * x))

    inputs = torch.randn(8, 2, 5, 5)
    prepared = train(prepare_qat(Twins(), vq.KM(k=4), inputs), inputs).eval()
    converted = convert(prepared, vq.KM(k=4))
    torch.testing.assert_close(converted(inputs), prepared(inputs), rtol=1e-4, atol=1e-5)
    assert converted.a.codebooks is not converted.b.codebooks


def test_without_training_it_is_compress(prepare_qat, assert_same):
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8))
    inputs, schemes = torch.randn(2, 1, 8, 8), {"0": vq.KM(k=4), nn.Linear: vq.PQ(k=4, dim=8)}
    expected = vq.compress(model, schemes, seed=3).eval()
    prepared = prepare_qat(model, schemes, inputs, seed=3).eval()
    assert_same(convert(prepared, schemes), expected, inputs)
    # The first pass makes the same fit, in eval mode too.
    torch.testing.assert_close(prepared(inputs), expected(inputs))
    assert_same(convert(prepared, schemes), expected, inputs)


def test_layers_left_alone_stay_float_under_their_names(prepare_qat, train):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3),
        nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.ReLU(),
        nn.Linear(6, 3), nn.ReLU(),
    )  # fmt: skip
    inputs, schemes = torch.randn(8, 1, 8, 8), {"re:9": vq.KM(k=4), "*": None}
    fresh = fused_float(copy.deepcopy(model).eval())
    prepared = train(prepare_qat(model, schemes, inputs), inputs).eval()
    converted = convert(prepared, schemes)
    torch.testing.assert_close(converted(inputs), prepared(inputs), rtol=1e-4, atol=1e-5)
    layers = {name for name, _ in converted.named_children()}
    assert layers == {name for name, _ in fresh.named_children()}
    assert type(converted.get_submodule("0")) is nn.Conv2d


def test_files_load_into_the_fused_float_model(prepare_qat, train, tmp_path):
    model = digits.DigitsCNN()
    inputs, scheme = digits.load().train.images[:32], vq.PQ(k=8, dim=4)
    converted = convert(train(prepare_qat(model, scheme, inputs), inputs), scheme)
    vq.save(converted, tmp_path / "model.vq")
    again = vq.load(tmp_path / "model.vq", fused_float(digits.DigitsCNN().eval()))
    assert torch.equal(again(inputs), converted(inputs))


def test_beside_int8_layers(prepare_qat, train):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 8),
    )  # fmt: skip
    inputs, schemes = torch.randn(16, 1, 8, 8), {"re:4": vq.PQ(k=8, dim=4)}
    prepared = prepare_qat(model, schemes, inputs, get_default_qat_qconfig_mapping("x86"))
    train(prepared, inputs).eval()
    converted = convert(prepared, schemes)
    assert type(converted.get_submodule("0")) is fused_quantized.ConvReLU2d
    assert type(converted.get_submodule("6")) is quantized.Linear
    np.testing.assert_array_equal(
        decoded(converted.get_submodule("4")), quantized_weight(prepared.get_submodule("4"))
    )
    wanted = prepared(inputs)
    assert (converted(inputs) - wanted).norm() < 0.1 * wanted.norm()


def test_a_layer_that_convert_does_not_reach_is_an_error():
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 4)))
    inputs, backend = torch.randn(4, 8), get_backend_config()
    opaque = PrepareCustomConfig().set_non_traceable_module_names(["1"])
    mapping = get_qat_qconfig_mapping(model, vq.KM(k=4))
    prepared = prepare_qat_fx(
        model.train(), mapping, (inputs,), prepare_custom_config=opaque, backend_config=backend
    )
    prepared(inputs)
    converted = convert_fx(prepared.eval(), backend_config=backend)
    with pytest.raises(ValueError, match=r"'1\.0': .*still Linear: FX does not trace into '1'"):
        check_converted(converted, vq.KM(k=4))


def test_a_forgotten_backend_is_an_error(prepare_qat, train):
    inputs, scheme = torch.randn(4, 8), vq.KM(k=4)
    prepared = prepare_qat(nn.Sequential(nn.Linear(8, 4)), scheme, inputs)
    with pytest.raises(ValueError, match=r"'0': .*still Linear: give backend_config"):
        check_converted(convert_fx(train(prepared, inputs).eval()), scheme)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_epoch_of_training_beats_compress_on_the_digits(prepare_qat, seed):
    scheme = vq.PQ(k=8, dim=8, codebooks="tensor")
    plain = digits.test(vq.compress(fused_float(digits.model()), scheme, seed=seed))
    images, labels = digits.load().train
    prepared = prepare_qat(digits.model(), scheme, images[:1], seed=seed)
    optimizer = torch.optim.Adam(prepared.parameters(), lr=1e-3)
    torch.manual_seed(seed)
    for batch in torch.split(torch.randperm(len(images)), 32)[:22]:
        optimizer.zero_grad()
        functional.cross_entropy(prepared(images[batch]), labels[batch]).backward()
        optimizer.step()
    converted = convert(prepared, scheme)
    assert digits.test(converted) > plain + 0.3
    assert digits.test(converted) == digits.test(prepared)


def test_a_prepared_model_goes_to_channels_last() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)).train()
    x, schemes = torch.randn(2, 3, 8, 8), vq.PQ(k=8, dim=4)
    prepared = prepare_qat_fx(
        model, get_qat_qconfig_mapping(model, schemes), (x,), backend_config=get_backend_config()
    )
    prepared(x)
    expected = prepared.eval()(x)
    prepared.to(memory_format=torch.channels_last)
    for input in (x, x.to(memory_format=torch.channels_last)):
        torch.testing.assert_close(prepared(input), expected)
    torch.testing.assert_close(convert(prepared, schemes)(x), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_begins_under_autocast(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)).train()
    x, schemes = torch.randn(8, 16), vq.KM(k=8)
    prepared = prepare_qat_fx(
        model, get_qat_qconfig_mapping(model, schemes), (x,), backend_config=get_backend_config()
    )
    with torch.autocast("cpu", dtype=dtype):
        for _ in range(2):
            output = prepared(x)
            assert output.dtype is dtype
            output.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in prepared.parameters())
