"""Which parameters have slots, and what slots know of them."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence

import vq_plugin as vq
from vq_plugin.nn import coded_weights, find_slots, register_slot, slots
from vq_plugin.sizes import account


class Adapted(nn.Linear):
    """A Linear layer with one parameter more, and a forward pass of its own."""

    def __init__(self) -> None:
        super().__init__(16, 16)
        self.low = nn.Parameter(torch.randn(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + (x @ self.low).sum(1, keepdim=True)


class Registered(Adapted):
    """The same, whose second parameter has a slot, too."""


register_slot(Registered, "low", view=(1, 0))


def test_any_parameter_is_reached_by_its_name_beside_slots_of_its_module() -> None:
    model = nn.Sequential(Adapted()).eval()
    small = vq.compress(model, {"0.low": vq.KM(k=4), "*": vq.KM(k=8)})
    assert {n: c.codebook_weight.k for n, c in coded_weights(small).items()} == {"0": 8, "0.low": 4}
    assert coded_weights(vq.compress(model, vq.KM(k=8))).keys() == {"0"}


def test_a_class_keeps_the_slots_of_its_bases() -> None:
    model = nn.Sequential(Registered()).eval()
    assert find_slots(model).keys() == {"0.low", "0.weight"}
    small = vq.compress(model, {"0": vq.KM(k=8)})
    assert coded_weights(small).keys() == {"0.low", "0.weight"}
    x, decoded = torch.randn(3, 16), nn.Sequential(Registered())
    with torch.no_grad():
        decoded[0].weight.copy_(small[0].weight)
        decoded[0].low.copy_(small[0].low)
        decoded[0].bias.copy_(small[0].bias)
        assert torch.allclose(small(x), decoded(x), atol=1e-5)


def test_a_parameter_that_is_seen_nowhere_else_keeps_its_values() -> None:
    class Reader(nn.Linear):
        def __init__(self, shared: nn.Parameter) -> None:
            super().__init__(4, 4)
            self.extra, self.unseen = shared, [shared]

    lstm = nn.LSTM(8, 8)
    model = nn.ModuleDict({"l": lstm, "r": Reader(lstm.weight_ih_l0)})
    small = vq.compress(model, {"l": vq.KM(k=256)})
    expected = small["l"].weight_ih_l0
    assert torch.equal(small["r"].extra, expected)
    assert torch.equal(small["r"].unseen[0], lstm.weight_ih_l0)


def test_the_bytes_of_one_direction_are_not_those_of_the_other() -> None:
    model = nn.LSTM(8, 16, bidirectional=True)
    others = sum(p.nbytes for n, p in model.named_parameters() if n != "weight_ih_l0")
    assert account(model, ["weight_ih_l0"], None).other_nbytes == others


def test_inputs_of_a_class_that_inherits_its_forward_are_known() -> None:
    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(8, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.kernel

    class Named(Scores):
        pass

    from vq_plugin.nn.inputs import multiplied

    register_slot(Named, "kernel", view=(1, 0), inputs=multiplied)
    assert find_slots(Named())[""].observable


def test_calibration_of_attention_with_a_parametrized_projection() -> None:
    model = parametrizations.weight_norm(nn.MultiheadAttention(16, 2), "in_proj_weight").eval()
    x = torch.randn(5, 2, 16)
    small = vq.compress(model, vq.KM(k=8), [(x, x, x)])
    assert coded_weights(small).keys() == {"in_proj_weight", "out_proj"}


def test_a_packed_sequence_is_one_input() -> None:
    batch = pack_padded_sequence(torch.randn(5, 2, 6), torch.tensor([5, 3]))
    assert vq.compress(nn.LSTM(6, 4), vq.KM(k=4), [batch]) is not None


@pytest.mark.parametrize("code", [-1, 2, 200])
def test_a_fit_that_gives_codes_without_centers_is_an_error(code: int) -> None:
    from dataclasses import dataclass

    def fit(matrix: Tensor, scheme: object, importance: object, seed: int) -> tuple[Tensor, Tensor]:
        codes = torch.zeros(1, *matrix.shape, dtype=torch.int64)
        codes[0, 0, 0] = code
        return codes, torch.zeros(1, 1, 1, 2, 1)

    @vq.register_scheme(fit=fit)
    @dataclass(frozen=True, repr=False)
    class Careless(vq.Scheme):
        method = f"careless{abs(code)}"
        k: int = 2

    with pytest.raises(ValueError, match="gave codes from"):
        vq.quantize_weight(torch.randn(4, 4), Careless())


class Kernel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(16, 4))

    def forward(self, value: Tensor) -> Tensor:
        return value @ self.kernel


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (lambda *_: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda *_: None, "AttributeError"),
        ((2, 0), "no permutation"),
        (lambda *_: vq.View.whole((4, 4)), r"not of a parameter of shape \(16, 4\)"),
    ],
)
def test_a_view_that_fails_names_the_slot(
    view: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(slots._KINDS, Kernel, raising=False)
    vq.register_slot(Kernel, "kernel", view=view)
    with pytest.raises(ValueError, match=rf"layer '1': the view= that 'kernel' .*{message}"):
        vq.compress(nn.Sequential(nn.Linear(4, 16), Kernel()), vq.KM(k=4))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (lambda *_: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda *_: None, "TypeError"),
        (lambda *_: iter([torch.ones(1, 3, 5)]), "RuntimeError"),
    ],
)
def test_inputs_that_fail_name_the_slot(
    inputs: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(slots._KINDS, Kernel, raising=False)
    vq.register_slot(Kernel, "kernel", view=(1, 0), inputs=inputs)
    model = nn.Sequential(nn.Linear(4, 16), Kernel())
    with pytest.raises(ValueError, match=rf"layer '1': the inputs= that 'kernel' .*{message}"):
        vq.compress(model, vq.KM(k=4), [torch.randn(3, 4)])
    assert not any(module._forward_pre_hooks for module in model.modules())
