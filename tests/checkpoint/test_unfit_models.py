"""Models that a file does not fit, and models that no file can hold."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import vq_plugin as vq
from tests.checkpoint.models import Net, compressed
from vq_plugin.schemes import registry


def wrong_models() -> dict[str, tuple[Callable[[], nn.Module], str]]:
    def without_fc() -> nn.Module:
        model = Net()
        model.fc1 = model.fc
        del model.fc
        return model

    def replace(**layers: nn.Module) -> Callable[[], nn.Module]:
        def build() -> nn.Module:
            model = Net()
            for name, layer in layers.items():
                setattr(model, name, layer)
            return model

        return build

    return {
        "a layer lacks": (without_fc, r"no layer 'fc'; the nearest names are fc1"),
        "another shape": (replace(fc=nn.Linear(240, 11)), r"layer 'fc': .*\(11, 240\)"),
        "another kind": (replace(fc=nn.ReLU()), "layer 'fc' of the model is a ReLU"),
        "kernel of another shape": (replace(conv2=nn.Conv2d(1, 6, 2)), "layer 'conv2'"),
        "no bias": (replace(fc=nn.Linear(240, 10, bias=False)), r"does not fit.*fc\.bias"),
        "a bias too many": (replace(conv2=nn.Conv2d(1, 6, 3)), r"does not fit.*conv2\.bias"),
        "a norm lacks": (replace(norm=nn.Identity()), r"does not fit.*norm\."),
        "a layer too many": (replace(more=nn.Linear(2, 2)), r"does not fit.*more\.weight"),
        "another left layer": (replace(left=nn.Linear(10, 4)), r"does not fit.*left\."),
        "another dtype": (lambda: Net().half(), r"saved as float32.*\.to\(torch\.float32\)"),
        "another norm dtype": (
            replace(norm=nn.BatchNorm1d(8).double()),
            r"'norm\.\w+' was saved as torch\.float32",
        ),
        "compressed already": (lambda: compressed(), "CodebookEmbedding.*fresh float model"),
        "max_norm": (
            replace(embed=nn.Embedding(20, 12, max_norm=1.0)),
            "layer 'embed': .*max_norm",
        ),
    }


@pytest.mark.parametrize("name", wrong_models())
def test_a_model_that_does_not_fit_is_an_error_that_says_where(name: str, tmp_path: Path) -> None:
    vq.save(compressed(), tmp_path / "m.vq")
    build, message = wrong_models()[name]
    with pytest.raises(vq.CheckpointError, match=rf"(?s)m\.vq: .*{message}"):
        vq.load(tmp_path / "m.vq", build())


def test_a_lazy_model_is_an_error(tmp_path: Path) -> None:
    vq.save(vq.compress(nn.Sequential(nn.Linear(4, 4)), vq.KM()), tmp_path / "m.vq")
    with pytest.raises(vq.CheckpointError, match="layer '0'"):
        vq.load(tmp_path / "m.vq", nn.Sequential(nn.LazyLinear(4)))


def test_state_that_is_no_tensor_is_an_error(tmp_path: Path) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"step": 3}

        def set_extra_state(self, state: Any) -> None:
            pass

    small = vq.compress(nn.Sequential(nn.Linear(4, 4), Extra(4, 4)), {"0": vq.KM()})
    with pytest.raises(ValueError, match=r"'1\._extra_state' holds a dict"):
        vq.save(small, tmp_path / "m.vq")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_values_is_an_error_that_names_them(tmp_path: Path) -> None:
    small = vq.compress(nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4)), vq.KM())
    small[1].to("meta")
    with pytest.raises(ValueError, match=r"'1\.\S+' is on the meta device"):
        vq.save(small, tmp_path / "m.vq")
    assert not list(tmp_path.iterdir())


def test_a_tensor_that_the_format_cannot_hold_is_an_error_that_names_it(tmp_path: Path) -> None:
    small = vq.compress(nn.Sequential(nn.Linear(4, 4)), vq.KM())
    small.register_buffer("phases", torch.zeros(3, dtype=torch.complex128))
    with pytest.raises(ValueError, match="phases"):
        vq.save(small, tmp_path / "m.vq")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:The PyTorch API of nested")
@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: torch.eye(3).to_sparse(), "sparse_coo"),
        (lambda: torch.eye(3).to_sparse_csr(), "sparse_csr"),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
        (lambda: TwoTensor(torch.ones(3), torch.ones(3)), "TwoTensor of torch"),
    ],
    ids=["coordinates", "rows", "nested", "subclass"],
)
def test_a_tensor_of_another_kind_is_an_error_that_names_it(
    make: Callable[[], torch.Tensor], what: str, tmp_path: Path
) -> None:
    small = vq.compress(nn.Sequential(nn.Linear(4, 4)), vq.KM())
    value = make()
    small.register_buffer("neighbours", value)
    with pytest.raises(ValueError, match=rf"'neighbours' is .*{what}, which a file cannot keep"):
        vq.save(small, tmp_path / "m.vq")
    assert list(tmp_path.iterdir()) == []
    # What a state_dict leaves out is no obstacle.
    small.register_buffer("neighbours", value, persistent=False)
    vq.save(small, tmp_path / "m.vq")


def test_a_model_that_is_not_compressed_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no coded weight; compress it first"):
        vq.save(Net(), tmp_path / "m.vq")
    assert list(tmp_path.iterdir()) == []


def test_a_scheme_that_nobody_has_registered(tmp_path: Path, monkeypatch: Any) -> None:
    @vq.register_scheme()
    @dataclasses.dataclass(frozen=True, repr=False)
    class Passing(vq.KM):
        method = "passing"

    vq.save(vq.compress(nn.Linear(8, 8), Passing(k=4)), tmp_path / "m.vq")
    monkeypatch.delitem(registry.SCHEMES, "passing")
    with pytest.raises(vq.CheckpointError, match="'passing' is not registered: import the module"):
        vq.load(tmp_path / "m.vq", nn.Linear(8, 8))
