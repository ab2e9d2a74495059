"""``prepare_pt2e`` and ``convert_pt2e`` with :class:`VQQuantizer`."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torchao.quantization.pt2e import disable_observer, move_exported_model_to_eval
from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import ComposableQuantizer
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

import vq_plugin as vq
from vq_plugin.nn import coded_weights
from vq_plugin.torchao import VQQuantizer, check_converted

PQ = vq.PQ(k=8, dim=4)


def int8(name: str, *, is_qat: bool = False):
    """A quantizer of torchao for what is left."""
    if name == "x86":
        config = get_default_x86_inductor_quantization_config(is_qat=is_qat)
        return X86InductorQuantizer().set_global(config)
    xnnpack = pytest.importorskip("torchao.testing.pt2e._xnnpack_quantizer")
    config = xnnpack.get_symmetric_quantization_config(is_qat=is_qat)
    return xnnpack.XNNPACKQuantizer().set_global(config)


class Images(nn.Module):
    """Convolutions of every kind of settings, with and without batch norm, and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, groups=2),
            nn.BatchNorm2d(16),
            nn.MaxPool2d(2),
            nn.Flatten(),
        )
        self.classifier = nn.Sequential(nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(value))


@pytest.fixture
def images():
    torch.manual_seed(0)
    model, value = Images(), torch.randn(8, 1, 14, 14)
    model.train()(value)
    return model.eval()


@pytest.fixture
def value():
    return torch.randn(8, 1, 14, 14, generator=torch.Generator().manual_seed(1))


def program(model, value):
    batch = torch.export.Dim("batch", min=2)
    return torch.export.export(model, (value,), dynamic_shapes=({0: batch},)).module()


@pytest.mark.parametrize("calibrated", [False, True])
def test_layers_are_those_of_compress(words, tokens, convert, assert_same, calibrated):
    batches = tokens if calibrated else []
    expected = vq.compress(words.folded(), PQ, batches or None)
    found = convert(words, PQ, tokens[0], calibration=batches)
    assert_same(found, expected, tokens[0])
    assert found.head.codebooks is found.words.codebooks


@pytest.mark.parametrize("other", ["x86", "xnnpack"])
def test_beside_int8(images, value, convert, other):
    schemes = {"features.3": vq.KM(k=16), "classifier.0": PQ}
    batches = [torch.randn(8, 1, 14, 14) for _ in range(3)]
    found = convert(images, schemes, value, calibration=batches, others=[int8(other)])
    assert list(coded_weights(found)) == list(schemes)
    targets = [str(node.target) for node in found.graph.nodes]
    assert any("quantize_per_tensor" in target for target in targets)
    alone = convert(images, schemes, value, calibration=batches)
    for name in schemes:
        assert torch.equal(found.get_submodule(name).codes, alone.get_submodule(name).codes), name
    error = (found(value) - alone(value)).norm() / alone(value).norm()
    assert 0 < error < 0.1


def test_others_first_are_an_error(images, value):
    quantizer = ComposableQuantizer([int8("x86"), VQQuantizer(PQ)])
    with pytest.raises(ValueError, match="give VQQuantizer to ComposableQuantizer as the first"):
        prepare_pt2e(torch.export.export(images, (value,), strict=True).module(), quantizer)


def test_another_convolution_after_ours_in_x86(convert):
    """Torchao's x86 quantizer looks for its own annotation at what comes before a pooling."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3)).eval()
    value = torch.randn(2, 1, 12, 12)
    found = convert(model, {"0": vq.KM(k=4)}, value, calibration=[value], others=[int8("x86")])
    assert list(coded_weights(found)) == ["0"]


def test_lowered_to_x86_together_with_int8(convert):
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU()).eval()
    value = torch.randn(16, 64)
    found = convert(model, {"0": PQ}, value, calibration=[value], others=[int8("x86")])
    with torch.no_grad():
        lowered = lower_pt2e_quantized_to_x86(found, (value,))
        assert torch.allclose(lowered(value), found(value), atol=1e-4)
    targets = [str(node.target) for node in lowered.graph.nodes]
    assert any(target.startswith("vq.codebook_linear") for target in targets)
    assert any(target.startswith("onednn.qlinear") for target in targets)


def train(prepared, value, steps=12):
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.05)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (prepared(value) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("bias", [False, True])
def test_training_ends_at_what_the_prepared_program_computes(images, value, bias):
    if bias:
        images.features[0].bias = nn.Parameter(torch.randn(8))
    prepared = prepare_qat_pt2e(program(images.train(), value), VQQuantizer(PQ, is_qat=True))
    losses = train(prepared, value)
    assert losses[-1] < 0.8 * losses[0]
    move_exported_model_to_eval(prepared)
    with torch.no_grad():
        expected = prepared(value)
        # Looking moves nothing.
        assert torch.equal(prepared(value), expected)
    converted = check_converted(convert_pt2e(prepared), PQ)
    assert torch.allclose(converted(value), expected, atol=1e-5)
    targets = [str(node.target) for node in converted.graph.nodes]
    assert not any("batch_norm" in target or "add_" in target for target in targets)


@pytest.mark.parametrize("other", ["x86", "xnnpack"])
def test_training_beside_int8(images, value, other):
    schemes = {"features.3": vq.KM(k=16), "classifier.0": PQ}
    quantizers = [VQQuantizer(schemes, is_qat=True), int8(other, is_qat=True)]
    graph = program(images.train(), value)
    prepared = prepare_qat_pt2e(graph, ComposableQuantizer(quantizers))
    losses = train(prepared, value)
    assert losses[-1] < losses[0]
    prepared.apply(disable_observer)
    move_exported_model_to_eval(prepared)
    with torch.no_grad():
        expected = prepared(value)
    converted = check_converted(convert_pt2e(prepared), schemes)
    error = (converted(value) - expected).norm() / expected.norm()
    assert error < 0.05


def test_a_prepared_program_is_copied(words, tokens):
    graph = torch.export.export(words, (tokens[0],)).module()
    prepared = prepare_pt2e(graph, VQQuantizer(PQ))
    prepared(tokens[0])
    copied = copy.deepcopy(prepared)
    for batch in tokens[1:]:
        copied(batch)
    one, other = convert_pt2e(prepared), convert_pt2e(copied)
    assert torch.equal(one.again.codes, vq.compress(words.folded(), PQ, tokens[:1]).again.codes)
    assert torch.equal(other.again.codes, vq.compress(words.folded(), PQ, tokens).again.codes)


def test_weights_that_are_no_layers_of_their_own(convert):
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(16, 8))
            self.attention = nn.MultiheadAttention(16, 2)

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            value = nn.functional.linear(value, self.table)
            return self.attention(value, value, value, need_weights=False)[0]

    model, value = Own().eval(), torch.randn(3, 2, 8)
    expected = vq.compress(model, {"*": vq.KM(k=4), "table": vq.KM(k=4)})
    found = convert(model, vq.KM(k=4), value)
    assert torch.allclose(found(value), expected(value), atol=1e-6)
    assert set(coded_weights(found)) == {"table", "attention.in_proj_weight", "attention.out_proj"}


def test_a_weight_that_is_read_otherwise_stays_float(convert):
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return self.one(self.other(value)) + self.one.weight.sum()

    message = r"'one' matches nothing: .* nothing else reads, not for one\.weight \(256 bytes\)"
    with pytest.raises(ValueError, match=message):
        convert(Read().eval(), {"one": PQ}, torch.randn(2, 8))


def test_weights_that_no_graph_holds_as_codes_are_named():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ConvTranspose2d(8, 4, 3)).eval()
    graph = program(model, torch.randn(2, 4, 6, 6))
    with pytest.warns(UserWarning, match=r"stay in float: 1\.weight \(1,152 bytes\)"):
        prepare_pt2e(graph, VQQuantizer(vq.KM(k=4)))
    graph = program(model, torch.randn(2, 4, 6, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_pt2e(graph, VQQuantizer({"0": vq.KM(k=4)}))


@pytest.mark.parametrize("schemes", [vq.KM(k=4), {"0": vq.KM(k=4)}, {"re:0[.]?.*": vq.KM(k=4)}])
def test_a_graph_of_nothing_but_such_weights(schemes):
    # Its float model has such a layer: "no ConvTranspose2d" would be wrong.
    graph = program(nn.Sequential(nn.ConvTranspose2d(8, 4, 3)).eval(), torch.randn(2, 8, 6, 6))
    message = r"Embedding.* not for 0\.weight \(1,152 bytes\): quantize_ and vq\.compress take"
    with pytest.raises(ValueError, match=message):
        prepare_pt2e(graph, VQQuantizer(schemes))


def test_a_name_of_such_a_weight():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ConvTranspose2d(8, 4, 3)).eval()
    graph = program(model, torch.randn(2, 4, 6, 6))
    with pytest.raises(ValueError, match=r"'1' matches nothing: PT2E gets codes .* 1\.weight"):
        prepare_pt2e(graph, VQQuantizer({"1": vq.KM(k=4)}))
    with pytest.raises(ValueError, match="'2' matches nothing; the nearest names are 0"):
        prepare_pt2e(graph, VQQuantizer({"2": vq.KM(k=4)}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes(convert, dtype):
    model = nn.Sequential(nn.Conv1d(4, 8, 3, padding=1, padding_mode="circular"), nn.ReLU())
    model, value = model.to(dtype).eval(), torch.randn(2, 4, 6, dtype=dtype)
    found = convert(model, vq.KM(k=4), value)
    assert found(value).dtype is dtype
    assert torch.equal(found.get_submodule("0").codes, vq.compress(model, vq.KM(k=4))[0].codes)


def test_files_fit_the_float_model(images, value, convert, tmp_path):
    plain = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    inputs = torch.randn(3, 16)
    small = convert(plain, PQ, inputs)
    vq.save(small, tmp_path / "small.vq")
    assert torch.equal(vq.load(tmp_path / "small.vq", plain)(inputs), small(inputs))
    assert vq.summary(small).rows[0].name == "0"
