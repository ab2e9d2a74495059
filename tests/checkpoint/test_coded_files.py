"""Files with coded codes: golden, read by parts, damaged and forged."""

import json
import math
import random
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.checkpoint import read_header

pytest.importorskip("constriction")

GOLDEN = Path(__file__).parent / "golden"
WAYS = ["layer", "stage", "row", "subspace", "previous"]


def golden_model() -> nn.Module:
    spec = spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    model: nn.Module = module.Model()
    return model


@pytest.mark.parametrize("version", [1, 2, 3])
def test_golden_files_load_as_ever(version: int) -> None:
    path = GOLDEN / f"format{version}.vq"
    assert read_header(path)[0].format == version
    state = vq.load(path, golden_model()).state_dict()
    expected = load_file(GOLDEN / "state.safetensors")
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert state[key].dtype == value.dtype
        assert torch.equal(state[key], value), key


@pytest.mark.parametrize("version", [1, 2, 3])
def test_saving_a_golden_file_again_gives_what_the_others_hold(
    version: int, tmp_path: Path
) -> None:
    vq.save(vq.load(GOLDEN / f"format{version}.vq", golden_model()), tmp_path / "m.vq")
    header, tensors = contents(tmp_path / "m.vq")
    # Not the bytes of the whole: another zlib may compress the header otherwise.
    assert header["format"] == 3
    for other in (2, 3):
        expected, stored = contents(GOLDEN / f"format{other}.vq")
        for key in ("layers", "aliases", "coded", "rounded", "checksums"):
            assert header[key] == expected[key]
        assert tensors.keys() == stored.keys()
        assert all(torch.equal(tensors[key], value) for key, value in stored.items())


def test_the_golden_file_holds_every_way_to_code() -> None:
    header, _ = read_header(GOLDEN / "format2.vq")
    assert {name: coding.along for name, coding in header.coded.items()} == {
        name: name for name in WAYS
    }


def test_a_file_without_coded_codes_is_format_1(tmp_path: Path) -> None:
    torch.manual_seed(0)
    vq.save(vq.compress(nn.Linear(8, 8), vq.KM(k=4)), tmp_path / "m.vq")
    with safe_open(tmp_path / "m.vq", "pt") as file:
        header = json.loads(file.metadata()["vq_plugin"])
    assert header["format"] == 1
    assert "coded" not in header


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("name", [*WAYS, "packed", "tied"])
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


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors; the header of a compact file in the keys of the others."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["vq_plugin"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if "header" not in header:
        return header, tensors
    header, body = unpacked(path.read_bytes())
    tensors, kinds, start = {}, header.pop("tensors"), 0
    for key, (name, shape, *_) in kinds.items():
        dtype = getattr(torch, name)
        end = start + math.prod(shape) * dtype.itemsize
        raw = torch.frombuffer(bytearray(body[start:end]), dtype=torch.uint8)
        tensors[key], start = raw.view(dtype).reshape(shape), end
    assert start == len(body)
    header["checksums"] = dict(zip(kinds, header["checksums"], strict=True))
    header["rounded"] = {key: kind[2] for key, kind in kinds.items() if len(kind) > 2}
    return header, tensors


def sealed(header: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """A file whose checksums are right, as only an attacker makes one of wrong content."""
    raw = {
        key: value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for key, value in tensors.items()
    }
    kinds = {key: (str(value.dtype), list(value.shape)) for key, value in tensors.items()}
    header["checksums"] = {
        key: zlib.crc32(raw[key], zlib.crc32(f"{dtype}{shape}".encode()))
        for key, (dtype, shape) in kinds.items()
    }
    if header["format"] != 3:
        return save(tensors, {"vq_plugin": with_checksum(header)})
    rounded = header.pop("rounded")
    rounded = rounded if isinstance(rounded, dict) else {}
    header["checksums"] = list(header["checksums"].values())
    header["tensors"] = {
        key: [dtype.removeprefix("torch."), shape, *([rounded[key]] if key in rounded else [])]
        for key, (dtype, shape) in kinds.items()
    }
    return packed(header, b"".join(raw.values()))


def with_checksum(header: dict[str, Any]) -> str:
    header["checksum"] = 0
    header["checksum"] = zlib.crc32(json.dumps(header, separators=(",", ":")).encode())
    return json.dumps(header, separators=(",", ":"))


def unpacked(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a compact file as it is written, and the bytes of the tensors."""
    size = 8 + int.from_bytes(content[:8], "little")
    outer = json.loads(content[8:size])["__metadata__"]["vq_plugin"]
    end = size + json.loads(outer)["header"]
    return json.loads(zlib.decompress(content[size:end])), content[end:]


def packed(header: dict[str, Any], body: bytes, shift: int = 0) -> bytes:
    """A compact file; `shift` is added to the length of the header that it says."""
    text = zlib.compress(with_checksum(header).encode(), 9)
    data = torch.frombuffer(bytearray(text + body), dtype=torch.uint8)
    pointer = json.dumps({"format": 3, "header": len(text) + shift}, separators=(",", ":"))
    return save({"data": data}, {"vq_plugin": pointer})


VALUES = [-1, 0, 1, 2, 3, 17, 1 << 20, 1 << 31, 1 << 40, 1 << 63, "", "row", "x", None, [], {}, 1.5]
Forgery = Callable[[random.Random, dict[str, Any], dict[str, Tensor]], None]


def any_layer(random_: random.Random, header: dict[str, Any]) -> dict[str, Any]:
    layer: dict[str, Any] = random_.choice(list(header["layers"].values()))
    return layer


def change_field(random_: random.Random, header: dict[str, Any], _: dict[str, Tensor]) -> None:
    layer = any_layer(random_, header)
    layer[random_.choice(list(layer))] = random_.choice(VALUES)


def change_shape(random_: random.Random, header: dict[str, Any], _: dict[str, Tensor]) -> None:
    shape = any_layer(random_, header)[random_.choice(["codes", "shape"])]
    shape[random_.randrange(len(shape))] = random_.choice(VALUES)


def change_coding(random_: random.Random, header: dict[str, Any], _: dict[str, Tensor]) -> None:
    coding = header["coded"].setdefault(random_.choice([*header["layers"], "gone"]), {})
    coding.setdefault("along", random_.choice(WAYS))
    coding[random_.choice(["along", "bits"])] = random_.choice([*VALUES, 4, 8, *WAYS])


def change_alias(
    random_: random.Random, header: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    target = random_.choice([*tensors, "gone", "tied.codes"])
    header["aliases"][random_.choice([*tensors, *header["aliases"], "x.codes"])] = target


def change_header(random_: random.Random, header: dict[str, Any], _: dict[str, Tensor]) -> None:
    header[random_.choice(list(header))] = random_.choice([{}, *VALUES])


def change_byte(random_: random.Random, _: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    name = random_.choice(list(tensors))
    value = tensors[name].clone()
    raw = value.flatten().view(torch.uint8)
    raw[random_.randrange(raw.numel())] = random_.randrange(256)
    tensors[name] = raw.view(value.dtype).reshape(value.shape)


def cut_tensor(random_: random.Random, _: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    name = random_.choice(list(tensors))
    flat = tensors[name].flatten()
    tensors[name] = flat[: random_.randrange(flat.numel() + 1)].clone()


def swap_tensor(random_: random.Random, _: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    tensors[random_.choice(list(tensors))] = random_.choice(list(tensors.values())).clone()


def change_dtype(random_: random.Random, _: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    name = random_.choice(list(tensors))
    tensors[name] = tensors[name].to(random_.choice([torch.int64, torch.float16]))


FORGERIES: list[Forgery] = [
    change_field,
    change_shape,
    change_coding,
    change_alias,
    change_header,
    change_byte,
    cut_tensor,
    swap_tensor,
    change_dtype,
]


def forged(random_: random.Random, path: Path) -> bytes:
    """Changes one or two things that checksums would notice, and makes the checksums right."""
    header, tensors = contents(path)
    for _ in range(random_.randint(1, 2)):
        # The second may find what the first has broken.
        with suppress(LookupError, TypeError, AttributeError, ValueError):
            random_.choice(FORGERIES)(random_, header, tensors)
    return sealed(header, tensors)


def forged_layout(random_: random.Random, path: Path) -> bytes:
    """A compact file that says otherwise where its tensors are."""
    header, body = unpacked(path.read_bytes())
    names = list(header["tensors"])
    shift, what = 0, random_.randrange(6)
    if what == 0:
        kind = header["tensors"][random_.choice(names)]
        kind[0] = random_.choice(["int8", "float64", "bits8", "quint8", "complex128", "Tensor", 8])
    elif what == 1:
        shape = header["tensors"][random_.choice(names)][1]
        shape.insert(0, random_.choice(VALUES))
        del shape[random_.randint(1, 2) :]
    elif what == 2:
        random_.shuffle(names)
        header["tensors"] = {key: header["tensors"][key] for key in names}
    elif what == 3:
        del header["tensors"][random_.choice(names)]
    elif what == 4:
        shift = random_.choice([-1, 1, len(body), 1 << 33])
    else:
        header[random_.choice(["tensors", "checksums"])] = random_.choice([[], [3], {}, *VALUES])
    with suppress(TypeError, ValueError, LookupError, AttributeError, RuntimeError):
        start, sums = 0, []
        for name, shape, *_ in header["tensors"].values():
            end = start + math.prod(shape) * getattr(torch, name).itemsize
            sums.append(zlib.crc32(body[start:end], zlib.crc32(f"torch.{name}{shape}".encode())))
            start = end
        header["checksums"] = sums
        body = body[:start].ljust(start if start < 1 << 20 else 0, b"\0")
    return packed(header, body, shift)


def damaged(random_: random.Random, content: bytes, other: bytes) -> bytes:
    """Flipped bits, cuts, other bytes, and the header of another file."""
    what = random_.randrange(5)
    changed = bytearray(content)
    if what == 0:
        for _ in range(random_.randint(1, 4)):
            changed[random_.randrange(len(changed))] ^= 1 << random_.randrange(8)
    elif what == 1:
        del changed[random_.randrange(len(changed)) :]
    elif what == 2:
        start = random_.randrange(len(changed))
        changed[start : start + random_.randrange(40)] = random_.randbytes(random_.randrange(40))
    elif what == 3:
        size = 8 + int.from_bytes(content[:8], "little")
        changed[: 8 + int.from_bytes(other[:8], "little")] = changed[:size]
    else:
        size = 8 + int.from_bytes(other[:8], "little")
        changed[: 8 + int.from_bytes(content[:8], "little")] = other[:size]
    return bytes(changed)


def mutations(count: int, seed: int) -> Iterator[tuple[bytes, bool]]:
    """Files, and whether their checksums are right."""
    random_ = random.Random(seed)
    files = [(GOLDEN / f"format{version}.vq").read_bytes() for version in (2, 1, 3)]
    for i in range(count):
        if i % 9 == 0:
            yield forged_layout(random_, GOLDEN / "format3.vq"), True
        elif i % 3 == 0:
            yield forged(random_, GOLDEN / f"format{random_.choice([2, 3])}.vq"), True
        else:
            content, other = random_.sample(files, 2)
            yield damaged(random_, content, other), False


def try_mutations(count: int, seed: int, folder: Path) -> int:
    """Loads mutations; how many were refused. Anything but a refusal or right tensors is raised."""
    expected = load_file(GOLDEN / "state.safetensors")
    fresh, refused = golden_model(), 0
    for content, forgery in mutations(count, seed):
        (folder / "m.vq").write_bytes(content)
        try:
            state = vq.load(folder / "m.vq", fresh).state_dict()
        except vq.CheckpointError:
            refused += 1
            continue
        assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}
        if not forgery:
            assert all(torch.equal(state[key], value) for key, value in expected.items())
    return refused


def test_mutated_files_are_refused_or_right(tmp_path: Path) -> None:
    assert try_mutations(1000, 0, tmp_path) > 800


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


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        count = int(sys.argv[1])
        print(f"{try_mutations(count, 1, Path(name))} of {count} refused, the rest right")
