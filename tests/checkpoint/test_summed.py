"""Files whose rest is rounded keep one of two biases that are added."""

from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.checkpoint import read_header, round_rest
from vq_plugin.nn import CodedParameter


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 64, 2, bidirectional=True)
        self.rnn = nn.RNN(128, 32)
        self.cell = nn.LSTMCell(32, 32)
        self.gru = nn.GRU(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.rnn(self.lstm(x)[0])[0]
        x = torch.stack([self.cell(each)[0] for each in x])
        found: Tensor = self.gru(x)[0]
        return found


def network() -> Recurrent:
    torch.manual_seed(0)
    return Recurrent().eval()


@pytest.mark.parametrize("rest", ["float16", "int8"])
def test_sums_are_kept_and_outputs_stay(rest: Literal["float16", "int8"], tmp_path: Path) -> None:
    small, x = vq.compress(network(), vq.KM(k=64)), torch.randn(5, 3, 12)
    assert isinstance(small.lstm.parametrizations.weight_ih_l0[0], CodedParameter)  # type: ignore
    size = vq.save(small, tmp_path / "m.vq", rest=rest)
    loaded = vq.load(tmp_path / "m.vq", network())
    rounded = round_rest(vq.compress(network(), vq.KM(k=64)), rest)
    for name, value in rounded.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
        summed = "bias_hh" in name and not name.startswith("gru")
        assert bool(value.any()) != summed, name
    with torch.no_grad():
        before, after = small(x), loaded(x)
    assert torch.allclose(before, after, atol=1e-3 if rest == "float16" else 0.05)
    # The same model again, of the same bytes.
    assert vq.save(loaded, tmp_path / "again.vq", rest=rest) == size
    assert (tmp_path / "again.vq").read_bytes() == (tmp_path / "m.vq").read_bytes()


def test_they_take_nothing_beside_the_sums(tmp_path: Path) -> None:
    small = vq.compress(network(), vq.KM(k=64))
    size = vq.save(small, tmp_path / "m.vq", rest="float16")
    kinds = read_header(tmp_path / "m.vq")[0].tensors
    zeros = [kind for name, kind in kinds.items() if "bias_hh" in name and "gru" not in name]
    assert len(zeros) == 4 + 1 + 1
    assert {kind.dtype for kind in zeros} == {"int8"}
    kept = sum(kind.nbytes for kind in kinds.values()) - sum(kind.nbytes for kind in zeros)
    assert size < kept + 2000
    assert vq.summary(small, rest="float16").other_nbytes == sum(
        kind.nbytes for name, kind in kinds.items() if "bias" in name
    )


def test_without_rounding_biases_stay_as_they_are(tmp_path: Path) -> None:
    model = network()
    vq.save(vq.compress(model, vq.KM(k=64)), tmp_path / "m.vq")
    loaded = vq.load(tmp_path / "m.vq", network()).state_dict()
    for name, value in model.named_parameters():
        if "bias" in name:
            assert torch.equal(loaded[name], value)


class Gated(nn.LSTMCell):
    """Uses its biases in its own way."""


def test_biases_of_own_classes_and_shared_ones_stay_as_they_are() -> None:
    own, shared = Gated(8, 8), nn.ModuleList([nn.RNNCell(8, 8), nn.RNNCell(8, 8)])
    shared[1].bias_hh = shared[0].bias_hh
    half = nn.LSTMCell(8, 8, bias=False)
    model = nn.ModuleList([own, shared, half, nn.GRU(8, 8), nn.Linear(8, 8)])
    before = {name: value.half().float() for name, value in model.state_dict().items()}
    round_rest(model, "float16")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_sums_beyond_float16_stay_float32() -> None:
    model = nn.LSTMCell(2, 2)
    with torch.no_grad():
        model.bias_ih.fill_(60_000.0)
        model.bias_hh.fill_(60_000.0)
    round_rest(model, "float16")
    assert model.bias_ih.tolist() == [120_000.0] * 8
    assert not model.bias_hh.any()
