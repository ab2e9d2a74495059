"""Layers as products of two in codes: ``Factored``, where a scheme may stand."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.factorize import KernelBasis, LowRank
from vq_plugin.factors import Factored

FORM = vq.Factored(vq.SVD(rank=6), vq.KM(k=16))


def dense(seed: int = 0, rank: int = 8) -> tuple[nn.Sequential, list[Tensor]]:
    """A layer of about that rank, whose inputs are of very unlike sizes, and not around 0."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(40, 32)
    with torch.no_grad():
        parts = (torch.randn(s, generator=generator) for s in ((32, rank), (rank, 40)))
        left, right = parts
        noise = 0.1 * torch.randn(32, 40, generator=generator)
        layer.weight.copy_((left @ right + noise) / 8)
    size = torch.logspace(-1, 1, 40)
    batches = [torch.randn(128, 40, generator=generator) * size + size for _ in range(3)]
    return nn.Sequential(layer), batches


def output_error(model: nn.Module, small: nn.Module, batches: list[Tensor]) -> float:
    with torch.no_grad():
        return float(sum((model(x) - small(x)).square().mean() for x in batches))


@pytest.mark.parametrize(
    "form",
    [
        FORM,
        vq.Factored(vq.SVD(energy=0.9), vq.Uniform(step=0.5, scale="row")),
        vq.Factored(vq.SVD(rate=2.2, split="spatial"), vq.PQ(k=4, dim=2)),
        vq.Factored(vq.Basis(d=3), vq.KM(k=4, codebook_dtype="int8")),
    ],
)
def test_texts_are_read_back(form: Factored) -> None:
    assert Factored.parse(str(form)) == form
    assert repr(form) == f"Factored({form})"
    text = str(form).replace("+", " +\t")
    assert vq.select.parse_form(text) == form


def test_texts_of_schemes_are_no_factors() -> None:
    assert Factored.parse("uniform(step=1.5e+1)") is None
    for text, said in (
        ("svd+km(k=4)", "cannot read the scheme"),
        ("svd(rank=0)+km(k=4)", "rank must be a whole number"),
        ("qr(rank=1)+km(k=4)", "factor 'qr' is unknown"),
        ("svd(rank=1)+km(k=0)", "k must be"),
    ):
        with pytest.raises(ValueError, match=said):
            vq.compress(nn.Linear(8, 8), text)


@pytest.mark.parametrize("calibrated", [False, True])
def test_it_computes_the_product_and_is_filed_as_one(calibrated: bool, tmp_path: Path) -> None:
    model, batches = dense()
    small = vq.compress(model, {"0": FORM}, batches if calibrated else None)
    layer: Any = small[0]
    assert isinstance(layer, LowRank)
    assert {row.name: row.scheme for row in vq.summary(small).rows} == {
        "0.first": "km(k=16)", "0.second": "km(k=16)",
    }  # fmt: skip
    weight = layer.second.codebook_weight.decode() @ layer.first.codebook_weight.decode()
    expected = functional.linear(batches[0], weight, layer.second.bias)
    torch.testing.assert_close(small(batches[0]), expected, rtol=1e-4, atol=1e-4)

    vq.save(small, tmp_path / "model.vq")
    fresh = nn.Sequential(nn.Linear(40, 32))
    assert torch.equal(vq.load(tmp_path / "model.vq", fresh)(batches[0]), small(batches[0]))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_fitted_together_the_two_lose_less_than_one_after_the_other(seed: int) -> None:
    """The second layer makes up for the codes of the first."""
    model, batches = dense(seed)
    factorized = vq.factorize(model, {"0": FORM.factor}, batches)
    apart = vq.compress(factorized, FORM.scheme, batches)
    together = vq.compress(model, FORM, batches)
    assert output_error(model, together, batches) < output_error(model, apart, batches)
    # And what is left has no mean: the bias has taken it up.
    with torch.no_grad():
        change = torch.cat([together(x) - model(x) for x in batches])
    assert change.mean(0).abs().max() < 1e-3 * change.square().mean(0).max().sqrt()


def test_with_all_of_the_rank_and_many_centers_hardly_anything_is_lost() -> None:
    model, batches = dense(rank=4)
    with torch.no_grad():
        rough = output_error(model, nn.Sequential(nn.Linear(40, 32)), batches)
    fine = vq.Factored(vq.SVD(rank=32), vq.KM(k=256, codebook_dtype="float32"))
    for calibration in (None, batches):
        small = vq.compress(model, fine, calibration)
        assert output_error(model, small, batches) < 1e-3 * rough


@pytest.mark.parametrize(
    ("factor", "kind"),
    [
        (vq.SVD(rank=3), LowRank),
        (vq.SVD(rank=3, split="spatial"), LowRank),
        (vq.Basis(d=4), KernelBasis),
    ],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(factor: Any, kind: type, groups: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=groups))
    batches = [torch.randn(4, 6, 9, 9)]
    form = vq.Factored(factor, vq.KM(k=64))
    for calibration in (None, batches):
        small: Any = vq.compress(model, form, calibration)
        assert isinstance(small[0], kind)
        first, second = (layer.codebook_weight.decode() for layer in small[0].layers)
        weight = small[0]._split.weight(first, second)
        whole = functional.conv2d(batches[0], weight, small[0].bias, 2, 1, 1, groups)
        torch.testing.assert_close(small(batches[0]), whole, rtol=1e-4, atol=1e-4)


def test_layers_of_one_weight_share_its_factors(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(24, 24), nn.Linear(24, 24)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.two(self.one(x).relu())
            return result

    torch.manual_seed(0)
    model, x = Twice(), torch.randn(16, 24)
    form = vq.Factored(vq.SVD(rank=4), vq.KM(k=16))
    small: Any = vq.compress(model, form, [x])
    assert small.one.first.codebooks is small.two.first.codebooks
    vq.save(small, tmp_path / "model.vq")
    assert torch.equal(vq.load(tmp_path / "model.vq", Twice())(x), small(x))
    with pytest.raises(ValueError, match="share one weight"):
        vq.compress(model, {"one": form, "two": vq.KM(k=4)})


def test_layers_that_pass_nothing_on() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(40, 32), nn.ReLU(), nn.Linear(32, 24))
    conv = nn.Sequential(nn.Conv2d(6, 12, 3), nn.ReLU(), nn.Conv2d(12, 8, 3))
    form = vq.Factored(vq.SVD(rate=2), vq.KM(k=16))
    for model, x in ((dense, torch.randn(16, 40)), (conv, torch.randn(4, 6, 9, 9))):
        zeros: Any = copy.deepcopy(model)
        nn.init.zeros_(zeros[0].weight)
        silent: Any = copy.deepcopy(model)
        nn.init.constant_(silent[0].bias, -100.0)
        for each, batch in ((model, torch.zeros_like(x)), (zeros, x), (silent, x)):
            small: Any = vq.compress(each, form, [batch])
            assert torch.allclose(small(batch), each(batch), atol=1e-6)


def test_a_bare_layer_half_precision_and_the_model_before() -> None:
    layer = nn.Linear(32, 24).half()
    before = copy.deepcopy(layer.state_dict())
    small = vq.compress(layer, FORM)
    assert isinstance(small, LowRank)
    assert small(torch.randn(2, 32).half()).dtype is torch.float16
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_the_same_bytes_on_any_number_of_threads() -> None:
    model, batches = dense()
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(vq.compress(model, FORM, batches).state_dict())
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_what_cannot_be() -> None:
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 12))
    for schemes, said in (
        ({"0": FORM}, "layer '0': svd.*Embedding has no factors"),
        ({"1": "svd(rank=13)+km(k=4)"}, "layer '1': rank 13 is above 12"),
        ({"1": "svd(rate=50)+km(k=4)"}, "layer '1': svd.rate=50. asks for less than rank 1.*None"),
    ):
        with pytest.raises(ValueError, match=said):
            vq.compress(model, schemes)
    with pytest.raises(ValueError, match=r"svd.rank=2. is of no scheme: add one, such as 'svd"):
        vq.compress(model, {"1": "svd(rank=2)"})
    with pytest.raises(ValueError, match=r"is of several layers.*vq.factorize"):
        vq.Factored(vq.Basis(d=3, shared=True), vq.KM())
    with pytest.raises(TypeError, match="expected a factor"):
        vq.Factored(vq.KM(), vq.KM())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a scheme"):
        vq.Factored(vq.SVD(rank=2), "km(k=4)")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"where a scheme is needed.*factorize the model first"):
        vq.select.select(model, {"1": FORM})  # type: ignore[dict-item]
