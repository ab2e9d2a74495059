"""Damaged, forged and foreign files: a ``CheckpointError``, and nothing in them is run."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

import vq_plugin as vq
from tests.checkpoint.forging import LAYOUTS, contents, dense, sealed, unpacked, with_checksum
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


Edit = Callable[[dict[str, Any]], object]


def forged(source: Path, target: Path, edit: Edit, layout: str = "dense") -> Path:
    """A file whose header was edited, with the checksum of what it is now."""
    header, body = unpacked(source.read_bytes())
    edit(header)
    target.write_bytes(LAYOUTS[layout](header, body))
    return target


def edits() -> dict[str, Edit]:
    def set_layer(name: str, field: str, value: Any) -> Edit:
        return lambda header: header["layers"][name].__setitem__(field, value)

    def set_tensor(name: str, place: int, value: Any) -> Edit:
        return lambda header: header["tensors"][name].__setitem__(place, value)

    return {
        "no layers": lambda h: h.pop("layers"),
        "layers is a list": lambda h: h.update(layers=[]),
        "a layer is a number": lambda h: h["layers"].update({"0": 3}),
        "a layer without tensors": lambda h: h["layers"].update({"1": h["layers"]["0"]}),
        "an unknown field": lambda h: h.update(extra=1),
        "an unknown field of a layer": set_layer("0", "extra", 1),
        "format is a word": lambda h: h.update(format="one"),
        "format is infinite": lambda h: h.update(format=float("inf")),
        "format is zero": lambda h: h.update(format=0),
        "format is true": lambda h: h.update(format=True),
        "format is null": lambda h: h.update(format=None),
        "tensors is a list": lambda h: h.update(tensors=[]),
        "tensors is null": lambda h: h.update(tensors=None),
        "a tensor is a number": lambda h: h["tensors"].update({"0.bias": 3}),
        "a tensor that is missing": lambda h: h["tensors"].pop("0.codes"),
        "a tensor that is too many": lambda h: h["tensors"].update(new=["int8", [0], 0]),
        "a tensor of no dtype": set_tensor("0.bias", 0, "float31"),
        "a tensor of another dtype": set_tensor("0.bias", 0, "int32"),
        "a tensor of another size": set_tensor("0.bias", 1, [7]),
        "a tensor of a negative size": set_tensor("0.bias", 1, [-6]),
        "a tensor of another checksum": set_tensor("0.bias", 2, 1),
        "a tensor that was never rounded": lambda h: h["tensors"]["0.bias"].append("float64"),
        "aliases is a list": lambda h: h.update(aliases=["0.bias"]),
        "an alias to nowhere": lambda h: h["aliases"].update({"0.bias": "gone"}),
        "an alias that is a list": lambda h: h["aliases"].update({"0.bias": ["gone"]}),
        "codes alias to a float layer": lambda h: h["aliases"].update({"0.codes": "1.weight"}),
        "a tie of other layers": lambda h: h["aliases"].update({"2": "0"}),
        "an unknown scheme": set_layer("0", "scheme", "zip(k=3)"),
        "a scheme that is a number": set_layer("0", "scheme", 3),
        "another group in the scheme": set_layer("0", "scheme", "km(k=3,group=3)"),
        "another axis in the scheme": set_layer("2", "scheme", "pq(k=4,dim=4,axis=out,scale=row)"),
        "other codebooks in the scheme": set_layer(
            "2", "scheme", "pq(k=4,dim=4,codebook_dtype=float32,scale=row)"
        ),
        "another axis": set_layer("2", "axis", "out"),
        "no axis": set_layer("2", "axis", "up"),
        "another group": set_layer("0", "group", 3),
        "a group of none": set_layer("0", "group", 0),
        "a negative group": set_layer("0", "group", -2),
        "no group": set_layer("0", "group", None),
        "codes of two dimensions": set_layer("0", "codes", [6, 6]),
        "codes transposed": set_layer("2", "codes", [1, 2, 5]),
        "codes too many": set_layer("0", "codes", [1, 6, 1 << 40]),
        "negative codes": set_layer("0", "codes", [-1, -6, 6]),
        "codes of null": set_layer("0", "codes", None),
        "another shape": set_layer("0", "shape", [6, 5]),
        "shape is a number": set_layer("0", "shape", 36),
        "no shape": set_layer("0", "shape", []),
        "an unknown dtype": set_layer("0", "dtype", "float128"),
        "another dtype": set_layer("0", "dtype", "float16"),
        "coded though it is packed": set_layer("0", "coding", {"along": "layer", "bits": 4}),
        "coded in an unknown way": set_layer("0", "coding", {"along": "column", "bits": 4}),
        "coded by lists": set_layer("0", "coding", {"along": ["layer"], "bits": 4}),
        "coding is a number": set_layer("0", "coding", 3),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", edits())
def test_a_forged_header_is_refused(
    name: str, layout: str, small_file: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    path = forged(small_file[0], tmp_path / "forged.vq", edits()[name], layout)
    with pytest.raises(vq.CheckpointError, match=r"forged\.vq"):
        vq.load(path, float_model())


def test_a_header_that_is_written_again_is_the_same(
    small_file: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    path = forged(small_file[0], tmp_path / "m.vq", lambda header: None)
    assert path.read_bytes() == small_file[0].read_bytes()


@pytest.mark.parametrize("change", ["missing", "added", "of another size", "of another dtype"])
def test_readable_files_have_the_tensors_that_their_header_says(
    change: str, small_file: tuple[Path, nn.Module], tmp_path: Path
) -> None:
    header, tensors = contents(small_file[0])
    (tmp_path / "m.vq").write_bytes(sealed(header, tensors, "readable"))
    vq.load(tmp_path / "m.vq", float_model())
    bias = tensors.pop("0.bias")
    others = {
        "missing": {},
        "added": {"0.bias": bias, "new": bias.clone()},
        "of another size": {"0.bias": bias[:-1].clone()},
        "of another dtype": {"0.bias": bias.view(torch.int32)},
    }
    (tmp_path / "m.vq").write_bytes(
        save({**tensors, **others[change]}, {"vq_plugin": with_checksum(header)})
    )
    with pytest.raises(vq.CheckpointError, match=r"m\.vq: .*tensor '(0\.bias|new)' is"):
        vq.load(tmp_path / "m.vq", float_model())


def test_a_header_of_many_brackets_is_refused(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "m.vq", {"vq_plugin": "[" * 100_000})
    with pytest.raises(vq.CheckpointError, match=r"m\.vq: the header is damaged"):
        vq.load(tmp_path / "m.vq", float_model())


def test_a_newer_format_says_what_to_do(small_file: tuple[Path, nn.Module], tmp_path: Path) -> None:
    def newer(header: dict[str, Any]) -> None:
        header.update(format=99, unheard_of={"x": 1}, layers="otherwise")

    path = forged(small_file[0], tmp_path / "m.vq", newer)
    with pytest.raises(vq.CheckpointError, match=r"format 99 is newer .*upgrade"):
        vq.load(path, float_model())
    path.write_bytes(dense(*unpacked(small_file[0].read_bytes()), outer=99))
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
