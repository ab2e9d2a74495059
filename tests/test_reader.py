"""Files without a model: the weights that the model has, with torch and without."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import vq_plugin as vq
from tests.checkpoint.coded_models import (
    Int8Model,
    Model,
    Various,
    compressed,
    compressed_int8,
)
from tests.checkpoint.forging import contents, sealed
from tests.checkpoint.models import compressed as compressed_net
from tests.checkpoint.test_file import SCHEMES
from vq_plugin import reader
from vq_plugin.cli import main


def weights_of(model: nn.Module, names: list[str]) -> dict[str, torch.Tensor]:
    return {name: model.get_submodule(name).weight.detach() for name in names}  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_decoded_weights_are_those_of_the_model(scheme: vq.Scheme, tmp_path: Path) -> None:
    small = compressed_net(scheme)
    vq.save(small, tmp_path / "m.vq")
    ours, theirs = vq.open_file(tmp_path / "m.vq"), reader.open_file(tmp_path / "m.vq")
    rows = [row.name for row in vq.summary(small).rows]
    assert list(ours.layers) == list(theirs.layers) == rows
    for name, weight in weights_of(small, rows).items():
        layer, other = ours.layers[name], theirs.layers[name]
        assert layer.scheme == other.scheme == str(scheme)
        assert layer.shape == other.shape == tuple(weight.shape)
        assert torch.equal(layer.codes, small.get_submodule(name).codes)
        assert np.array_equal(other.codes, layer.codes.numpy())
        assert torch.equal(layer.decode(), weight)
        decoded = other.decode()
        assert decoded.dtype == np.float32
        assert decoded.flags.c_contiguous
        assert np.array_equal(decoded, weight.numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_decoded_weights_have_the_dtype_of_the_model(dtype: torch.dtype, tmp_path: Path) -> None:
    scheme = vq.RQ(k=4, stages=3, dim=4, axis="out", codebooks="tensor", scale="row")
    small = compressed_net(scheme).to(dtype)
    vq.save(small, tmp_path / "m.vq")
    ours, theirs = vq.open_file(tmp_path / "m.vq"), reader.open_file(tmp_path / "m.vq")
    for name, weight in weights_of(small, list(ours.layers)).items():
        assert ours.layers[name].dtype == str(dtype).removeprefix("torch.")
        assert torch.equal(ours.layers[name].decode(), weight)
        decoded = torch.from_numpy(theirs.layers[name].decode())
        if dtype is torch.bfloat16:  # numpy has none: sums are not rounded to it
            assert decoded.dtype == torch.float32
            assert torch.allclose(decoded, weight.float(), rtol=0, atol=0.05)
        else:
            assert torch.equal(decoded, weight)


def test_all_else_is_there_by_the_names_of_the_state_dict(tmp_path: Path) -> None:
    small = compressed()
    vq.save(small, tmp_path / "m.vq", rest="float16")
    ours, theirs = vq.open_file(tmp_path / "m.vq"), reader.open_file(tmp_path / "m.vq")
    assert ours.metadata == theirs.metadata == {"format": 1, "aliases": {"tied": "row"}}
    assert torch.equal(ours.layers["tied"].decode(), ours.layers["row"].decode())
    expected = {
        key: value
        for key, value in small.state_dict().items()
        if key.rpartition(".")[2] not in ("codes", "codebooks", "scale")
    }
    assert expected.keys() == ours.tensors.keys() == theirs.tensors.keys()
    for key, value in expected.items():
        rounded = value.half().float() if value.is_floating_point() else value
        assert ours.tensors[key].dtype == value.dtype
        assert torch.equal(ours.tensors[key], rounded)
        assert np.array_equal(theirs.tensors[key], rounded.numpy())


def test_a_scheme_that_nobody_knows_is_decoded_but_not_loaded(tmp_path: Path) -> None:
    for build, small in ((Model, compressed()), (Int8Model, compressed_int8())):
        vq.save(small, tmp_path / "m.vq")
        header, tensors = contents(tmp_path / "m.vq")
        for entry in header["layers"].values():
            entry["scheme"] = "lattice(order=8)"
        (tmp_path / "m.vq").write_bytes(sealed(header, tensors))
        layers = vq.open_file(tmp_path / "m.vq").layers
        for name, weight in weights_of(small, list(layers)).items():
            assert layers[name].scheme == "lattice(order=8)"
            assert torch.equal(layers[name].decode(), weight)
        with pytest.raises(vq.CheckpointError, match="lattice"):
            vq.load(tmp_path / "m.vq", build())


@pytest.mark.parametrize("isa", ["", "none"])
def test_neither_torch_nor_safetensors_is_needed(isa: str, tmp_path: Path) -> None:
    small = compressed()
    vq.save(small, tmp_path / "m.vq")
    np.savez(tmp_path / "m.npz", **{n: w.numpy() for n, w in weights_of(small, ["tied"]).items()})
    program = """
import sys
for name in ("torch", "safetensors", "pydantic"):
    sys.modules[name] = None
import numpy as np
from vq_plugin.reader import open_file
file = open_file(sys.argv[1])
assert np.array_equal(file.layers["tied"].decode(), np.load(sys.argv[2])["tied"])
for layer in file.layers.values():
    layer.decode()
assert file.tensors["norm.bias"].shape == (8,)
import vq_plugin as vq
try:
    vq.compress
except AttributeError as error:
    print(error)
"""
    environment = {key: value for key, value in os.environ.items() if key != "VQ_PLUGIN_ISA"}
    if isa:
        environment["VQ_PLUGIN_ISA"] = isa
    arguments = [sys.executable, "-c", program, tmp_path / "m.vq", tmp_path / "m.npz"]
    run = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    assert run.returncode == 0, run.stderr
    assert "vq_plugin.compress needs torch" in run.stdout


def test_one_copied_file_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = tmp_path / "elsewhere"
    there.mkdir()
    small = compressed()
    vq.save(small, there / "m.vq")
    for name in ("vq_reader.zip", "again.zip"):
        assert main(["reader", str(there / name)]) == 0
    assert (there / "vq_reader.zip").read_bytes() == (there / "again.zip").read_bytes()
    steps = capsys.readouterr().out.splitlines()[1:3]
    program = "\n".join(
        [
            *(line.strip() for line in steps),
            "import vq_plugin.reader",
            "assert 'vq_reader.zip' in vq_plugin.reader.__file__",
            "for name, layer in open_file('m.vq').layers.items():",
            "    print(name, layer.decode().sum(dtype='float64'))",
            "assert not {'torch', 'safetensors', 'pydantic'} & set(sys.modules)",
        ]
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=there, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    layers = reader.open_file(there / "m.vq").layers
    expected = [f"{name} {layer.decode().sum(dtype='float64')}" for name, layer in layers.items()]
    assert run.stdout.splitlines() == expected


def test_only_what_is_asked_for_is_read_and_checked(tmp_path: Path) -> None:
    vq.save(compressed(), tmp_path / "m.vq")
    header, tensors = contents(tmp_path / "m.vq")
    content = bytearray(sealed(header, tensors, "readable"))
    for name in ("layer.codes", "packed.bias"):
        content[content.index(tensors[name].numpy().tobytes())] ^= 1
    (tmp_path / "m.vq").write_bytes(content)
    file = reader.open_file(tmp_path / "m.vq")
    file.layers["row"].decode()
    assert file.layers["layer"].shape == (32, 16, 3, 3)
    with pytest.raises(reader.CheckpointError, match=r"m\.vq: tensor 'layer\.codes' is damaged"):
        file.layers["layer"].decode()
    with pytest.raises(reader.CheckpointError, match=r"m\.vq: tensor 'packed\.bias' is damaged"):
        file.tensors["packed.bias"]


def test_a_few_bytes_do_not_become_a_huge_weight(tmp_path: Path) -> None:
    vq.save(vq.compress(nn.Sequential(nn.Linear(64, 64)), vq.KM(k=2)), tmp_path / "m.vq")
    header, tensors = contents(tmp_path / "m.vq")
    side = 1 << 30
    header["layers"]["0"].update(
        shape=[side, side], codes=[1, side, side], coding={"along": "layer", "bits": 4}
    )
    tensors["0.codes"] = torch.ones(1, dtype=torch.uint8)
    (tmp_path / "m.vq").write_bytes(sealed(header, tensors))
    layer = reader.open_file(tmp_path / "m.vq").layers["0"]
    with pytest.raises(vq.CheckpointError, match=r"m\.vq: layer '0': \d+ weights in a file of"):
        layer.decode()


def test_what_numpy_has_not_says_who_has_it(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    small = vq.compress(model, {"0": vq.KM(k=4)})
    small.register_buffer("half_range", torch.tensor([0.5, 3.0]).bfloat16())
    small.register_buffer("eighth", torch.tensor([0.5, 3.0]).to(torch.float8_e5m2))
    vq.save(small, tmp_path / "m.vq")
    tensors = reader.open_file(tmp_path / "m.vq").tensors
    assert tensors["half_range"].dtype == np.float32
    assert tensors["half_range"].tolist() == [0.5, 3.0]
    with pytest.raises(ValueError, match=r"numpy has no float8_e5m2; vq_plugin\.open_file"):
        tensors["eighth"]
    assert vq.open_file(tmp_path / "m.vq").tensors["eighth"].float().tolist() == [0.5, 3.0]


@pytest.mark.parametrize(
    "scheme", [vq.KM(k=8), vq.PQ(k=8, dim=3), vq.PQ(k=8, dim=3, axis="out", scale="row")], ids=str
)
def test_weights_of_any_layer_are_decoded_as_their_parameters(
    scheme: vq.Scheme, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    small = vq.compress(Various(), scheme)
    vq.save(small, tmp_path / "m.vq")
    ours, theirs = vq.open_file(tmp_path / "m.vq"), reader.open_file(tmp_path / "m.vq")
    modules = dict(small.named_modules())
    assert len(ours.layers) == 8 + 1 + 2 + 1 + 1
    for name, layer in ours.layers.items():
        module, _, leaf = name.rpartition(".")
        weight = modules[name].weight if name in modules else getattr(modules[module], leaf)
        assert torch.equal(layer.decode(), weight), name
        assert np.array_equal(theirs.layers[name].decode(), weight.detach().numpy()), name
