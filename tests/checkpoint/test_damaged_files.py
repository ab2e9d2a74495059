"""Damaged, forged and foreign files: a ``CheckpointError``, and nothing in them is run."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import vq_plugin as vq
from tests.checkpoint.models import assert_same_state
from vq_plugin.checkpoint import read_header


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A file with a little of everything, short enough to damage at every byte."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 5, bias=False))
    schemes = {"0": vq.KM(k=3, group=2), "2": vq.PQ(k=4, dim=4, scale="row")}
    small = vq.compress(model, schemes).eval()
    path = tmp_path_factory.mktemp("files") / "m.vq"
    vq.save(small, path)
    return path, small


def float_model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 5, bias=False)).eval()


def assert_refused_or_identical(path: Path, data: bytes, small: nn.Module, what: str) -> None:
    damaged = path.with_suffix(".damaged")
    damaged.write_bytes(data)
    try:
        again = vq.load(damaged, float_model())
    except vq.CheckpointError:
        return
    x = torch.arange(12.0).reshape(2, 6)
    assert torch.equal(again(x), small(x)), what
    assert_same_state(again, small)


def test_a_truncated_file_is_refused(small_file: tuple[Path, nn.Module]) -> None:
    path, _ = small_file
    data = path.read_bytes()
    cut = path.with_suffix(".cut")
    for length in range(0, len(data), 3):
        cut.write_bytes(data[:length])
        with pytest.raises(vq.CheckpointError, match=r"m\.cut"):
            vq.load(cut, float_model())
    cut.write_bytes(data + b"\0")
    with pytest.raises(vq.CheckpointError, match=r"m\.cut"):
        vq.load(cut, float_model())


def test_no_single_damaged_byte_goes_unnoticed(small_file: tuple[Path, nn.Module]) -> None:
    path, small = small_file
    data = path.read_bytes()
    for position, old in enumerate(data):
        # A flipped bit; and in the header, letters and digits that still parse.
        others = {old ^ 1, old ^ 0x40, *(b"0123456789IUFB" if chr(old).isalnum() else b"")}
        for new in others - {old}:
            changed = data[:position] + bytes([new]) + data[position + 1 :]
            around = data[max(0, position - 25) : position + 10]
            what = f"byte {position}: {old:#x} -> {new:#x} in {around!r}"
            assert_refused_or_identical(path, changed, small, what)


@settings(max_examples=300)
@given(data=st.data())
def test_damage_of_any_kind_is_refused(
    small_file: tuple[Path, nn.Module], data: st.DataObject
) -> None:
    path, small = small_file
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content) - 1))
        end = min(len(content), start + data.draw(st.integers(0, 8)))
        content[start:end] = data.draw(st.binary(max_size=8))
    if bytes(content) != path.read_bytes():
        assert_refused_or_identical(path, bytes(content), small, "mutation")


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(small_file: tuple[Path, nn.Module], data: bytes) -> None:
    path = small_file[0].with_suffix(".noise")
    path.write_bytes(data)
    with pytest.raises(vq.CheckpointError, match=r"m\.noise"):
        vq.load(path, float_model())


Edit = Callable[[dict[str, Any], dict[str, Tensor]], None]


def rewritten(source: Path, target: Path, edit: Edit) -> Path:
    """A well-formed file whose header and tensors were edited."""
    with safe_open(source, "pt") as file:
        header = json.loads(file.metadata()["vq_plugin"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    edit(header, tensors)
    save_file(tensors, target, {"vq_plugin": json.dumps(header)})
    return target


def edits() -> dict[str, Edit]:
    def set_layer(name: str, field: str, value: Any) -> Edit:
        return lambda header, _: header["layers"][name].__setitem__(field, value)

    return {
        "no layers": lambda h, _: h.pop("layers"),
        "layers is a list": lambda h, _: h.update(layers=[]),
        "a layer is a number": lambda h, _: h["layers"].update({"0": 3}),
        "an unknown field": lambda h, _: h.update(extra=1),
        "format is a word": lambda h, _: h.update(format="one"),
        "format is infinite": lambda h, _: h.update(format=float("inf")),
        "format is zero": lambda h, _: h.update(format=0),
        "format is null": lambda h, _: h.update(format=None),
        "checksums is a list": lambda h, _: h.update(checksums=[]),
        "checksums is null": lambda h, _: h.update(checksums=None),
        "aliases is a list": lambda h, _: h.update(aliases=["0.bias"]),
        "an alias to nowhere": lambda h, _: h["aliases"].update({"0.bias": "gone"}),
        "an alias that is a list": lambda h, _: h["aliases"].update({"0.bias": ["gone"]}),
        "codes alias to a float layer": lambda h, _: h["aliases"].update({"0.codes": "1.weight"}),
        "a missing tensor": lambda _, t: t.pop("0.codes"),
        "a changed tensor": lambda _, t: t["1.weight"].add_(1),
        "an added tensor": lambda _, t: t.update(new=torch.zeros(3)),
        "an unknown scheme": set_layer("0", "scheme", "zip(k=3)"),
        "a scheme that is a number": set_layer("0", "scheme", 3),
        "another group": set_layer("0", "scheme", "km(k=3,group=3)"),
        "another axis": set_layer("2", "scheme", "pq(k=4,dim=4,axis=out,scale=row)"),
        "a huge k": set_layer("0", "k", 1 << 62),
        "a negative k": set_layer("0", "k", -3),
        "k is a word": set_layer("0", "k", "three"),
        "k is a float": set_layer("0", "k", 3.0),
        "codes of two dimensions": set_layer("0", "codes", [6, 6]),
        "codes transposed": set_layer("2", "codes", [1, 2, 5]),
        "codes too many": set_layer("0", "codes", [1, 6, 1 << 40]),
        "negative codes": set_layer("0", "codes", [-1, -6, 6]),
        "codes of null": set_layer("0", "codes", None),
        "another shape": set_layer("0", "shape", [6, 5]),
        "shape is a number": set_layer("0", "shape", 36),
        "an unknown dtype": set_layer("0", "dtype", "float128"),
    }


@pytest.mark.parametrize("name", edits())
def test_a_forged_header_is_refused(
    name: str, small_file: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    path = rewritten(small_file[0], tmp_path / "forged.vq", edits()[name])
    with pytest.raises(vq.CheckpointError, match=r"forged\.vq"):
        vq.load(path, float_model())


def test_a_header_of_many_brackets_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "m.vq", {"vq_plugin": "[" * 100_000})
    with pytest.raises(vq.CheckpointError, match=r"m\.vq: the header is damaged"):
        vq.load(tmp_path / "m.vq", float_model())


def test_a_newer_format_says_what_to_do(small_file: tuple[Path, nn.Module], tmp_path: Path) -> None:
    def newer(header: dict[str, Any], _: dict[str, Tensor]) -> None:
        header.update(format=99, unheard_of={"x": 1}, layers="otherwise")

    path = rewritten(small_file[0], tmp_path / "m.vq", newer)
    with pytest.raises(vq.CheckpointError, match=r"format 99 is newer .*upgrade"):
        vq.load(path, float_model())


def test_a_plain_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file(float_model().state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(vq.CheckpointError, match="not one that vq_plugin wrote"):
        vq.load(tmp_path / "m.safetensors", float_model())


class Trap:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("write", ["pickle", "torch.save", "torch.save legacy"])
def test_a_pickle_is_refused_and_never_run(write: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "m.vq", tmp_path / "executed"
    if write == "pickle":
        path.write_bytes(pickle.dumps(Trap(marker)))
    else:
        torch.save(Trap(marker), path, _use_new_zipfile_serialization=write == "torch.save")
    with pytest.raises(vq.CheckpointError):
        vq.load(path, float_model())
    with pytest.raises(vq.CheckpointError):
        read_header(path)
    assert not marker.exists()


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        vq.load(tmp_path / "gone.vq", float_model())
    with pytest.raises(OSError, match=r"folder|directory|device|Is a"):
        vq.load(tmp_path, float_model())
