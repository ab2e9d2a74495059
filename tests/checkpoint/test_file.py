"""Files: bit for bit what was saved."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import vq_plugin as vq
from tests.checkpoint.forging import contents
from tests.checkpoint.models import INDEX, Net, assert_same_state, compressed
from vq_plugin.checkpoint import read_header

SCHEMES: list[vq.Scheme] = [
    vq.KM(k=5),
    vq.KM(k=4, group=3),
    vq.KM(k=3, scale="row", codebook_dtype="bfloat16", keep_zeros=True),
    vq.PQ(k=6, dim=4),
    vq.PQ(k=6, dim=5, axis="out", scale="row"),
    vq.PQ(k=9, dim=3, codebooks="tensor", codebook_dtype="float32"),
    vq.RQ(k=3, stages=2),
    vq.RQ(k=4, stages=3, dim=4, axis="out", codebooks="tensor"),
    vq.KM(k=5, keep_zeros=True, codebook_dtype="int8"),
    vq.PQ(k=6, dim=5, axis="out", scale="row", codebook_dtype="int8"),
    vq.RQ(k=4, stages=2, dim=4, codebook_dtype="int8"),
    vq.Binary(),
    vq.Binary(scale="row"),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_a_loaded_model_is_the_saved_one(scheme: vq.Scheme, training: bool, tmp_path: Path) -> None:
    small = compressed(scheme)
    small(INDEX)  # running statistics move
    small.eval()
    size = vq.save(small, tmp_path / "m.vq")
    assert size == (tmp_path / "m.vq").stat().st_size
    fresh = Net().train(training)
    before = {key: value.clone() for key, value in fresh.state_dict().items()}
    again = vq.load(tmp_path / "m.vq", fresh)
    assert all(module.training == training for module in again.modules())
    assert_same_state(small, again)
    again.eval()
    assert torch.equal(again(INDEX), small(INDEX))
    assert again.fc.scheme == scheme
    assert str(vq.summary(again)) == str(vq.summary(small))
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_trained_model_computes_the_same_after_loading(scheme: vq.Scheme, tmp_path: Path) -> None:
    small = compressed(scheme)
    optimizer = torch.optim.Adam(small.parameters(), 1e-2)
    for _ in range(3):
        optimizer.zero_grad()
        small(INDEX).square().sum().backward()
        optimizer.step()
    small.eval()
    expected = small(INDEX)
    vq.save(small, tmp_path / "m.vq")
    again = vq.load(tmp_path / "m.vq", Net().eval())
    assert torch.equal(again(INDEX), expected)
    # Saving changed nothing, and a second generation is the first.
    assert torch.equal(small(INDEX), expected)
    vq.save(again, tmp_path / "again.vq")
    assert (tmp_path / "again.vq").read_bytes() == (tmp_path / "m.vq").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scheme", [SCHEMES[2], SCHEMES[4], SCHEMES[5], SCHEMES[9]], ids=str)
def test_other_dtypes_round_trip(dtype: torch.dtype, scheme: vq.Scheme, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for small in (vq.compress(Net().to(dtype), scheme), vq.compress(Net(), scheme).to(dtype)):
        small.eval()
        vq.save(small, tmp_path / "m.vq")
        again = vq.load(tmp_path / "m.vq", Net().to(dtype).eval())
        assert torch.equal(again(INDEX), small(INDEX))


def test_three_bit_codes_take_three_bits_in_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = vq.compress(nn.Linear(512, 512, bias=False), vq.KM(k=8))
    size = vq.save(small, tmp_path / "m.vq")
    codes = 512 * 512 * 3 // 8
    assert codes < size < codes + 1000
    _, nbytes = read_header(tmp_path / "m.vq")
    assert nbytes == {"codes": codes, "codebooks": 16}


def test_int8_codebooks_take_half_the_bytes_and_one_for_each(tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = vq.compress(nn.Linear(64, 32, bias=False), vq.PQ(codebook_dtype="int8"))
    vq.save(small, tmp_path / "m.vq")
    _, nbytes = read_header(tmp_path / "m.vq")
    assert nbytes == {"codes": 256, "codebooks": 16 * 16 * 4, "exponents": 16}
    # The centers, read by hand.
    _, tensors = contents(tmp_path / "m.vq")
    exponents = tensors["exponents"].numpy().astype(float)[..., None, None]
    centers = tensors["codebooks"].numpy() * 2**exponents
    weight = np.concatenate(
        [centers[0, 0, s, small.codes[0, :, s].numpy()] for s in range(16)], axis=1
    )
    assert np.array_equal(weight, small.weight.detach().numpy())


def test_int8_codebooks_that_training_has_broken_are_not_saved(tmp_path: Path) -> None:
    small = vq.compress(nn.Sequential(nn.Linear(8, 8)), vq.PQ(k=4, codebook_dtype="int8"))
    small[0].codebooks.data[0, 0, 0, 0, 0] = torch.nan  # type: ignore[index, union-attr, operator]
    with pytest.raises(ValueError, match="layer '0': a center is NaN"):
        vq.save(small, tmp_path / "m.vq")
    assert not (tmp_path / "m.vq").exists()


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_nbytes_are_the_bytes_in_the_file_or_more_where_codes_are_coded(
    scheme: vq.Scheme, tmp_path: Path
) -> None:
    small = compressed(scheme)
    vq.save(small, tmp_path / "m.vq")
    header, nbytes = read_header(tmp_path / "m.vq")
    for row in vq.summary(small).rows:
        leaves = (f"{row.name}.{leaf}" for leaf in ("codes", "codebooks", "exponents", "scale"))
        stored = sum(nbytes.get(leaf, 0) for leaf in leaves)
        assert stored < row.nbytes if header.layers[row.name].coding else stored == row.nbytes
    assert sum(nbytes.values()) <= vq.summary(small).nbytes + vq.summary(small).other_nbytes


def test_saving_again_gives_the_same_bytes(tmp_path: Path) -> None:
    small = compressed()
    for name in ("a", "b"):
        vq.save(small, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_fresh_process_gives_the_same_bytes(tmp_path: Path) -> None:
    script = """
import sys, torch, vq_plugin as vq
from torch import nn
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(288, 10))
small = vq.compress(model, {"0": vq.KM(), "*": vq.PQ()}, [torch.randn(4, 3, 8, 8)])
vq.save(small, sys.argv[1])
"""
    digests = set()
    for i, seed in enumerate(("0", "1")):
        path = tmp_path / str(i)
        subprocess.run(
            [sys.executable, "-c", script, str(path)],
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        )
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_bare_layer_round_trips(tmp_path: Path) -> None:
    small = vq.compress(nn.Linear(8, 4), vq.PQ(k=4))
    vq.save(small, tmp_path / "m.vq")
    assert_same_state(vq.load(tmp_path / "m.vq", nn.Linear(8, 4)), small)


def test_an_existing_file_is_replaced_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.vq"
    vq.save(compressed(seed=0), path)
    first = path.read_bytes()
    # What another process sees at the moment of the replacement: the old file, whole.
    seen: list[bytes] = []

    def disk_full(*_: Any) -> None:
        seen.append(path.read_bytes())
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", disk_full)
        with pytest.raises(OSError, match="no space"):
            vq.save(compressed(seed=1), path)
    assert seen == [first]
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]
    vq.save(compressed(seed=1), path)
    assert path.read_bytes() != first
    assert list(tmp_path.iterdir()) == [path]


def test_parameters_that_share_memory_and_ties_outside_the_codebooks_survive(
    tmp_path: Path,
) -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), MyTied(), MyTied())
        model[2].shift = model[1].shift
        model[1].register_buffer("part", model[1].whole[:2])
        return model

    small = vq.compress(build(), {"0": vq.KM()})
    with torch.no_grad():
        small[1].shift.fill_(7)  # type: ignore[index]
    vq.save(small, tmp_path / "m.vq")
    again = vq.load(tmp_path / "m.vq", build())
    assert_same_state(small, again)
    assert again[2].shift is again[1].shift  # type: ignore[index]


class MyTied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(4))
        self.register_buffer("whole", torch.arange(4.0))
        self.register_buffer("nothing", torch.zeros(0))
        self.register_buffer("scalar", torch.tensor(2.5, dtype=torch.float64))
