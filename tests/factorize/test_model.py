"""What stays of a layer and of its model, and what is refused."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import vq_plugin as vq
from vq_plugin.factorize import parse_factor


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.point = nn.Conv2d(16, 16, 1)
        self.fc, self.head = nn.Linear(256, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(self.point(self.conv(x).relu()), 2)
        output: Tensor = self.head(self.fc(x.flatten(1)).relu())
        return output


def test_the_model_is_not_changed() -> None:
    model = Net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batches = [torch.randn(4, 3, 8, 8)]
    small = vq.factorize(model, {"fc": vq.SVD(rank=4), "conv": vq.Basis(4)}, batches)
    assert isinstance(model.fc, nn.Linear)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    ours = {parameter.data_ptr() for parameter in small.parameters()}
    assert not ours & {parameter.data_ptr() for parameter in model.parameters()}


def test_random_state_stays() -> None:
    model = nn.Sequential(nn.Linear(20, 20))
    state = torch.random.get_rng_state()
    vq.factorize(model, vq.SVD(rank=4))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_most_specific_patterns_decide() -> None:
    small: Any = vq.factorize(
        Net(),
        {"*": vq.SVD(rate=2), nn.Conv2d: vq.Basis(4), "point": None, "re:he.*": vq.SVD(rank=3)},
    )
    kinds = [str(getattr(layer, "factor", None)) for layer in small.children()]
    assert kinds == ["basis(d=4)", "None", "svd(rank=25)", "svd(rank=3)"]


def test_what_is_left_is_listed() -> None:
    with pytest.warns(UserWarning, match="layers stayed as they are") as caught:
        small: Any = vq.factorize(Net(), vq.Basis(4))
    assert isinstance(small.fc, nn.Linear)
    [text] = [str(each.message) for each in caught]
    assert "'point': this Conv2d has no kernels of several positions" in text
    assert "'fc': this Linear has no kernels of several positions" in text
    with pytest.warns(UserWarning, match=r"'head'.*asks for less than rank 1, 74 weights"):
        vq.factorize(Net(), {"*": vq.SVD(rate=10)})
    with pytest.warns(UserWarning, match=r"svd\(rank=10\) has 740 weights in the place of 640"):
        vq.factorize(Net(), {"head": vq.SVD(rank=10)})


def test_settings_attributes_and_hooks_follow() -> None:
    model = nn.Sequential(nn.Linear(30, 20), nn.Conv1d(4, 8, 3, stride=2, groups=2))
    layer: Any = model[0]
    layer.note, layer.seen = "kept", []
    layer.register_buffer("step", torch.ones(2))
    layer.register_forward_hook(lambda module, _, output: module.seen.append(output.shape))
    small: Any = vq.factorize(model, {"*": vq.SVD(rank=2)})
    assert (small[0].in_features, small[0].out_features, small[0].note) == (30, 20, "kept")
    assert (small[1].kernel_size, small[1].stride, small[1].groups) == ((3,), (2,), 2)
    small[0](torch.zeros(5, 30))
    assert (small[0].seen, layer.seen) == ([(5, 20)], [])
    assert set(small.state_dict()) == {
        "0.step", "0.first.weight", "0.second.weight", "0.second.bias",
        "1.first.weight", "1.second.weight", "1.second.bias",
    }  # fmt: skip
    assert small[0].bias is small[0].second.bias


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype_training_and_frozen_weights(dtype: torch.dtype) -> None:
    layer = nn.Linear(30, 20, dtype=dtype).eval()
    layer.weight.requires_grad_(False)
    small: Any = vq.factorize(layer, vq.SVD(rank=3))
    assert {parameter.dtype for parameter in small.parameters()} == {dtype}
    assert not any(module.training for module in small.modules())
    trains = {name: each.requires_grad for name, each in small.named_parameters()}
    assert trains == {"first.weight": False, "second.weight": False, "second.bias": True}
    assert small.train().first.training


def test_a_layer_of_two_names_stays_one() -> None:
    layer = nn.Linear(20, 20)
    small: Any = vq.factorize(nn.Sequential(layer, nn.ReLU(), layer), {"0": vq.SVD(rank=3)})
    assert small[0] is small[2]


def test_layers_that_share_a_weight_share_its_factors() -> None:
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 20))
    model[2].weight, model[2].bias = model[0].weight, model[1].bias
    with pytest.raises(ValueError, match="'0' and '2' share one weight"):
        vq.factorize(model, {"0": vq.SVD(rank=3)})
    small: Any = vq.factorize(model, {"re:[02]": vq.SVD(rank=3)}, [torch.randn(50, 20)])
    assert small[0].first.weight is small[2].first.weight
    assert small[0].second.weight is small[2].second.weight
    assert small[2].bias is small[1].bias
    assert torch.equal(small[1].bias, model[1].bias)


def test_weights_that_are_computed_become_factors_of_what_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(20, 20)), nn.Linear(20, 20))
    prune.random_unstructured(model[1], "weight", 0.5)
    small: Any = vq.factorize(model, vq.SVD(rank=7))
    for at in (0, 1):
        u, s, v = torch.linalg.svd(model[at].weight.detach().double())
        torch.testing.assert_close(small[at].weight, ((u[:, :7] * s[:7]) @ v[:7]).float())
        assert sorted(dict(small[at].named_parameters())) == [
            "first.weight", "second.bias", "second.weight",
        ]  # fmt: skip


class Doubling(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def test_layers_that_do_more_are_refused() -> None:
    with pytest.raises(ValueError, match=r"layer '1': this Doubling does more than torch's"):
        vq.factorize(nn.Sequential(nn.Linear(20, 20), Doubling(20, 20)), vq.SVD(rank=2))
    layer: Any = nn.Linear(20, 20)
    layer.first = 1
    with pytest.raises(ValueError, match=r"this Linear has a 'first'"):
        vq.factorize(layer, vq.SVD(rank=2))
    attention = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True).eval()
    with pytest.raises(ValueError, match="MultiheadAttention takes its weight and does not call"):
        vq.factorize(attention, {"self_attn.out_proj": vq.SVD(rank=2)})
    with pytest.warns(UserWarning, match="takes its weight"):
        small = vq.factorize(attention, vq.SVD(rank=3))
    # Its fast path reads the weights of its layers.
    x = torch.randn(2, 5, 16)
    with torch.no_grad():
        fast = small(x)
    torch.testing.assert_close(fast, small(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("factors", "text"),
    [
        ({"head": vq.SVD(rank=11)}, "layer 'head': rank 11 is above 10.*10 by 64"),
        ({"conv": vq.Basis(10)}, "layer 'conv': d=10 is above 9, the positions of a kernel of 3x3"),
        ({"fc": vq.Basis(2)}, "layer 'fc': this Linear has no kernels"),
        ({"fc": vq.SVD(rank=2, split="spatial")}, "layer 'fc': split='spatial' needs two kernel"),
        ({"point": vq.Basis(1)}, "layer 'point': this Conv2d has no kernels"),
        ({"fc": vq.SVD(energy=1.5)}, "layer 'fc': svd: energy must be above 0 .* 1, got 1.5"),
        ({nn.Conv2d: vq.SVD(energy=0)}, "layer 'conv': svd: energy must be above 0"),
        ({"fc": vq.SVD(energy=float("nan"))}, "layer 'fc': svd: energy must be above 0"),
        ({"hed": vq.SVD(rank=2)}, "matches nothing; the nearest names are head"),
        ({nn.LSTM: vq.SVD(rank=2)}, "matches nothing"),
    ],
)
def test_what_cannot_be_is_an_error_with_the_layer(factors: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        vq.factorize(Net(), factors)


def test_broken_weights_and_models() -> None:
    model = nn.Linear(10, 10)
    model.weight.data[1, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        vq.factorize(model, vq.SVD(rank=2))
    with pytest.raises(ValueError, match="is lazy"):
        vq.factorize(nn.LazyLinear(10), vq.SVD(rank=2))
    once = vq.factorize(nn.Sequential(nn.Linear(20, 20)), vq.SVD(rank=9))
    with pytest.raises(ValueError, match="'0' is factorized already"):
        vq.factorize(once, vq.SVD(rank=2))
    with pytest.raises(TypeError, match=r"expected a factor such as vq\.SVD\(rate=4\)"):
        vq.factorize(nn.Linear(10, 10), {"*": vq.KM()})  # type: ignore[dict-item]
    with pytest.raises(TypeError, match="factors must be a factor"):
        vq.factorize(nn.Linear(10, 10), vq.KM())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layer 'a': EmbeddingBag has no factors"):
        vq.factorize(nn.ModuleDict({"a": nn.EmbeddingBag(9, 9)}), {"a": vq.SVD(rank=2)})


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: vq.SVD(), "give one of rank, energy and rate, got none"),
        (lambda: vq.SVD(rank=2, rate=2), "got rank and rate"),
        (lambda: vq.SVD(rank=0), "rank must be a whole number of at least 1, got 0"),
        (lambda: vq.SVD(rank=1.5), "rank must be"),  # type: ignore[arg-type]
        (lambda: vq.SVD(energy="half"), "energy must be a number"),  # type: ignore[arg-type]
        (lambda: parse_factor("svd(energy=1.5)"), "energy must be above 0 and at most 1, got 1.5"),
        (lambda: vq.SVD(rate=1), "rate must be a finite number above 1"),
        (lambda: vq.SVD(rate=float("inf")), "rate must be"),
        (lambda: vq.SVD(rank=1, split="depth"), "split must be"),  # type: ignore[arg-type]
        (lambda: vq.Basis(0), "d must be a whole number"),
        (lambda: vq.Basis(2, shared=1), "shared must be"),  # type: ignore[arg-type]
        (lambda: parse_factor("svd(rnk=2)"), "setting 'rnk' is unknown; did you mean 'rank'"),
        (lambda: parse_factor("sdv(rank=2)"), "factor 'sdv' is unknown; did you mean 'svd'"),
        (lambda: parse_factor("basis"), "d is missing"),
    ],
)
def test_settings_out_of_range(make: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize(
    "factor",
    [
        vq.SVD(rank=3),
        vq.SVD(energy=0.9),
        vq.SVD(rate=2.5, split="spatial"),
        vq.Basis(4, shared=True),
    ],
)
def test_texts_round_trip(factor: Any) -> None:
    assert parse_factor(str(factor)) == factor


def test_equal_bytes_whatever_the_threads() -> None:
    torch.manual_seed(0)
    model, x = Net(), [torch.randn(16, 3, 8, 8)]
    factors = {"fc": vq.SVD(rank=20), "conv": vq.Basis(4)}
    states = []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        states.append(vq.factorize(model, factors, x).state_dict())
    torch.set_num_threads(before)
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_factorized_beside_a_model_in_eval_mode_on_another_thread() -> None:
    model = nn.Sequential(nn.Linear(20, 20), nn.Dropout()).train()
    results = []

    def work() -> None:
        results.append(vq.factorize(model, {"0": vq.SVD(rank=2)}, [torch.randn(9, 20)]))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(module.training for result in results for module in result.modules())
    assert len(results) == 3
