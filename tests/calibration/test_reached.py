"""Weights that no data reach: experts and owners that never run are no obstacle, typos are."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.nn import coded_weights

X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)).abs()
TOKENS = torch.arange(60).reshape(4, 15)


class Routed(nn.Module):
    """Experts by the sign of the mean; those without samples are called with none, or not."""

    def __init__(self, skips: bool) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8)) for _ in range(2))
        self.skips = skips

    def forward(self, value: Tensor) -> Tensor:
        output = torch.zeros_like(value)
        first = value.mean(1) > 0
        for mask, expert in zip((first, ~first), self.experts, strict=True):
            if bool(mask.any()) or not self.skips:
                output[mask] = expert(value[mask])
        return output


@pytest.mark.parametrize("skips", [True, False])
def test_an_expert_without_samples_is_named_and_fitted_by_its_weights(skips: bool) -> None:
    model = Routed(skips).eval()
    with pytest.warns(UserWarning, match=r"no samples to 'experts\.1\.0'"):
        small: Any = vq.compress(model, vq.KM(k=4), [X, X])
    plain: Any = vq.compress(model, vq.KM(k=4))
    assert torch.equal(small.experts[1][0].weight, plain.experts[1][0].weight)
    assert not torch.equal(small.experts[0][0].weight, plain.experts[0][0].weight)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vq.compress(model, vq.KM(k=4), [X, -X])


@pytest.mark.parametrize("skips", [True, False])
def test_no_samples_at_all_is_an_error(skips: bool) -> None:
    for data in ([], [X[:0]]):
        with pytest.raises(ValueError, match=r"experts\.0\.0.*never ran it"):
            vq.compress(Routed(skips), vq.KM(k=4), data)


class Seq2Seq(nn.Module):
    """Encoder and head have the table of a module that only holds it."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Embedding(60, 16)
        self.source, self.head = nn.Embedding(60, 16), nn.Linear(16, 60, bias=False)
        self.source.weight = self.head.weight = self.shared.weight
        self.mix = nn.Linear(16, 16)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.mix(self.source(tokens)))


class Table(nn.Module):
    """A layer that never runs; its table is a parameter of the model itself, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(60, 16), nn.Linear(16, 16)
        self.table = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mix(self.table[tokens]) @ self.table.T


def test_a_tied_owner_that_ran_speaks_for_the_others(tmp_path: Path) -> None:
    model = Seq2Seq().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small: Any = vq.compress(model, vq.KM(k=16), [TOKENS])
    assert small.shared.codebooks is small.source.codebooks is small.head.codebooks
    vq.save(small, tmp_path / "m.vq")
    assert torch.equal(vq.load(tmp_path / "m.vq", Seq2Seq().eval())(TOKENS), small(TOKENS))
    # As if the owner that only holds the table were not there.
    alone = Seq2Seq().eval()
    alone.load_state_dict(model.state_dict())
    alone.shared = nn.Identity()  # type: ignore[assignment]
    other: Any = vq.compress(alone, vq.KM(k=16), [TOKENS])
    assert torch.equal(small.source.weight, other.source.weight)


def test_an_owner_that_is_no_layer() -> None:
    model = Table().eval()
    small: Any = vq.compress(model, vq.KM(k=64), [TOKENS])
    assert set(coded_weights(small)) == {"embed", "mix", "table"}
    assert torch.equal(small.table, small.embed.weight)
    assert float((small(TOKENS) - model(TOKENS)).norm() / model(TOKENS).norm()) < 0.05


def test_a_bare_module_is_named_by_its_class() -> None:
    class Own(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return (input.unsqueeze(1) * self.weight).sum(2)

    with pytest.warns(UserWarning, match="does not know the inputs of Own"):
        vq.compress(Own(8, 8), vq.KM(k=4), [X])
    with pytest.raises(ValueError, match=r"the model itself.*never ran it"):
        vq.compress(nn.Linear(8, 8), vq.KM(k=4), [])


@pytest.mark.parametrize("batch", [[X], (X,), {"input": X}, X], ids=["list", "tuple", "dict", "x"])
def test_a_batch_of_one_tensor_in_any_form(batch: object) -> None:
    model = nn.Linear(8, 8)
    small, other = (vq.compress(model, vq.KM(k=4), [each]) for each in (batch, X))
    assert torch.equal(small.weight, other.weight)  # type: ignore[arg-type]


def test_compensate_passes_over_empty_batches() -> None:
    model = nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 4, 3)).eval()
    images = torch.randn(8, 2, 9)
    one, other = (
        vq.compensate(vq.compress(model, {"0": vq.KM(k=2)}), model, batches)
        for batches in ([images], [images, images[:0]])
    )
    assert torch.equal(one[2].weight, other[2].weight)  # type: ignore[index]


class Relative(nn.Module):
    """As DeBERTa has its positions: a table that is read as a whole and never looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.positions, self.layer = nn.Embedding(10, 8), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, value: Tensor) -> Tensor:
        if self.positions.weight.dtype != value.dtype:
            raise TypeError
        return torch.softmax(self.layer(value) @ self.norm(self.positions.weight).mT, -1)


def test_a_table_that_is_only_read_is_named_and_fitted_by_its_weights() -> None:
    model = Relative().eval()
    with pytest.warns(UserWarning, match="no samples to 'positions'"):
        small: Any = vq.compress(model, vq.KM(k=4), [X])
    plain: Any = vq.compress(model, vq.KM(k=4))
    assert torch.equal(small.positions.weight, plain.positions.weight)
    assert not torch.equal(small.layer.weight, plain.layer.weight)
    with pytest.warns(UserWarning, match="no samples to 'positions'"):
        assert vq.choose_schemes(model, "auto", [X]).keys() == {"positions", "layer"}


def test_a_weight_whose_dtype_alone_is_read_is_an_error() -> None:
    class Forgetful(Relative):
        def forward(self, value: Tensor) -> Tensor:
            return self.layer(value.to(self.positions.weight.dtype))

    with pytest.raises(ValueError, match=r"'positions'.*never ran it"):
        vq.compress(Forgetful(), vq.KM(k=4), [X])


def test_parts_of_a_weight_that_are_read_tell_no_inputs() -> None:
    class Slim(nn.Module):
        """As networks of several widths have it, and its only layer."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, value: Tensor) -> Tensor:
            return nn.functional.linear(value, self.layer.weight[:4], self.layer.bias[:4])

    model = Slim()
    with pytest.warns(UserWarning, match="no samples to 'layer'"):
        small: Any = vq.compress(model, vq.KM(k=4), [X])
    assert torch.equal(small.layer.weight, vq.compress(model, vq.KM(k=4)).layer.weight)  # type: ignore[union-attr]
