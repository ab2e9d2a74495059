"""Inputs of weights that only the calls of torch functions show."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, weight_norm

import vq_plugin as vq
from vq_plugin.calibration import input_moments
from vq_plugin.fit.output.moments import Moments
from vq_plugin.nn import find_slots, other_parameters
from vq_plugin.nn.inputs import read_calls


def moments(model: nn.Module, *batches: Tensor) -> dict[str, Moments]:
    found = find_slots(model)
    slots = {**found, **other_parameters(model, found)}
    return input_moments(model, slots.values(), batches)


def second_of(rows: Tensor) -> Tensor:
    return rows.mT.double() @ rows.double() / len(rows)


def check(found: Moments, rows: Tensor, *, biased: bool) -> None:
    """``rows`` is ``(samples, inputs)``."""
    assert found.second is not None
    assert torch.allclose(found.second[0].double(), second_of(rows), rtol=1e-4, atol=1e-5)
    assert (found.mean is not None) == biased
    if found.mean is not None:
        assert torch.allclose(found.mean[0], rows.mean(0), rtol=1e-4, atol=1e-5)


class StaticPadding(nn.Conv2d):
    """As EfficientNet-Lite has it: the input is padded before the convolution, by its own rule."""

    def forward(self, input: Tensor) -> Tensor:
        padded = functional.pad(input, [0, 1, 0, 1])
        return functional.conv2d(
            padded, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_with_a_forward_of_its_own(groups: int, stride: int) -> None:
    layer = StaticPadding(4, 8, 3, stride=stride, groups=groups)
    x = torch.randn(3, 4, 6, 7)
    padded = functional.pad(x, [0, 1, 0, 1])
    unfolded = functional.unfold(padded, 3, stride=stride)
    patches = unfolded.transpose(1, 2).reshape(-1, groups, 4 // groups * 9)
    found = moments(nn.Sequential(layer), x)["0"]
    assert found.second is not None
    assert found.mean is not None
    for group in range(groups):
        expected = second_of(patches[:, group])
        assert torch.allclose(found.second[group].double(), expected, rtol=1e-4, atol=1e-5)
    assert torch.allclose(found.mean, patches.mean(0), rtol=1e-4, atol=1e-5)
    channels = padded.square().mean((0, 2, 3)).reshape(groups, -1)
    expected = channels + 1e-3 * channels.mean()
    full = found.importance.broadcast_to(layer.weight.shape)
    assert torch.allclose(full[:: 8 // groups, :, 0, 0], expected, rtol=1e-4)


def test_a_forward_of_ones_own_is_fitted_by_its_inputs_without_a_warning() -> None:
    torch.manual_seed(0)
    own, plain = StaticPadding(8, 16, 3), nn.Conv2d(8, 16, 3)
    plain.load_state_dict(own.state_dict())
    x = torch.randn(4, 8, 6, 6) * torch.logspace(-1, 1, 8).reshape(-1, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = vq.compress(nn.Sequential(own), vq.KM(k=4), [x])
    same = vq.compress(nn.Sequential(plain), vq.KM(k=4), [functional.pad(x, [0, 1, 0, 1])])
    change = (small[0].weight - same[0].weight).abs().mean()
    assert change < 0.1 * (same[0].weight - own.weight).abs().mean()
    error = [(net(x) - own(x)).square().mean() for net in (small, vq.compress(own, vq.KM(k=4)))]
    assert error[0] < 0.7 * error[1]


def test_a_forward_of_the_instance_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 4))
    layer = model[0]
    layer.forward = lambda x: functional.linear(x.relu(), layer.weight, layer.bias)
    x = torch.randn(20, 6)
    # An empty batch says nothing.
    check(moments(model, x, x[:0])["0"], x.relu(), biased=True)


class Product(nn.Module):
    """A parameter in a product that is written out."""

    def __init__(self, product: Callable[[Tensor, Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(*shape))
        self.offset = nn.Parameter(torch.randn(4))
        self.product = product

    def forward(self, value: Tensor) -> Tensor:
        return self.product(value, self.kernel, self.offset)


@pytest.mark.parametrize(
    "product",
    [
        lambda x, w, b: x @ w.T + b,
        lambda x, w, b: torch.matmul(x, w.t()),
        lambda x, w, b: x.matmul(other=w.transpose(0, 1)),
        lambda x, w, b: torch.mm(x, w.mT),
        lambda x, w, b: torch.addmm(b, x, w.T),
        lambda x, w, b: b.addmm(x, w.T),
        lambda x, w, b: functional.linear(x, w, b),
        lambda x, w, b: functional.linear(x, weight=w.data),
        lambda x, w, b: functional.linear(x.double(), w.double()),
        lambda x, w, b: functional.linear(x, w.detach().clone()),
        lambda x, w, b: functional.linear(x.bfloat16(), w.to(torch.bfloat16), b.bfloat16()),
    ],
)
def test_products_of_a_parameter(product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    model, x = Product(product, 4, 6), torch.randn(50, 6).bfloat16().float()
    check(moments(model, x)["kernel"], x, biased=False)


def test_a_parameter_that_is_inputs_first_has_to_be_seen_so() -> None:
    model, x = Product(lambda x, w, b: x @ w, 6, 4), torch.randn(50, 6)
    # Its rows are not outputs: nothing is known of the columns.
    assert moments(model, x) == {}
    with pytest.warns(UserWarning, match="does not know the inputs of kernel"):
        vq.compress(model, {"kernel": vq.KM(k=4)}, [x])


def test_weights_that_are_handed_to_a_function_of_another_module() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.table = nn.Linear(6, 9), nn.Embedding(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return functional.linear(2 * x, self.qkv.weight, self.qkv.bias) @ torch.ones(9, 1)

    x = torch.randn(50, 6)
    model = nn.Sequential(Block())
    slot = find_slots(model)["0.qkv"]
    found = input_moments(model, [slot], [x])["0.qkv"]
    check(found, 2 * x, biased=True)
    with pytest.raises(ValueError, match=r"layer '0\.table': calibration never ran it"):
        moments(model, x)


@pytest.mark.parametrize("norm", [weight_norm, parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_weights_that_are_computed(norm: Callable[[nn.Module], nn.Module]) -> None:
    class Own(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return functional.linear(input + 1, self.weight, self.bias)

    model, x = nn.Sequential(norm(Own(6, 4))), torch.randn(50, 6)
    check(moments(model, x, x)["0"], x + 1, biased=True)


def test_look_ups_by_the_owner_of_a_tied_weight() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.source = nn.Embedding(7, 3), nn.Embedding(7, 3)
            self.source.weight = self.shared.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.source(tokens)

    tokens = torch.tensor([[0, 0, 1], [4, 0, 1]])
    found = moments(Tied(), tokens)
    assert torch.equal(found["shared"].importance, found["source"].importance)


def test_a_module_whose_inputs_are_known_counts_once() -> None:
    class Twice(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(super().forward(input))

    plain, x = nn.Linear(6, 6), torch.randn(50, 6)
    with torch.no_grad():
        check(moments(plain, x)[""], x, biased=True)
        own = Twice(6, 6)
        check(moments(own, x)[""], torch.cat([x, nn.Linear.forward(own, x)]), biased=True)


def test_a_bias_that_is_added_elsewhere_takes_up_nothing() -> None:
    class Own(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return functional.linear(input, self.weight).relu() + self.bias

    x = torch.randn(50, 6)
    check(moments(Own(6, 4), x)[""], x, biased=False)


def test_a_compiled_model_tells_its_inputs_too() -> None:
    model, x = nn.Sequential(StaticPadding(2, 4, 3), nn.Flatten(), nn.Linear(64, 3)), None
    x = torch.randn(5, 2, 5, 5)
    plain = moments(model, x)
    compiled = torch.compile(model, backend="eager")
    found = input_moments(model, find_slots(model).values(), lambda _: compiled(x))
    for name, expected in plain.items():
        assert torch.allclose(found[name].second, expected.second, atol=1e-5)  # type: ignore[arg-type]


def test_calls_without_a_weight_are_none() -> None:
    x = torch.randn(2, 3, 4)
    for function, arguments in (
        (torch.matmul, (x, x.mT)),
        (torch.matmul, (x[0, 0], x[0, 0])),
        (torch.add, (x, x)),
        (functional.linear, (x, x[0, 0])),
    ):
        assert read_calls(function, arguments, {}) == ()  # type: ignore[arg-type]


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_weight_on_the_left_of_a_product(dims: int) -> None:
    class Mixer(nn.Module):
        """As Mamba has its steps: the layer is never called."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, value: Tensor) -> Tensor:
            columns = value if dims == 1 else value.mT
            return torch.softmax(self.layer.weight @ columns, -1)

    x = torch.randn(*(5, 20, 6)[3 - dims :])
    found = moments(Mixer(), x)["layer"]
    check(found, x.reshape(-1, 6), biased=False)
