"""``vq.count_work``: against counts by torch, of float and of compressed models."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import vq_plugin as vq


class Net(nn.Module):
    """Strides, groups, a layer that runs twice and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.last = nn.Linear(4 * 64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.twice(self.twice(self.first(x))))
        out: torch.Tensor = self.last(x.flatten(1))
        return out


def test_multiplications_are_those_that_torch_counts() -> None:
    net, x = Net(), torch.randn(3, 3, 8, 8)
    with FlopCounterMode(display=False) as counter:
        net(x)
    work = vq.count_work(net, [x, "not read"])
    assert work.multiplications * 2 * 3 == counter.get_total_flops()
    assert work.weights == sum(p.numel() for p in net.parameters() if p.dim() > 1)
    assert work.nonzero_multiplications == work.multiplications
    assert net.training


def test_zeros_of_coded_and_of_shared_weights() -> None:
    net, x = Net(), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        net.last.weight[:, ::2] = 0
    small = vq.compress(net, {"last": vq.KM(k=5, keep_zeros=True)})
    dense, sparse = vq.count_work(Net(), [x]), vq.count_work(small, [x])
    assert sparse.weights == dense.weights
    zeros = int((small.last.weight == 0).sum())
    assert zeros >= 10 * 128
    assert dense.nonzero_weights - sparse.nonzero_weights == zeros
    assert dense.multiplications - sparse.nonzero_multiplications == zeros
    tied = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied[1].weight = tied[0].weight
    work = vq.count_work(tied, [torch.zeros(2, 6)])
    assert (work.weights, work.multiplications) == (36, 72)


def test_without_a_batch_it_is_an_error() -> None:
    with pytest.raises(ValueError, match="there is no batch"):
        vq.count_work(Net(), [])


@pytest.mark.filterwarnings("ignore:Calling register_constant")
def test_integers_of_torchao_count_as_their_values() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    net = nn.Sequential(nn.Linear(8, 4)).eval()
    with torch.no_grad():
        net[0].weight[:, 0] = 0
    expected = vq.count_work(net, [torch.ones(2, 8)])
    torchao.quantize_(net, torchao.Int8WeightOnlyConfig())
    assert vq.count_work(net, [torch.ones(2, 8)]) == expected
    assert expected.nonzero_weights == 28


def test_a_search_whose_work_cannot_be_counted_keeps_its_result(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: object) -> None:
        raise NotImplementedError("no such operator")

    monkeypatch.setattr("vq_plugin.tuning.search.count_work", refused)
    model = nn.Sequential(nn.Linear(8, 4))
    found = vq.tune(model, lambda _: 1.0, calibration=[torch.randn(4, 8)], max_trials=1)
    assert found.passed
    assert found.work is None
    assert "not counted: no such operator" in caplog.text
