"""Files with coded codes: read by parts, damaged and forged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vq_plugin as vq
from tests.checkpoint.coded_models import (
    WAYS,
    Int8Model,
    Model,
    compressed,
    compressed_int8,
)
from tests.checkpoint.forging import contents, packed, sealed, unpacked
from tests.checkpoint.models import assert_same_state
from vq_plugin.checkpoint import read_header


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with every way to code."""
    path = tmp_path_factory.mktemp("files") / "coded.vq"
    vq.save(compressed(), path)
    return path


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with int8 codebooks."""
    path = tmp_path_factory.mktemp("files") / "int8.vq"
    vq.save(compressed_int8(), path)
    return path


def test_every_way_to_code_comes_back_and_is_written_the_same(coded: Path, tmp_path: Path) -> None:
    layers = read_header(coded)[0].layers
    ways = {name: entry.coding.along for name, entry in layers.items() if entry.coding}
    assert ways == {**{name: name for name in WAYS if name != "class"}, "classes": "class"}
    loaded = vq.load(coded, Model())
    assert_same_state(loaded, compressed())
    vq.save(loaded, tmp_path / "m.vq")
    assert (tmp_path / "m.vq").read_bytes() == coded.read_bytes()


def test_int8_codebooks_come_back_and_are_written_the_same(int8: Path, tmp_path: Path) -> None:
    loaded = vq.load(int8, Int8Model())
    assert_same_state(loaded, compressed_int8())
    vq.save(loaded, tmp_path / "m.vq")
    assert (tmp_path / "m.vq").read_bytes() == int8.read_bytes()
    for name in ("tied", "books"):
        part = vq.load(int8, Int8Model().get_submodule(name), part=name)
        assert torch.equal(part.weight, loaded.get_submodule(name).weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("books.exponents"), "'books' has exponents or int8 codebooks alone"),
        (lambda t: t.pop("sum.scale"), "layer 'sum': its row scales are missing"),
        (lambda t: t["books.exponents"].fill_(10), "out of range"),
        (lambda t: t["books.codebooks"].fill_(-128), "out of range"),
        (
            lambda t: t.update({"books.codebooks": t["books.codebooks"].half()}),
            "'books' has exponents or int8",
        ),
        (lambda t: t.update({"books.exponents": torch.zeros(1, 1, 7).char()}), "do not fit"),
        (lambda t: t.update({"norm.exponents": torch.zeros(1).char()}), r"norm\.exponents"),
    ],
)
def test_what_was_never_written_of_int8_codebooks_is_refused(
    change: Callable[[dict[str, torch.Tensor]], Any], message: str, int8: Path, tmp_path: Path
) -> None:
    header, tensors = contents(int8)
    change(tensors)
    (tmp_path / "m.vq").write_bytes(sealed(header, tensors))
    with pytest.raises(vq.CheckpointError, match=message):
        vq.load(tmp_path / "m.vq", Int8Model())


def test_exponents_of_other_codebooks_are_refused(coded: Path, tmp_path: Path) -> None:
    header, tensors = contents(coded)
    tensors["packed.exponents"] = torch.zeros(1, 1, 4).char()
    (tmp_path / "m.vq").write_bytes(sealed(header, tensors))
    with pytest.raises(vq.CheckpointError, match="'packed' has exponents"):
        vq.load(tmp_path / "m.vq", Model())


def test_a_large_file_with_classes_keeps_its_readable_header(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(2400, 2400)
    with torch.no_grad():
        layer.weight[::2] *= torch.rand(1200, 2400) < 0.1
        layer.weight[:, ::2] *= torch.rand(2400, 1200) < 0.1
    small = vq.compress(layer, vq.KM(k=15, keep_zeros=True))
    vq.save(small, tmp_path / "m.vq")
    assert b"layers" in (tmp_path / "m.vq").read_bytes()
    coding = read_header(tmp_path / "m.vq")[0].layers[""].coding
    assert coding is not None
    assert coding.along == "class"
    assert_same_state(vq.load(tmp_path / "m.vq", nn.Linear(2400, 2400)), small)


@pytest.mark.parametrize("outer", [0, 2])
def test_another_format_outside_of_a_compact_header_is_refused(
    outer: int, coded: Path, tmp_path: Path
) -> None:
    (tmp_path / "m.vq").write_bytes(packed(*unpacked(coded.read_bytes()), outer=outer))
    expected = "format 2 is newer" if outer == 2 else "the header is damaged"
    with pytest.raises(vq.CheckpointError, match=rf"m\.vq: {expected}"):
        vq.load(tmp_path / "m.vq", Model())


@pytest.mark.parametrize("numbers", [(0, 2), (2, 0), (1, 2), (2, 1), (255, 255)])
def test_forged_numbers_of_classes_are_an_error_that_names_the_layer(
    numbers: tuple[int, int], coded: Path, tmp_path: Path
) -> None:
    header, tensors = contents(coded)
    tensors["classes.codes"][:2] = torch.tensor(numbers, dtype=torch.uint8)
    (tmp_path / "m.vq").write_bytes(sealed(header, tensors))
    with pytest.raises(vq.CheckpointError, match=r"m\.vq: layer 'classes': "):
        vq.load(tmp_path / "m.vq", Model())


@pytest.mark.parametrize("size", [0, 1, 2, 9])
def test_classes_that_are_cut_off_are_an_error_that_names_the_layer(
    size: int, coded: Path, tmp_path: Path
) -> None:
    header, tensors = contents(coded)
    tensors["classes.codes"] = tensors["classes.codes"][:size].clone()
    (tmp_path / "m.vq").write_bytes(sealed(header, tensors))
    with pytest.raises(vq.CheckpointError, match=r"m\.vq: layer 'classes': "):
        vq.load(tmp_path / "m.vq", Model())


@pytest.mark.parametrize("name", [*WAYS[:-1], "classes", "packed", "tied", "norm"])
def test_a_part_is_the_same_as_in_the_whole(name: str, coded: Path) -> None:
    whole = vq.load(coded, Model()).get_submodule(name).state_dict()
    part = vq.load(coded, Model().get_submodule(name), part=name).state_dict()
    assert part.keys() == whole.keys()
    assert all(torch.equal(part[key], whole[key]) for key in whole)


@pytest.mark.parametrize("layout", ["readable", "compact"])
def test_a_part_is_read_without_the_rest_of_the_file(
    layout: str, coded: Path, tmp_path: Path
) -> None:
    header, tensors = contents(coded)
    content = bytearray(sealed(header, tensors, layout))
    content[content.index(tensors["layer.codes"].numpy().tobytes()) + 100] ^= 1
    (tmp_path / "m.vq").write_bytes(content)
    for model, part in ((Model(), ""), (Model().layer, "layer")):
        with pytest.raises(vq.CheckpointError, match=r"m\.vq: tensor 'layer\.codes' is damaged"):
            vq.load(tmp_path / "m.vq", model, part=part)
    vq.load(tmp_path / "m.vq", Model().row, part="row")


def test_ties_within_a_part_stay_ties_whatever_they_are_tied_to(tmp_path: Path) -> None:
    def build() -> nn.ModuleDict:
        torch.manual_seed(0)
        layers = [nn.Linear(64, 64, bias=False) for _ in range(3)]
        layers[1].weight = layers[2].weight = layers[0].weight
        return nn.ModuleDict({"first": layers[0], "block": nn.Sequential(*layers[1:])})

    model = build()
    with torch.no_grad():
        model["first"].weight *= torch.rand(64, 64) < 0.1  # type: ignore[operator]
    small = vq.compress(model, vq.KM(k=5, keep_zeros=True))
    vq.save(small, tmp_path / "m.vq")
    assert read_header(tmp_path / "m.vq")[0].layers["first"].coding
    block = vq.load(tmp_path / "m.vq", build()["block"], part="block")
    assert isinstance(block, nn.Sequential)
    assert block[0].codebooks is block[1].codebooks
    assert torch.equal(block[1].weight, small["first"].weight)


def test_a_part_that_is_not_there_is_an_error(coded: Path) -> None:
    for part in ("gone", "ro", "row.weight"):
        with pytest.raises(vq.CheckpointError, match=rf"coded\.vq: has nothing of '{part}'"):
            vq.load(coded, nn.Linear(3, 3), part=part)


@pytest.mark.parametrize("part", [0, None, b"row", nn.Linear(3, 3)])
def test_a_part_is_a_name(coded: Path, part: Any) -> None:
    with pytest.raises(TypeError, match=r"part is a name, such as 'features\.3', got "):
        vq.load(coded, Model(), part=part)


def test_the_rest_is_rounded_to_float16_on_request(tmp_path: Path) -> None:
    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(64, 64), nn.BatchNorm1d(64), nn.Linear(64, 9), nn.Linear(9, 9).double()
        )

    model = build()
    with torch.no_grad():
        model[1].bias[3] = 1e5
        model[1].weight[3] = torch.inf
    small = vq.compress(model, {"0": vq.KM(k=4, codebook_dtype="float32", scale="row"), "*": None})
    before = {key: value.clone() for key, value in small.state_dict().items()}
    nbytes = vq.save(small, tmp_path / "wide.vq")
    assert vq.save(small, tmp_path / "m.vq", rest="float16") < nbytes
    header, sizes = read_header(tmp_path / "m.vq")
    assert sizes["2.weight"] == 2 * 64 * 9
    rounded = {name for name, kind in header.tensors.items() if kind.rounded}
    assert header.tensors["3.weight"].rounded == "float64"
    again = vq.load(tmp_path / "m.vq", build()).state_dict()
    part = vq.load(tmp_path / "m.vq", build()[2], part="2").state_dict()
    kept = {"0.codes", "0.codebooks", "0.scale", "1.bias", "1.num_batches_tracked"}
    assert rounded == before.keys() - kept
    for key, value in before.items():
        assert again[key].dtype == value.dtype
        assert torch.equal(again[key], value if key in kept else value.half().to(value.dtype)), key
        assert torch.equal(small.state_dict()[key], value)
    assert torch.equal(part["weight"], again["2.weight"])
    assert vq.save(small, tmp_path / "again.vq") == nbytes
    with pytest.raises(ValueError, match="rest='int4'"):
        vq.save(small, tmp_path / "m.vq", rest="int4")  # type: ignore[arg-type]


def test_a_header_that_calls_other_tensors_rounded_is_an_error(coded: Path, tmp_path: Path) -> None:
    header, tensors = contents(coded)
    tensors["norm.bias"] = tensors["norm.bias"].half()
    for key, dtype in (("norm.weight", "float32"), ("norm.bias", "int8")):
        header["tensors"][key][3:] = [dtype]
        (tmp_path / "m.vq").write_bytes(sealed(header, tensors))
        with pytest.raises(vq.CheckpointError, match=r"m\.vq: "):
            vq.load(tmp_path / "m.vq", Model())


@pytest.mark.parametrize("k", [1, 2])
def test_a_few_bytes_that_stand_for_many_codes_are_refused(k: int, tmp_path: Path) -> None:
    # A stream of nothing is any number of first codes.
    scheme = vq.RQ(k=k, stages=2, dim=1)
    vq.save(vq.compress(nn.Sequential(nn.Linear(64, 64, bias=False)), scheme), tmp_path / "m.vq")
    header, tensors = contents(tmp_path / "m.vq")
    stages = 1 << 20
    header["layers"]["0"]["codes"] = [stages, 64, 64]
    tensors["0.codebooks"] = torch.zeros(stages, 1, 1, k, 1, dtype=torch.float16)
    tensors["0.codes"] = torch.ones(0 if k == 1 else 1, dtype=torch.uint8)
    if k > 1:
        header["layers"]["0"]["coding"] = {"along": "layer", "bits": 4}
    (tmp_path / "m.vq").write_bytes(sealed(header, tensors))
    with pytest.raises(vq.CheckpointError, match=r"m\.vq: layer '0': .*do not fit"):
        vq.load(tmp_path / "m.vq", nn.Sequential(nn.Linear(64, 64, bias=False)))


def test_more_stages_than_a_coded_layer_may_have_stay_packed(tmp_path: Path) -> None:
    layer = nn.Linear(32, 32, bias=False)
    with torch.no_grad():
        layer.weight *= torch.rand(32, 32) < 0.1
    small = vq.compress(layer, vq.RQ(k=2, stages=20, dim=1, codebooks="tensor"))
    vq.save(small, tmp_path / "m.vq")
    assert read_header(tmp_path / "m.vq")[0].layers[""].coding is None
    assert torch.equal(vq.load(tmp_path / "m.vq", layer).weight, small.weight)


def test_a_forged_stream_is_an_error_that_names_the_layer(coded: Path, tmp_path: Path) -> None:
    header, tensors = contents(coded)
    tensors["row.codes"] = tensors["row.codes"][:-4].clone()
    (tmp_path / "m.vq").write_bytes(sealed(header, tensors))
    with pytest.raises(vq.CheckpointError, match=r"m\.vq: layer 'row': "):
        vq.load(tmp_path / "m.vq", Model())
