"""Strips of a weight give the gradients that the whole one gives."""

import pytest
import torch
from torch import nn

import vq_plugin as vq
from vq_plugin import ops
from vq_plugin.nn import CodebookLinear
from vq_plugin.ops import linear_gradients as gradients

SCHEMES = [
    vq.PQ(k=16, dim=4),
    vq.PQ(k=40, dim=2, scale="row"),
    vq.PQ(k=5, dim=3, axis="out", scale="row"),
    vq.PQ(k=40, dim=8, codebooks="tensor"),
    vq.PQ(k=40, dim=3, axis="out"),
    vq.RQ(k=16, stages=2, dim=4),
    vq.KM(k=16, group=16, scale="row"),
    vq.KM(k=40, group=24),
]


def found(scheme: vq.Scheme) -> list[torch.Tensor]:
    torch.manual_seed(3)
    layer = CodebookLinear.from_float(nn.Linear(75, 90), scheme)
    x = torch.randn(2, 7, 75, requires_grad=True)
    layer._multiply(x).square().sum().backward()
    grads = [x.grad, *(parameter.grad for parameter in layer.parameters())]
    assert all(grad is not None for grad in grads)
    return grads  # type: ignore[return-value]


@pytest.mark.parametrize("of_codebooks", [0, 1000], ids=["rows", "subspaces"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_strips_give_what_the_whole_weight_gives(
    scheme: vq.Scheme, of_codebooks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = found(scheme)
    monkeypatch.setattr(gradients, "_STRIP", 2000)
    # Where strips may not be much smaller than codebooks, they are of subspaces with their own.
    monkeypatch.setattr(gradients, "_OF_CODEBOOKS", of_codebooks)
    if ops.native() is not None:
        assert len(list(gradients._strips(90, 75, 0, 2000))) > 2
    for strips, expected in zip(found(scheme), whole, strict=True):
        assert strips.shape == expected.shape
        assert torch.allclose(strips, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_strips_are_whole_blocks_and_groups() -> None:
    assert list(gradients._strips(90, 10, 0, 900)) == [(0, 90)]
    assert list(gradients._strips(90, 10, 0, 400)) == [(0, 32), (32, 64), (64, 90)]
    assert list(gradients._strips(100, 10, 24, 1)) == [(0, 48), (48, 96), (96, 100)]
    assert list(gradients._strips(0, 10, 0, 1)) == [(0, 0)]


@pytest.mark.skipif(ops.native() is None, reason="without kernels gradients are whole")
def test_neither_the_weight_nor_its_gradient_is_ever_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gradients, "_STRIP", 2000)
    sizes: list[int] = []
    sums = gradients.codebook_gradients

    def seen(grad: torch.Tensor, *rest: object, **more: object) -> object:
        sizes.append(grad.numel())
        return sums(grad, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(gradients, "codebook_gradients", seen)
    found(vq.PQ(k=16, dim=4, codebooks="tensor"))
    assert len(sizes) > 2
    assert max(sizes) <= 2000
