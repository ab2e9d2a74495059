"""Files of factorized models, and what strangers may write into their headers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import vq_plugin as vq
from tests.checkpoint.forging import contents, sealed
from vq_plugin.factorize import KernelBasis, LowRank


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc, self.head = nn.Linear(128, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        output: Tensor = self.head(self.fc(x.flatten(1)).relu())
        return output


X = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0))
FACTORS: Any = {"re:[ab]": vq.Basis(4, shared=True), "fc": vq.SVD(rate=3)}


@pytest.fixture
def small() -> nn.Module:
    torch.manual_seed(0)
    return vq.compress(vq.factorize(Net(), FACTORS), {"*": vq.KM(8), "re:fc.*": vq.PQ(k=4, dim=2)})


@pytest.fixture
def file(tmp_path: Path, small: nn.Module) -> Path:
    vq.save(small, tmp_path / "small.vq")
    return tmp_path / "small.vq"


def test_a_fresh_model_is_factorized_again(file: Path, small: nn.Module) -> None:
    model = Net().eval()
    again: Any = vq.load(file, model)
    assert torch.equal(again(X), small(X))
    assert isinstance(again.a, KernelBasis)
    assert isinstance(again.fc, LowRank)
    assert again.a.coefficients.codebooks is again.b.coefficients.codebooks
    assert isinstance(model.fc, nn.Linear)
    assert not any(module.training for module in again.modules())
    factors = [str(getattr(layer, "factor", None)) for layer in again.children()]
    assert factors == ["basis(d=4,shared=true)", "basis(d=4,shared=true)", "svd(rank=14)", "None"]


def test_equal_models_give_equal_files(file: Path, tmp_path: Path) -> None:
    vq.save(vq.load(file, Net()), tmp_path / "again.vq")
    assert (tmp_path / "again.vq").read_bytes() == file.read_bytes()


def test_into_a_model_that_is_factorized(file: Path, small: nn.Module) -> None:
    again = vq.load(file, vq.factorize(Net(), FACTORS))
    assert torch.equal(again(X), small(X))
    with pytest.raises(vq.CheckpointError, match=r"'fc' is svd\(rank=14\) in the file and svd"):
        vq.load(file, vq.factorize(Net(), {"fc": vq.SVD(rank=4)}))


def test_factors_that_stay_float_are_tied_again(tmp_path: Path) -> None:
    small = vq.compress(vq.factorize(Net(), FACTORS), {"head": vq.KM(4)})
    vq.save(small, tmp_path / "small.vq")
    again: Any = vq.load(tmp_path / "small.vq", Net())
    assert again.a.coefficients.weight is again.b.coefficients.weight
    assert torch.equal(again(X), small(X))


def test_parts_and_bare_layers(file: Path, small: Any, tmp_path: Path) -> None:
    layer: Any = vq.load(file, Net().fc, part="fc")
    assert torch.equal(layer.weight, small.fc.weight)
    first = vq.load(file, nn.Linear(128, 14, bias=False), part="fc.first")
    assert torch.equal(first.weight, small.fc.first.weight)  # type: ignore[arg-type]
    vq.save(small.b, tmp_path / "bare.vq")
    bare = vq.load(tmp_path / "bare.vq", Net().b)
    assert torch.equal(bare.weight, small.b.weight)  # type: ignore[arg-type]


def test_readers_know_the_two_layers(file: Path, small: Any) -> None:
    opened = vq.open_file(file)
    first, second = (opened.layers[f"fc.{part}"].decode() for part in ("first", "second"))
    assert torch.equal(second @ first, small.fc.weight)


def test_other_files_say_nothing_of_factors(tmp_path: Path) -> None:
    vq.save(vq.compress(Net(), vq.KM(8)), tmp_path / "plain.vq")
    header, _ = contents(tmp_path / "plain.vq")
    assert list(header) == ["format", "layers", "aliases", "tensors", "checksum"]


def test_readable_layout(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2000, 2000))
    vq.save(vq.compress(vq.factorize(model, vq.SVD(rank=450)), vq.KM(256)), tmp_path / "large.vq")
    with safe_open(tmp_path / "large.vq", "pt") as file:
        header = json.loads(file.metadata()["vq_plugin"])
    assert list(header) == ["format", "layers", "aliases", "factors", "tensors", "checksum"]
    assert header["factors"] == {"0": "svd(rank=450)"}
    assert isinstance(
        vq.load(tmp_path / "large.vq", nn.Sequential(nn.Linear(2000, 2000)))[0], LowRank
    )  # type: ignore[index]


@pytest.mark.parametrize(
    ("factors", "text"),
    [
        ({"fc": "svd(rank=1000000000000)"}, "layer 'fc': rank 1000000000000 is above 64"),
        ({"fc": f"svd(rank={'9' * 900})"}, "is above 64"),
        ({"a": "basis(d=99)"}, "layer 'a': d=99 is above 9"),
        ({"fc": "svd(rate=2)"}, r"layer 'fc': svd\(rate=2\) has no rank"),
        ({"fc": "svd(rank=14,split=spatial)"}, "layer 'fc': split='spatial' needs"),
        ({"fc": "basis(d=4)"}, "layer 'fc': this Linear has no kernels"),
        ({"fc": "tucker(rank=3)"}, "layer 'fc': factor 'tucker' is unknown"),
        ({"fc": "__import__('os')"}, "layer 'fc': factor .* needs the form"),
        ({"fc": "x" * 2000}, "the header is damaged"),
        ({"fc": ""}, "the header is damaged"),
        ({"fc": "svd(rank=14)\n"}, "the header is damaged"),
        ({"fc": 3}, "the header is damaged"),
        ({}, "the header is damaged"),
        ([], "the header is damaged"),
        ({"fcc": "svd(rank=14)"}, "the model has no layer 'fcc'; the nearest names are fc"),
        ({"": "svd(rank=14)"}, "is a Net, which has no slot"),
        ({"fc": "svd(rank=13)"}, "layer 'fc.first': it was saved with a weight of shape"),
        ({"fc": "svd(rank=14)", "head": "svd(rank=2)"}, "layer 'head' of the model is a LowRank"),
    ],
)
def test_forged_factors(file: Path, factors: Any, text: str) -> None:
    header, tensors = contents(file)
    if isinstance(factors, dict) and factors:
        factors = {**header["factors"], **factors}
    header["factors"] = factors
    file.write_bytes(sealed(header, tensors))
    with pytest.raises(vq.CheckpointError, match=text):
        vq.load(file, Net())


def test_forged_ties(file: Path) -> None:
    header, tensors = contents(file)
    tensors.pop("b.basis.codes"), tensors.pop("b.basis.codebooks")
    header["layers"].pop("b.basis")
    header["aliases"]["b.basis"] = "a.coefficients"
    file.write_bytes(sealed(header, tensors))
    with pytest.raises(vq.CheckpointError, match=r"layer 'b.basis': it was saved with a weight"):
        vq.load(file, Net())
