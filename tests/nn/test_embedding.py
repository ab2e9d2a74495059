"""``CodebookEmbedding`` against the float embedding with the decoded weight."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.nn import CodebookEmbedding

SCHEMES = [
    vq.KM(k=8),
    vq.KM(k=4, group=7),
    vq.PQ(k=8, dim=4),
    vq.PQ(k=8, axis="out"),
    vq.RQ(k=8, dim=5),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("padding_idx", [None, 0, -1])
def test_it_looks_up_the_decoded_weight(scheme: vq.Scheme, padding_idx: int | None) -> None:
    source = nn.Embedding(30, 12, padding_idx=padding_idx)
    layer = CodebookEmbedding.from_float(source, scheme)
    weight = vq.quantize_weight(source.weight, scheme).decode()
    if padding_idx is not None:
        weight[padding_idx] = 0
    for index in (
        torch.arange(30),
        torch.randint(30, (2, 5), dtype=torch.int32),
        torch.tensor(3),
        torch.zeros(0, dtype=torch.long),
    ):
        assert torch.equal(layer(index), functional.embedding(index, weight))
        assert torch.equal(layer.to_float()(index), layer(index))


@pytest.mark.parametrize("scale_grad_by_freq", [False, True])
def test_gradients_treat_padding_and_frequency_as_the_float_layer(
    scale_grad_by_freq: bool,
) -> None:
    source = nn.Embedding(10, 4, padding_idx=2, scale_grad_by_freq=scale_grad_by_freq)
    # One center for every weight: the codebook's gradient is the weight's.
    layer = CodebookEmbedding.from_float(source, vq.KM(k=64, codebook_dtype="float32"))
    index = torch.tensor([1, 2, 2, 3, 3, 3])
    target = torch.randn(6, 4)
    for module in (source, layer):
        (module(index) * target).sum().backward()
    assert source.weight.grad is not None
    assert layer.codebooks.grad is not None
    by_weight = layer.codebooks.grad.flatten()[layer.codes.long().reshape(10, 4)]
    assert torch.allclose(by_weight, source.weight.grad, atol=1e-6)


def test_an_embedding_that_rewrites_its_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_norm=1\.0 rewrites its weight.*max_norm=None"):
        CodebookEmbedding.from_float(nn.Embedding(10, 4, max_norm=1.0), vq.KM())


def test_an_index_out_of_range_is_an_error() -> None:
    layer = CodebookEmbedding.from_float(nn.Embedding(10, 4), vq.KM())
    with pytest.raises(IndexError):
        layer(torch.tensor([10]))


def test_repr_names_the_padding_index() -> None:
    layer = CodebookEmbedding.from_float(nn.Embedding(10, 4, padding_idx=3), vq.KM(k=4))
    assert repr(layer).startswith("CodebookEmbedding(10, 4, padding_idx=3, km(k=4), ")
