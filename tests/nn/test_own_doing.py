"""What a layer has beside weight and bias is there after compression, and in a loaded model."""

import functools
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.nn import CodebookConv1d, CodebookLinear, coded_weights

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self, layer: nn.Module, use: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.fc, self.use = layer, use

    def forward(self, value: Tensor) -> Tensor:
        return self.use(self.fc, value)


class Gated(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.gate = nn.Parameter(torch.ones(1))


class Adapted(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.extra = nn.Parameter(torch.randn(outputs, inputs))


class Scaled(nn.Linear):
    def scaled(self, value: Tensor) -> Tensor:
        return 4 * self(value)


class Called(nn.Linear):
    def __call__(self, value: Tensor) -> Any:
        return 3 * super().__call__(value)


class Sized(nn.Linear):
    @property
    def width(self) -> int:
        return self.out_features


class Named(nn.Linear):
    """A parameter by a name that codebook layers need themselves."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.scale = nn.Parameter(torch.full((outputs,), 2.0))


def with_(**members: Any) -> nn.Module:
    layer = nn.Linear(8, 8)
    for name, value in members.items():
        setattr(layer, name, value)
    return layer


def buffered() -> nn.Module:
    layer = nn.Linear(8, 8)
    layer.register_buffer("shift", torch.ones(8), persistent=False)
    return layer


def hooked() -> nn.Module:
    layer = with_(act=nn.ReLU())
    layer.register_forward_hook(lambda module, _, output: module.act(output))
    return layer


Case = tuple[Callable[[], nn.Module], Callable[[Any, Tensor], Tensor], bool]
CASES: dict[str, Case] = {
    "attribute": (lambda: with_(gain=2.0), lambda fc, x: fc(x) * fc.gain, True),
    "a flag of its model": (lambda: with_(_is_initialized=True), lambda fc, x: fc(x), True),
    "buffer": (buffered, lambda fc, x: fc(x) + fc.shift, True),
    "submodule": (hooked, lambda fc, x: fc(x), True),
    "parameter of a subclass": (lambda: Gated(8, 8), lambda fc, x: fc(x) * fc.gate, True),
    "method of a subclass": (lambda: Scaled(8, 8), lambda fc, x: fc.scaled(x), False),
    "property of a subclass": (lambda: Sized(8, 8), lambda fc, x: fc(x) * fc.width, False),
    "call of a subclass": (lambda: Called(8, 8), lambda fc, x: fc(x), False),
    "a name of ours": (lambda: Named(8, 8), lambda fc, x: fc(x) * fc.scale, False),
}
cases = pytest.mark.parametrize(("layer", "use", "replaced"), CASES.values(), ids=CASES.keys())


@cases
@pytest.mark.parametrize("calibration", [None, [X]], ids=["plain", "calibrated"])
def test_the_model_goes_on_as_it_did(
    layer: Callable[[], nn.Module],
    use: Callable[[Any, Tensor], Tensor],
    replaced: bool,
    calibration: list[Tensor] | None,
    tmp_path: Path,
) -> None:
    model = Net(layer(), use).eval()
    small = vq.compress(model, vq.KM(k=64), calibration)
    with torch.no_grad():
        wanted, got = model(X), small(X)
        assert torch.allclose(got, wanted, atol=0.02 * float(wanted.abs().max()))
        assert isinstance(small.fc, CodebookLinear) == replaced
        vq.save(small, tmp_path / "m.vq")
        assert torch.equal(vq.load(tmp_path / "m.vq", Net(layer(), use).eval())(X), got)


def test_extras_are_the_copys_own() -> None:
    model = Net(Gated(8, 8), lambda fc, x: fc(x) * fc.gate)
    small = vq.compress(model, vq.KM(k=4))
    small.fc.gate.data.zero_()  # type: ignore[union-attr, operator]
    assert model.fc.gate.item() == 1  # type: ignore[union-attr, operator]


def test_extras_that_are_tied_stay_tied() -> None:
    model = nn.Sequential(Gated(8, 8), Gated(8, 8))
    model[1].gate = model[0].gate
    small = vq.compress(model, vq.KM(k=4))
    assert small[0].gate is small[1].gate  # type: ignore[index]


def test_a_layer_below_another_is_coded_too() -> None:
    model = Net(with_(inner=nn.Linear(8, 8)), lambda fc, x: fc.inner(fc(x)))
    small = vq.compress(model, vq.KM(k=4))
    assert list(coded_weights(small)) == ["fc", "fc.inner"]
    assert isinstance(small.fc.inner, CodebookLinear)  # type: ignore[union-attr]
    small(X)


@pytest.mark.parametrize("kind", [Adapted, Named])
def test_a_layer_two_of_whose_parameters_are_coded(kind: type[nn.Linear], tmp_path: Path) -> None:
    def build() -> nn.Module:
        layer = kind(8, 8)
        layer.extra = nn.Parameter(torch.randn(8, 8))
        return Net(layer, lambda fc, x: fc(x) @ fc.extra).eval()

    model = build()
    small = vq.compress(model, {"fc": vq.KM(k=64), "fc.extra": vq.KM(k=64)})
    assert set(coded_weights(small)) == {"fc", "fc.extra"}
    with torch.no_grad():
        assert float((small(X) - model(X)).norm() / model(X).norm()) < 0.05
        vq.save(small, tmp_path / "m.vq")
        assert torch.equal(vq.load(tmp_path / "m.vq", build())(X), small(X))


def test_what_is_left_float_of_a_replaced_layer_is_listed() -> None:
    with pytest.warns(UserWarning, match=r"0\.extra: 16,384 bytes"):
        small = vq.compress(nn.Sequential(Adapted(64, 64)), vq.KM(k=4))
    assert [weight.name for weight in vq.summary(small).left] == ["0.extra"]


def test_state_dict_hooks(tmp_path: Path) -> None:
    def build() -> nn.Module:
        layer = nn.Linear(8, 8)
        layer.register_state_dict_post_hook(
            lambda _, state, prefix, __: state.update({prefix + "version": torch.ones(1)})
        )
        layer.register_load_state_dict_pre_hook(
            lambda _, state, prefix, *__: state.pop(prefix + "version", None)
        )
        return nn.Sequential(layer).eval()

    model = build()
    small = vq.compress(model, vq.KM(k=4))
    assert "0.version" in small.state_dict()
    vq.save(small, tmp_path / "m.vq")
    again = vq.load(tmp_path / "m.vq", build())
    with torch.no_grad():
        assert torch.equal(again(X), small(X))


def _method(layer: nn.Linear) -> None:
    def forward(self: nn.Linear, value: Tensor) -> Tensor:
        return 2 * functional.linear(value, self.weight, self.bias)

    layer.forward = MethodType(forward, layer)  # type: ignore[method-assign]


def _closure(layer: nn.Linear) -> None:
    old = layer.forward
    layer.forward = lambda value: 2 * old(value)  # type: ignore[method-assign]


def _default(layer: nn.Linear) -> None:
    layer.forward = lambda value, old=layer.forward: 2 * old(value)  # type: ignore


def _partial(layer: nn.Linear) -> None:
    def forward(own: nn.Linear, value: Tensor) -> Tensor:
        return 2 * functional.linear(value, own.weight, own.bias)

    layer.forward = functools.partial(forward, layer)  # type: ignore[method-assign]


def _wrapped(layer: nn.Linear) -> None:
    old = layer.forward

    @functools.wraps(old)
    def forward(*arguments: Any) -> Tensor:
        return 2 * old(*arguments)

    layer.forward = forward  # type: ignore[method-assign]


@pytest.mark.parametrize("change", [_method, _closure, _default, _partial, _wrapped])
def test_a_forward_of_one_layer_alone_runs_on_the_codes(
    change: Callable[[nn.Linear], None],
) -> None:
    model = nn.Sequential(nn.Linear(8, 8)).eval()
    change(model[0])  # type: ignore[arg-type]
    small = vq.compress(model, vq.KM(k=64))
    with torch.no_grad():
        wanted, got = model(X), small(X)
        assert 0 < float((got - wanted).norm() / wanted.norm()) < 0.05
        model[0].weight.zero_()  # type: ignore[union-attr, operator]
        assert torch.equal(small(X), got)


def test_a_convolution_of_one_layer_alone() -> None:
    model = nn.Sequential(nn.Conv1d(4, 4, 3)).eval()
    old = model[0]._conv_forward  # type: ignore[union-attr]
    model[0]._conv_forward = lambda *arguments: 3 * old(*arguments)  # type: ignore
    x = torch.randn(2, 4, 9)
    small = vq.compress(model, vq.KM(k=64))
    assert not isinstance(small[0], CodebookConv1d)  # type: ignore[index]
    with torch.no_grad():
        assert 0 < float((small(x) - model(x)).norm() / model(x).norm()) < 0.05


def test_a_layer_that_is_compiled_alone_is_replaced() -> None:
    model = nn.Sequential(nn.Linear(8, 8))
    model[0].compile(backend="eager")
    assert isinstance(vq.compress(model, vq.KM(k=4))[0], CodebookLinear)  # type: ignore[index]
