"""``compress``: the whole model, whatever it looks like, and the input model as it was."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

import vq_plugin as vq
from vq_plugin.nn import (
    CodebookConv2d,
    CodebookEmbedding,
    CodebookLinear,
    coded_weights,
    find_slots,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.norm(self.conv(x)).relu())
        return self.fc(x.mean((2, 3)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 8)
        self.head = nn.Linear(8, 40)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x))


class Twice(nn.Module):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


def snapshot(model: nn.Module) -> tuple[dict[str, Any], list[Any], list[Any]]:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modules = [(name, id(m), m.training) for name, m in model.named_modules()]
    hooks = [
        (name, len(m._forward_hooks), len(m._forward_pre_hooks))
        for name, m in model.named_modules()
    ]
    return state, modules, hooks


def assert_unchanged(model: nn.Module, before: tuple[dict[str, Any], list[Any], list[Any]]) -> None:
    state, modules, hooks = snapshot(model)
    assert modules == before[1]
    assert hooks == before[2]
    assert state.keys() == before[0].keys()
    for key, value in state.items():
        assert torch.equal(value, before[0][key]), key


def with_decoded_weights(model: nn.Module, small: nn.Module) -> nn.Module:
    """The float model with every weight replaced by what the codes stand for."""
    result = copy.deepcopy(model)
    slots = find_slots(result)
    with torch.no_grad():
        for name, coded in coded_weights(small).items():
            slot = slots[name]
            slot.value.copy_(slot.view.restore(coded.codebook_weight.decode()))
    return result


SCHEMES = {"conv": vq.KM(k=16), "depthwise": vq.KM(k=8, scale="row"), "fc": vq.PQ(k=4, axis="out")}


def test_every_chosen_layer_is_replaced_and_computes_with_its_decoded_weight() -> None:
    model = Net().eval()
    small = vq.compress(model, SCHEMES)
    assert type(small) is Net
    assert isinstance(small.conv, CodebookConv2d)
    assert isinstance(small.fc, CodebookLinear)
    assert isinstance(small.norm, nn.BatchNorm2d)
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(small(x), with_decoded_weights(model, small)(x), atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("calibrated", [True, False])
def test_the_input_model_stays_as_it_was(training: bool, calibrated: bool) -> None:
    model = Net().train(training)
    model.norm.eval()  # frozen norms are common
    before = snapshot(model)
    data = [torch.randn(4, 3, 8, 8)] if calibrated else None
    small = vq.compress(model, SCHEMES, data)
    assert_unchanged(model, before)
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
        for buffer in small.buffers():
            buffer.zero_()
    assert_unchanged(model, before)


def test_the_seed_reaches_the_fits() -> None:
    torch.manual_seed(0)
    model = nn.Linear(32, 64)
    weights = [vq.compress(model, vq.PQ(), seed=s).weight for s in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_bare_layer_is_a_model() -> None:
    small = vq.compress(nn.Linear(8, 4), vq.KM(k=4))
    assert isinstance(small, CodebookLinear)
    assert small(torch.randn(2, 8)).shape == (2, 4)


@pytest.mark.parametrize("calibrated", [True, False])
def test_tied_weights_stay_tied(calibrated: bool, tmp_path: Path) -> None:
    model = Tied()
    data = [torch.randint(40, (4, 6))] if calibrated else None
    small = vq.compress(model, vq.PQ(k=8), data)
    assert isinstance(small.embed, CodebookEmbedding)
    assert isinstance(small.head, CodebookLinear)
    assert vq.save(small, tmp_path / "m.vq") < 40 * 8 + 8 * 8 * 2 + 40 * 4 + 1500
    again = vq.load(tmp_path / "m.vq", Tied())
    x = torch.randint(40, (3, 5))
    assert torch.equal(again(x), small(x))
    for module in (small, again, copy.deepcopy(small)):
        assert torch.equal(module.head.codes, module.embed.codes)
        assert module.head.codebooks is module.embed.codebooks
        assert not torch.equal(module.head.bias, torch.zeros(40))
        assert len(list(module.parameters())) == 2


@pytest.mark.parametrize(
    "schemes",
    [
        {"embed": vq.PQ(), "head": vq.KM()},
        {"embed": vq.PQ()},
        {"head": vq.PQ()},
        {nn.Linear: vq.KM(), "*": vq.PQ()},
    ],
)
def test_tied_weights_with_different_schemes_are_an_error(schemes: Any) -> None:
    with pytest.raises(ValueError, match=r"'(embed|head)' and '(embed|head)' share one weight"):
        vq.compress(Tied(), schemes)
    assert vq.compress(Tied(), {"embed": None, "head": None}) is not None


class Table(nn.Module):
    """A module without slots."""

    def __init__(self, table: nn.Parameter) -> None:
        super().__init__()
        self.table = table

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.table


def test_a_parameter_of_a_module_without_slots_follows_the_weight_that_it_is() -> None:
    linear = nn.Linear(4, 4)
    model = nn.Sequential(linear, Table(linear.weight))
    small = vq.compress(model, vq.KM(k=4))
    assert torch.equal(small[1].table, small[0].weight)
    assert len(list(small.parameters())) == 2


@pytest.mark.parametrize("pattern", ["a", "b", "*"])
def test_one_module_under_two_names_stays_one(pattern: str, tmp_path: Path) -> None:
    model = Twice()
    small = vq.compress(model, {pattern: vq.KM(k=4)}, [torch.randn(3, 8)])
    assert isinstance(small.a, CodebookLinear)
    assert small.a is small.b
    vq.save(small, tmp_path / "m.vq")
    again = vq.load(tmp_path / "m.vq", Twice())
    assert again.a is again.b
    x = torch.randn(2, 8)
    assert torch.equal(again(x), small(x))


def test_modules_with_references_to_each_other_keep_them() -> None:
    model = Net()
    model.order = [model.conv, model.fc]
    model.by_name = {"fc": model.fc}
    small = vq.compress(model, vq.KM(k=4))
    assert small.order[0] is small.conv
    assert small.by_name["fc"] is small.fc


def test_errors_name_the_layer_and_the_position() -> None:
    model = Net()
    with torch.no_grad():
        model.fc.weight[3, 5] = torch.nan
        model.depthwise.weight[1, 0, 2, 0] = torch.inf
    with pytest.raises(ValueError, match=r"layer 'depthwise': .*\(1, 0, 2, 0\): inf"):
        vq.compress(model, vq.KM())
    with pytest.raises(ValueError, match=r"layer 'fc': .*1 NaN or infinite.*\(3, 5\): nan"):
        vq.compress(model, {"fc": vq.PQ()})


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_an_empty_layer_is_an_error_that_names_it() -> None:
    with pytest.raises(ValueError, match=r"layer '0': .*empty"):
        vq.compress(nn.Sequential(nn.Linear(0, 4)), vq.KM())


@pytest.mark.parametrize("calibration", [None, [torch.randn(2, 4)]])
def test_a_lazy_layer_is_an_error_and_stays_lazy(calibration: Any) -> None:
    model = nn.Sequential(nn.LazyLinear(8))
    with pytest.raises(ValueError, match=r"layer '0' is lazy .*run one batch first"):
        vq.compress(model, vq.KM(), calibration)
    assert isinstance(model[0], nn.LazyLinear)


def test_a_model_on_the_meta_device_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"layer 'conv': .*meta device"):
        vq.compress(Net().to("meta"), vq.KM())


def add_hooks(layer: nn.Module, seen: list[str]) -> None:
    def pre(module: nn.Module, args: Any) -> None:
        seen.append("pre")

    def pre_kwargs(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        seen.append("pre with kwargs")
        return args, kwargs

    def post(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        seen.append("post")
        return out

    def post_kwargs(module: nn.Module, args: Any, kwargs: Any, out: Tensor) -> Tensor:
        seen.append("post with kwargs")
        return out * 0

    layer.register_forward_pre_hook(pre)
    layer.register_forward_pre_hook(pre_kwargs, with_kwargs=True)
    layer.register_forward_hook(post)
    layer.register_forward_hook(post_kwargs, with_kwargs=True)


def test_hooks_are_kept() -> None:
    seen: list[str] = []
    model = Net().eval()
    add_hooks(model.fc, seen)
    add_hooks(model.norm, seen)
    x = torch.randn(2, 3, 8, 8)
    model(x)
    expected, seen[:] = list(seen), []
    small = vq.compress(model, SCHEMES)
    assert (small(x) == 0).all()
    assert seen == expected


def test_backward_hooks_are_kept() -> None:
    seen: list[str] = []
    model = Net()
    model.fc.register_full_backward_hook(lambda *_: seen.append("full"))
    model.fc.register_full_backward_pre_hook(lambda *_: seen.append("pre"))
    vq.compress(model, SCHEMES)(torch.randn(2, 3, 8, 8)).sum().backward()
    assert seen == ["pre", "full"]


def pruned() -> nn.Module:
    model = Net().eval()
    for name in ("conv", "depthwise", "fc"):
        prune.l1_unstructured(getattr(model, name), "weight", 0.5)
    return model


def test_pruned_layers_keep_their_zeros() -> None:
    model = pruned()
    x = torch.randn(2, 3, 8, 8)
    before = model(x)
    small = vq.compress(model, vq.KM(k=16, keep_zeros=True))
    for name in ("conv", "depthwise", "fc"):
        zero = getattr(model, name).weight == 0
        assert zero.any()
        assert (getattr(small, name).weight[zero] == 0).all()
    assert small(x).shape == (2, 10)
    assert not any("mask" in key or "orig" in key for key in small.state_dict())
    assert torch.equal(model(x), before)


def test_pruned_layers_may_be_left() -> None:
    model = pruned()
    small = vq.compress(model, {"fc": vq.KM(k=16, keep_zeros=True)})
    assert isinstance(small.fc, CodebookLinear)
    assert torch.equal(small.conv.weight, model.conv.weight)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "normalize",
    [parametrizations.weight_norm, parametrizations.spectral_norm, weight_norm, spectral_norm],
)
def test_reparametrized_weights_are_compressed_as_they_come_out(
    normalize: Callable[[nn.Module], nn.Module],
) -> None:
    model = nn.Sequential(normalize(nn.Linear(8, 8))).eval()
    x = torch.randn(2, 8)
    model(x)
    small = vq.compress(model, vq.KM(k=64, codebook_dtype="float32"))
    assert torch.allclose(small(x), model(x), atol=1e-6)


def test_multi_head_attention_reads_the_weight_of_a_codebook_layer() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    x = torch.randn(2, 3, 16)
    for training in (True, False):
        model.train(training)
        small = vq.compress(model, vq.KM(k=8))
        assert isinstance(small.self_attn.out_proj, CodebookLinear)
        expected = with_decoded_weights(model, small)
        assert torch.allclose(small(x), expected(x), atol=1e-6)
        with torch.no_grad():
            assert torch.allclose(small(x), expected(x), atol=1e-6)


def test_a_calibration_that_fails_leaves_the_model_without_hooks_in_its_mode() -> None:
    model = Net()
    model.norm.eval()
    before = snapshot(model)

    def broken(_: nn.Module) -> None:
        raise OSError("disk gone")

    for calibration, kind in ((broken, OSError), ([torch.randn(2, 5, 8, 8)], ValueError)):
        with pytest.raises(kind):
            vq.compress(model, vq.KM(), calibration)
        assert_unchanged(model, before)


class TiedAutoencoder(nn.Module):
    """A convolution, and its transpose by the same weight."""

    def __init__(self, channels: tuple[int, int], *, first: str) -> None:
        super().__init__()
        outer, inner = channels
        self.layers = nn.ModuleDict(
            {
                "down": nn.Conv2d(outer, inner, 3),
                "up": nn.ConvTranspose2d(inner, outer, 3, bias=False),
            }
        )
        if first == "up":
            self.layers = nn.ModuleDict(reversed(self.layers.items()))
        self.layers["up"].weight = self.layers["down"].weight

    def forward(self, value: Tensor) -> Tensor:
        return self.layers["up"](self.layers["down"](value).tanh())


@pytest.mark.parametrize("first", ["down", "up"])
@pytest.mark.parametrize("channels", [(3, 8), (8, 8)])
@pytest.mark.parametrize("scheme", [vq.KM(k=8), vq.PQ(k=4, dim=2), vq.RQ(k=4, scale="row")])
def test_slots_that_see_one_parameter_in_two_ways_share_its_codes(
    channels: tuple[int, int], first: str, scheme: vq.Scheme, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = TiedAutoencoder(channels, first=first).eval()
    image = torch.randn(2, channels[0], 7, 7)
    small = vq.compress(model, scheme)
    one, other = coded_weights(small).values()
    assert one.codebooks is other.codebooks
    assert torch.equal(small.layers["down"].weight, small.layers["up"].weight)
    expected = copy.deepcopy(model)
    with torch.no_grad():
        expected.layers["down"].weight.copy_(small.layers["down"].weight)
        assert torch.allclose(small(image), expected(image), atol=1e-5)
    assert sum(row.nbytes for row in vq.summary(small).rows) == one.codebook_weight.nbytes
    vq.save(small, tmp_path / "m.vq")
    again = vq.load(tmp_path / "m.vq", TiedAutoencoder(channels, first=first).eval())
    file = vq.open_file(tmp_path / "m.vq")
    with torch.no_grad():
        assert torch.equal(again(image), small(image))
    for name in ("down", "up"):
        assert torch.equal(file.layers[f"layers.{name}"].decode(), small.layers[name].weight)
