"""Files with coded codes: golden, read by parts, damaged and forged."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import vq_plugin as vq
from tests.checkpoint.forging import (
    GOLDEN,
    WAYS,
    contents,
    golden_model,
    packed,
    sealed,
    unpacked,
)
from tests.checkpoint.models import assert_same_state
from vq_plugin.checkpoint import read_header


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_golden_files_load_as_ever(version: int) -> None:
    path = GOLDEN / f"format{version}.vq"
    assert read_header(path)[0].format == version
    state = vq.load(path, golden_model()).state_dict()
    expected = load_file(GOLDEN / "state.safetensors")
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert state[key].dtype == value.dtype
        assert torch.equal(state[key], value), key


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_saving_a_golden_file_again_gives_what_the_others_hold(
    version: int, tmp_path: Path
) -> None:
    vq.save(vq.load(GOLDEN / f"format{version}.vq", golden_model()), tmp_path / "m.vq")
    header, tensors = contents(tmp_path / "m.vq")
    # Not the bytes of the whole: another zlib may compress the header otherwise.
    assert header["format"] == 4
    for other in (2, 3, 4):
        expected, stored = contents(GOLDEN / f"format{other}.vq")
        for key in ("layers", "aliases", "rounded"):
            assert header[key] == expected[key]
        assert tensors.keys() == stored.keys()
        for key, value in stored.items():
            name = key.removesuffix(".codes")
            if header["coded"].get(name) == expected["coded"].get(name):
                assert header["checksums"][key] == expected["checksums"][key]
                assert torch.equal(tensors[key], value)
            else:
                # Classes came with format 4, and are there where they are smaller.
                assert header["coded"][name]["along"] == "class"
                assert name in ("row", "subspace")
                assert other < 4
                assert tensors[key].numel() < value.numel()


def test_the_golden_file_of_int8_codebooks_loads_and_is_written_as_ever(tmp_path: Path) -> None:
    loaded = vq.load(GOLDEN / "int8.vq", golden_model("Int8Model"))
    expected, state = load_file(GOLDEN / "int8_state.safetensors"), loaded.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    vq.save(loaded, tmp_path / "m.vq")
    again, tensors = contents(tmp_path / "m.vq")
    header, stored = contents(GOLDEN / "int8.vq")
    # Not the bytes of the whole: another zlib may compress the header otherwise.
    assert again == header
    assert list(tensors) == list(stored)
    assert all(torch.equal(tensors[key], value) for key, value in stored.items())
    for name in ("tied", "books"):
        part = vq.load(GOLDEN / "int8.vq", golden_model("Int8Model").get_submodule(name), part=name)
        assert torch.equal(part.weight, loaded.get_submodule(name).weight)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("books.exponents"), "exponents of its int8 codebooks are missing"),
        (lambda t: t.pop("sum.scale"), "layer 'sum': its row scales are missing"),
        (lambda t: t["books.exponents"].fill_(10), "out of range"),
        (lambda t: t["books.codebooks"].fill_(-128), "out of range"),
        (lambda t: t.update({"books.codebooks": t["books.codebooks"].half()}), "torch.float16"),
        (lambda t: t.update({"books.exponents": torch.zeros(1, 1, 7).char()}), "do not fit"),
        (lambda t: t.update({"norm.exponents": torch.zeros(1).char()}), r"norm\.exponents"),
    ],
)
def test_what_was_never_written_of_int8_codebooks_is_refused(
    change: Callable[[dict[str, torch.Tensor]], Any], message: str, tmp_path: Path
) -> None:
    header, tensors = contents(GOLDEN / "int8.vq")
    change(tensors)
    (tmp_path / "m.vq").write_bytes(sealed(header, tensors))
    with pytest.raises(vq.CheckpointError, match=message):
        vq.load(tmp_path / "m.vq", golden_model("Int8Model"))


def test_exponents_of_other_codebooks_are_refused(tmp_path: Path) -> None:
    header, tensors = contents(GOLDEN / "format2.vq")
    tensors["packed.exponents"] = torch.zeros(1, 1, 4).char()
    (tmp_path / "m.vq").write_bytes(sealed(header, tensors))
    with pytest.raises(vq.CheckpointError, match=r"packed\.exponents"):
        vq.load(tmp_path / "m.vq", golden_model())


def test_the_golden_files_hold_every_way_to_code() -> None:
    ways = {
        version: {
            name: coding.along
            for name, coding in read_header(GOLDEN / f"format{version}.vq")[0].coded.items()
        }
        for version in (2, 3, 4)
    }
    old = {name: name for name in WAYS if name != "class"}
    assert ways[2] == ways[3] == old
    assert ways[4] == {**old, "row": "class", "subspace": "class"}


def test_a_large_file_with_classes_keeps_its_readable_header(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(800, 800)
    with torch.no_grad():
        layer.weight[::2] *= torch.rand(400, 800) < 0.1
        layer.weight[:, ::2] *= torch.rand(800, 400) < 0.1
    small = vq.compress(layer, vq.KM(k=15, keep_zeros=True))
    vq.save(small, tmp_path / "m.vq")
    header, _ = read_header(tmp_path / "m.vq")
    assert header.format == 4
    assert not header.tensors
    assert header.coded[""].along == "class"
    assert_same_state(vq.load(tmp_path / "m.vq", nn.Linear(800, 800)), small)


@pytest.mark.parametrize("outer", [3, 4, 5])
def test_the_format_outside_of_a_compact_header_is_that_inside(outer: int, tmp_path: Path) -> None:
    for version in {3, 4} - {outer}:
        header, body = unpacked((GOLDEN / f"format{version}.vq").read_bytes())
        (tmp_path / "m.vq").write_bytes(packed(header, body, outer=outer))
        expected = "format 5 is newer" if outer == 5 else "the header is damaged"
        with pytest.raises(vq.CheckpointError, match=rf"m\.vq: {expected}"):
            vq.load(tmp_path / "m.vq", golden_model())


@pytest.mark.parametrize("numbers", [(0, 2), (2, 0), (1, 2), (2, 1), (255, 255)])
def test_forged_numbers_of_classes_are_an_error_that_names_the_layer(
    numbers: tuple[int, int], tmp_path: Path
) -> None:
    header, tensors = contents(GOLDEN / "format4.vq")
    tensors["row.codes"][:2] = torch.tensor(numbers, dtype=torch.uint8)
    (tmp_path / "m.vq").write_bytes(sealed(header, tensors))
    with pytest.raises(vq.CheckpointError, match=r"m\.vq: layer 'row': "):
        vq.load(tmp_path / "m.vq", golden_model())


@pytest.mark.parametrize("size", [0, 1, 2, 9])
def test_classes_that_are_cut_off_are_an_error_that_names_the_layer(
    size: int, tmp_path: Path
) -> None:
    header, tensors = contents(GOLDEN / "format4.vq")
    tensors["row.codes"] = tensors["row.codes"][:size].clone()
    (tmp_path / "m.vq").write_bytes(sealed(header, tensors))
    with pytest.raises(vq.CheckpointError, match=r"m\.vq: layer 'row': "):
        vq.load(tmp_path / "m.vq", golden_model())


def test_a_file_without_coded_codes_is_format_1(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vq.save(vq.compress(nn.Linear(8, 8), vq.KM(k=4)), tmp_path / "m.vq")
    with safe_open(tmp_path / "m.vq", "pt") as file:
        header = json.loads(file.metadata()["vq_plugin"])
    assert header["format"] == 1
    assert "coded" not in header


@pytest.mark.parametrize("version", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "name", ["layer", "row", "subspace", "stage", "previous", "packed", "tied"]
)
def test_a_part_is_the_same_as_in_the_whole(name: str, version: int) -> None:
    path = GOLDEN / f"format{version}.vq"
    whole = vq.load(path, golden_model()).get_submodule(name).state_dict()
    part = vq.load(path, golden_model().get_submodule(name), part=name).state_dict()
    assert part.keys() == whole.keys()
    assert all(torch.equal(part[key], whole[key]) for key in whole)


@pytest.mark.parametrize("version", [2, 3])
def test_a_part_is_read_without_the_rest_of_the_file(version: int, tmp_path: Path) -> None:
    content = bytearray((GOLDEN / f"format{version}.vq").read_bytes())
    codes = contents(GOLDEN / "format2.vq")[1]["layer.codes"].numpy().tobytes()
    content[content.index(codes) + 100] ^= 1
    (tmp_path / "m.vq").write_bytes(content)
    with pytest.raises(vq.CheckpointError, match=r"m\.vq: tensor 'layer\.codes' is damaged"):
        vq.load(tmp_path / "m.vq", golden_model())
    with pytest.raises(vq.CheckpointError, match=r"m\.vq: tensor 'layer\.codes' is damaged"):
        vq.load(tmp_path / "m.vq", golden_model().layer, part="layer")
    vq.load(tmp_path / "m.vq", golden_model().row, part="row")


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
    assert read_header(tmp_path / "m.vq")[0].coded
    block = vq.load(tmp_path / "m.vq", build()["block"], part="block")
    assert isinstance(block, nn.Sequential)
    assert block[0].codebooks is block[1].codebooks
    assert torch.equal(block[1].weight, small["first"].weight)


def test_a_part_that_is_not_there_is_an_error() -> None:
    with pytest.raises(vq.CheckpointError, match=r"format2\.vq: has nothing of 'gone'"):
        vq.load(GOLDEN / "format2.vq", nn.Linear(3, 3), part="gone")


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
    assert header.format == 3
    assert sizes["2.weight"] == 2 * 64 * 9
    assert header.rounded["3.weight"] == "float64"
    again = vq.load(tmp_path / "m.vq", build()).state_dict()
    part = vq.load(tmp_path / "m.vq", build()[2], part="2").state_dict()
    kept = {"0.codes", "0.codebooks", "0.scale", "1.bias", "1.num_batches_tracked"}
    assert header.rounded.keys() == before.keys() - kept
    for key, value in before.items():
        assert again[key].dtype == value.dtype
        assert torch.equal(again[key], value if key in kept else value.half().to(value.dtype)), key
        assert torch.equal(small.state_dict()[key], value)
    assert torch.equal(part["weight"], again["2.weight"])
    assert vq.save(small, tmp_path / "again.vq") == nbytes
    with pytest.raises(ValueError, match="rest='int8'"):
        vq.save(small, tmp_path / "m.vq", rest="int8")  # type: ignore[arg-type]


def test_a_header_that_calls_other_tensors_rounded_is_an_error(tmp_path: Path) -> None:
    header, tensors = contents(GOLDEN / "format2.vq")
    for key, dtype in (("norm.weight", "float32"), ("gone", "float32"), ("layer.bias", "int8")):
        header["rounded"] = {key: dtype}
        (tmp_path / "m.vq").write_bytes(sealed(header, tensors))
        with pytest.raises(vq.CheckpointError, match=r"m\.vq: "):
            vq.load(tmp_path / "m.vq", golden_model())


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
        header.update(format=2, coded={"0": {"along": "layer", "bits": 4}}, rounded={})
    (tmp_path / "m.vq").write_bytes(sealed(header, tensors))
    with pytest.raises(vq.CheckpointError, match=r"m\.vq: layer '0': .*do not fit"):
        vq.load(tmp_path / "m.vq", nn.Sequential(nn.Linear(64, 64, bias=False)))


def test_more_stages_than_a_coded_layer_may_have_stay_packed(tmp_path: Path) -> None:
    layer = nn.Linear(32, 32, bias=False)
    with torch.no_grad():
        layer.weight *= torch.rand(32, 32) < 0.1
    small = vq.compress(layer, vq.RQ(k=2, stages=20, dim=1, codebooks="tensor"))
    vq.save(small, tmp_path / "m.vq")
    assert not read_header(tmp_path / "m.vq")[0].coded
    assert torch.equal(vq.load(tmp_path / "m.vq", layer).weight, small.weight)


def test_a_forged_stream_is_an_error_that_names_the_layer(tmp_path: Path) -> None:
    header, tensors = contents(GOLDEN / "format2.vq")
    tensors["row.codes"] = tensors["row.codes"][:-4].clone()
    (tmp_path / "m.vq").write_bytes(sealed(header, tensors))
    with pytest.raises(vq.CheckpointError, match=r"m\.vq: layer 'row': "):
        vq.load(tmp_path / "m.vq", golden_model())
