"""FX, weight-only: the same as vq_plugin.compress, one fit a layer."""

import copy

import pytest
import torch
from torch import nn
from torch.ao.quantization import ObserverBase
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.nn import functional
from torch.nn.utils import parametrizations, prune

import vq_plugin as vq
from vq_plugin.nn import CodebookConv2d, CodebookLayer, CodebookLinear
from vq_plugin.torch_ao import fused_float, get_backend_config, get_qconfig_mapping

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")

SCHEMES = [
    vq.KM(k=4),
    vq.KM(k=4, group=3),
    vq.PQ(k=8, dim=4),
    vq.PQ(k=8, dim=3, axis="out", scale="row"),
    vq.PQ(k=8, dim=2, codebooks="tensor"),
    vq.RQ(k=8, stages=2),
    vq.Binary(scale="row"),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_linear_equals_compress_for_every_scheme(convert, assert_same, scheme):
    model = nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 10)).eval()
    inputs = torch.randn(5, 16)
    expected = vq.compress(model, scheme, seed=3)
    assert_same(convert(model, scheme, inputs, seed=3), expected, inputs)


@pytest.mark.parametrize(
    ("layer", "inputs"),
    [
        (nn.Conv1d(4, 8, 3, padding=1), torch.randn(2, 4, 9)),
        (nn.Conv2d(4, 8, 3, stride=2, padding="valid", groups=2), torch.randn(2, 4, 9, 9)),
        (nn.Conv2d(6, 6, 3, padding=1, groups=6, padding_mode="reflect"), torch.randn(2, 6, 9, 9)),
        (nn.Conv3d(2, 4, 3, dilation=2, bias=False), torch.randn(1, 2, 7, 7, 7)),
        (nn.Embedding(20, 8, padding_idx=0), torch.arange(6).reshape(2, 3)),
        (nn.Linear(9, 7, bias=False), torch.randn(3, 9)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_layer_kind(convert, assert_same, layer, inputs):
    model = nn.Sequential(layer, nn.Sigmoid()).eval()
    expected = vq.compress(model, vq.PQ(k=8, dim=4))
    assert_same(convert(model, vq.PQ(k=8, dim=4), inputs), expected, inputs)


@pytest.mark.parametrize("relu", [nn.ReLU(), nn.ReLU(inplace=True)])
def test_layers_fused_with_relu_keep_their_names(convert, assert_same, relu):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), relu, nn.Flatten(), nn.Linear(144, 8), copy.deepcopy(relu)
    ).eval()
    inputs = torch.randn(3, 1, 8, 8)
    expected = vq.compress(model, vq.KM(k=8))
    converted = convert(model, vq.KM(k=8), inputs)
    assert_same(converted, expected, inputs)
    assert type(converted.get_submodule("0")) is CodebookConv2d


class Functional(nn.Module):
    """ReLU as a function, as a method, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.third = nn.Linear(8, 8)

    def forward(self, x):
        x = functional.relu(self.first(x))
        x = torch.softmax(self.second(x).relu() + x, -1)
        return self.third(x.reshape(-1, 8))


def test_functional_relu(convert, assert_same):
    model, inputs = Functional().eval(), torch.randn(3, 8)
    expected = vq.compress(model, vq.KM(k=8))
    assert_same(convert(model, vq.KM(k=8), inputs), expected, inputs)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_batch_norm_is_folded_as_in_the_fused_float_model(convert, assert_same, dims):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    model = nn.Sequential(conv(2, 4, 3, bias=False), norm(4), nn.ReLU(), conv(4, 4, 3), norm(4))
    inputs = torch.randn(2, 2, *[7] * dims)
    model(inputs)  # fills the statistics of the norms
    model.eval()
    fused = fused_float(model)
    torch.testing.assert_close(fused(inputs), model(inputs))
    expected = vq.compress(fused, vq.PQ(k=4, dim=4, scale="row"))
    converted = convert(model, vq.PQ(k=4, dim=4, scale="row"), inputs)
    assert_same(converted, expected, inputs)
    assert set(dict(converted.named_modules())) == {"", "0", "3"}


def test_linear_with_batch_norm(convert, assert_same):
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    inputs = torch.randn(9, 6)
    model(inputs)
    model.eval()
    expected = vq.compress(fused_float(model), vq.KM(k=4))
    assert_same(convert(model, vq.KM(k=4), inputs), expected, inputs)


def test_one_fit_a_layer(convert, count_fits):
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.ReLU()
    ).eval()
    convert(model, vq.KM(k=4), torch.randn(1, 1, 8, 8))
    assert count_fits() == 2


class Shared(nn.Module):
    """One layer called twice, and an embedding tied to the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.body(torch.tanh(self.body(self.embed(x)))))


def test_shared_and_tied_layers_are_fitted_once_and_stay_tied(convert, assert_same, count_fits):
    model, inputs = Shared().eval(), torch.arange(6)
    converted = convert(copy.deepcopy(model), vq.KM(k=8), inputs)
    assert count_fits() == 2
    assert converted.head.codebooks is converted.embed.codebooks
    assert torch.equal(converted.head.codes, converted.embed.codes)
    assert_same(converted, vq.compress(model, vq.KM(k=8)), inputs)
    assert "tied to embed" in str(vq.summary(converted))


def test_ties_survive_exact_names_calibration_and_a_copy(assert_same, count_fits):
    model, inputs = Shared().eval(), torch.arange(6)
    schemes = {"embed": vq.KM(k=8), "head": vq.KM(k=8)}
    backend = get_backend_config()
    prepared = prepare_fx(
        copy.deepcopy(model), get_qconfig_mapping(schemes), (inputs,), backend_config=backend
    )
    converted = [
        convert_fx(copy.deepcopy(prepared), backend_config=backend),
        convert_fx(prepared, backend_config=backend),
    ]
    assert count_fits() == 2
    for small in converted:
        assert small.head.codebooks is small.embed.codebooks
        assert_same(small, vq.compress(model, schemes), inputs)
    assert converted[0].head.codebooks is not converted[1].head.codebooks


def test_tied_layers_with_two_schemes_are_refused(convert):
    with pytest.raises(ValueError, match=r"'head' shares its weight.*km\(k=8\).*for both"):
        convert(Shared().eval(), {"embed": vq.KM(k=8), "head": vq.KM(k=4)}, torch.arange(6))


class Others(nn.Module):
    """Layers with weights that are no codebook layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.up = nn.ConvTranspose1d(1, 2, 3)
        self.norm = nn.LayerNorm(10)
        self.lstm = nn.LSTM(10, 4, batch_first=True)
        self.bag = nn.EmbeddingBag(5, 3)

    def forward(self, x):
        x = torch.sigmoid(self.norm(self.up(torch.tanh(self.fc(x)))))
        states, _ = self.lstm(x)
        return self.bag(states.argmax(-1))


def test_other_layers_are_an_error_unless_they_are_left(convert, assert_same, recwarn):
    model, inputs = Others().eval(), torch.randn(2, 1, 8)
    with pytest.raises(ValueError, match=r"'up': asked for.*still ConvTranspose1d") as error:
        convert(model, vq.KM(k=4), inputs, [inputs])
    for name in ("lstm.weight_ih_l0", "lstm.weight_hh_l0", "bag"):
        assert f"'{name}': asked for km(k=4) but it is still" in str(error.value)
    for name in ("up", "lstm", "bag"):
        assert f"leave it with {{'{name}': None}}, or use vq_plugin.compress" in str(error.value)
    schemes = {"up": None, "lstm": None, "bag": None, "*": vq.KM(k=4)}
    expected = vq.compress(model, schemes, calibration=[inputs])
    assert_same(convert(model, schemes, inputs, [inputs]), expected, inputs)
    stock = ("torch.ao.quantization is deprecated", "QConfig must specify")
    assert not [w for w in recwarn if not str(w.message).startswith(stock)]


def test_pruned_weights(convert, assert_same):
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)).eval()
    prune.random_unstructured(model[0], "weight", 0.5)
    inputs, scheme = torch.randn(3, 8), vq.KM(k=4, keep_zeros=True)
    expected = vq.compress(model, scheme, calibration=[inputs])
    assert_same(convert(model, scheme, inputs, [inputs]), expected, inputs)


def test_parametrized_weights_are_left_with_a_word(convert):
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8))).eval()
    inputs = torch.randn(3, 8)
    with pytest.raises(ValueError, match=r"'0': .*still ParametrizedLinear.*plain torch.nn layers"):
        convert(model, vq.KM(k=4), inputs, [inputs])


def test_nothing_is_observed_where_nothing_is_int8():
    model, inputs = Functional().eval(), torch.randn(3, 8)
    prepared = prepare_fx(
        model, get_qconfig_mapping(vq.PQ()), (inputs,), backend_config=get_backend_config()
    )
    assert not [m for m in prepared.modules() if isinstance(m, ObserverBase)]


def test_the_float_model_keeps_its_weights(convert):
    model, inputs = Functional().eval(), torch.randn(3, 8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    convert(model, vq.PQ(k=2), inputs, [inputs])
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not [m for m in model.modules() if m._forward_pre_hooks]


def test_convert_takes_the_mapping_again(convert):
    model, inputs, schemes = Functional().eval(), torch.randn(3, 8), vq.PQ(k=2)
    backend, mapping = get_backend_config(), get_qconfig_mapping(schemes)
    prepared = prepare_fx(model, mapping, (inputs,), backend_config=backend)
    again = get_qconfig_mapping(schemes)
    converted = convert_fx(prepared, qconfig_mapping=again, backend_config=backend)
    assert type(converted.first[0]) is CodebookLinear


def test_dtype_and_training_mode_are_kept(convert):
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4)).double().eval()
    converted = convert(model, vq.KM(k=4), torch.randn(2, 8).double())
    assert converted.get_submodule("0").weight.dtype is torch.float64
    assert not any(m.training for m in converted.modules() if isinstance(m, CodebookLayer))


@pytest.mark.parametrize(
    ("schemes", "named"),
    [({"1": vq.KM(k=4)}, r"layer '1'"), (vq.KM(k=4), r"Linear\(in_features=4")],
)
def test_weights_that_are_not_finite_are_refused(convert, schemes, named):
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4)).eval()
    with torch.no_grad():
        model[1].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=named + ".*(?i:nan)"):
        convert(model, schemes, torch.randn(2, 8))


def test_our_own_calls_add_no_warnings(recwarn):
    backend = get_backend_config()
    mapping = get_qconfig_mapping(vq.PQ())
    assert mapping is not backend
    fused_float(nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval())
    assert not recwarn.list
