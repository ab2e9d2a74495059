"""Inputs that several weights read are summed up once, and only while they are the same."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vq_plugin.calibration import input_moments
from vq_plugin.calibration.statistics import InputMoments
from vq_plugin.fit.output.moments import Moments
from vq_plugin.nn import find_slots


class Attention(nn.Module):
    """Three projections of one input, and one of another."""

    def __init__(self, between: Callable[[Tensor], object] = lambda x: None) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(12, 8) for _ in range(3))
        self.out = nn.Linear(8, 12)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = x + 1
        q, k = self.q(x), self.k(x)
        self.between(x)
        return self.out(q * k * self.v(x))


class Twins(nn.Module):
    """Two convolutions of one input: of the same patches, or of others."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, stride=stride)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x), self.b(x)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the pieces that sums were taken of."""
    shapes: list[tuple[int, ...]] = []
    sums = InputMoments._sums

    def counted(self, piece, *rest):
        shapes.append(tuple(piece.shape))
        return sums(self, piece, *rest)

    monkeypatch.setattr(InputMoments, "_sums", counted)
    return shapes


def gathered(model: nn.Module, batches: list[Tensor]) -> dict[str, Moments]:
    return input_moments(model, find_slots(model).values(), batches)


def test_projections_of_one_input_are_summed_up_once(read: list[tuple[int, ...]]) -> None:
    batches = [torch.randn(2, 5, 12), torch.randn(3, 5, 12)]
    found = gathered(Attention(), batches)
    assert read == [(1, 10, 12), (1, 10, 8), (1, 15, 12), (1, 15, 8)]
    rows = torch.cat([batch.reshape(-1, 12) for batch in batches]) + 1
    for name in "qkv":
        assert torch.allclose(found[name].second[0], rows.T @ rows / 25, rtol=1e-4, atol=1e-5)
        assert torch.allclose(found[name].mean[0], rows.mean(0), rtol=1e-4, atol=1e-5)


def test_an_input_that_was_written_to_is_another_one(read: list[tuple[int, ...]]) -> None:
    x = torch.randn(7, 12)
    found = gathered(Attention(lambda x: x.mul_(2)), [x])
    assert len(read) == 3
    rows = x + 1
    for name, size in (("q", 1), ("k", 1), ("v", 4)):
        expected = size * rows.T @ rows / 7
        assert torch.allclose(found[name].second[0], expected, rtol=1e-4, atol=1e-5)


def test_inputs_without_versions_are_read_again(read: list[tuple[int, ...]]) -> None:
    model, x = Attention(lambda x: x.mul_(2)), torch.randn(7, 12)

    def run(model: nn.Module) -> None:
        with torch.inference_mode():
            model(x)

    found = input_moments(model, find_slots(model).values(), run)
    assert len(read) == 4
    rows = x + 1
    assert torch.allclose(found["v"].second[0], 4 * rows.T @ rows / 7, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 2])
def test_patches_are_the_same_where_kernels_move_alike(
    stride: int, read: list[tuple[int, ...]]
) -> None:
    x = torch.randn(2, 3, 7, 7)
    found = gathered(Twins(stride), [x])
    assert len(read) == stride
    patches = nn.functional.unfold(x, 3, stride=stride).transpose(1, 2).reshape(-1, 27)
    expected = patches.T @ patches / len(patches)
    assert torch.allclose(found["b"].second[0], expected, rtol=1e-4, atol=1e-5)
