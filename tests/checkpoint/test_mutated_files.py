"""Mutated files: `python -m tests.checkpoint.test_mutated_files 10000` tries more of them."""

import math
import random
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from tests.checkpoint.coded_models import (
    WAYS,
    Int8Model,
    Model,
    Scaled,
    Various,
    compressed,
    compressed_int8,
    compressed_scaled,
    compressed_various,
)
from tests.checkpoint.forging import LAYOUTS, contents, sealed, unpacked
from vq_plugin import reader
from vq_plugin.checkpoint import round_rest

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
    layer = any_layer(random_, header)
    layer["coding"] = layer["coding"] or {"along": random_.choice(WAYS), "bits": 4}
    layer["coding"][random_.choice(["along", "bits"])] = random_.choice([*VALUES, 4, 8, *WAYS])


def change_alias(
    random_: random.Random, header: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    target = random_.choice([*tensors, *header["layers"], "gone", "tied"])
    header["aliases"][random_.choice([*tensors, *header["layers"], *header["aliases"], "x"])] = (
        target
    )


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
    return sealed(header, tensors, random_.choice(["readable", *LAYOUTS]))


def forged_layout(random_: random.Random, path: Path) -> bytes:
    """A dense or compact file that says otherwise where its tensors are."""
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
        header["tensors"] = random_.choice([[], [3], {}, *VALUES])
    with suppress(TypeError, ValueError, LookupError, AttributeError, RuntimeError):
        start = 0
        for kind in header["tensors"].values():
            end = start + math.prod(kind[1]) * getattr(torch, kind[0]).itemsize
            kind[2] = zlib.crc32(body[start:end])
            start = end
        body = body[:start].ljust(start if start < 1 << 20 else 0, b"\0")
    return random_.choice(list(LAYOUTS.values()))(header, body, shift)


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


class Case(NamedTuple):
    """A model, and what its file is of."""

    fresh: Callable[[], nn.Module]
    small: Callable[[], nn.Module]
    rest: Literal["int8"] | None = None


CASES = {
    "coded": Case(Model, compressed),
    "int8": Case(Int8Model, compressed_int8),
    "numbers": Case(Model, compressed, "int8"),
    "parameters": Case(Various, compressed_various),
    "scales": Case(Scaled, compressed_scaled),
}


def files(case: Case, folder: Path) -> list[Path]:
    """The dense file of a model, and those of the other layouts with the same tensors."""
    dense = folder / "dense.vq"
    vq.save(case.small(), dense, rest=case.rest)
    for layout in ("compact", "readable"):
        (folder / f"{layout}.vq").write_bytes(sealed(*contents(dense), layout))
    return [dense, folder / "compact.vq", folder / "readable.vq"]


def mutations(case: Case, count: int, seed: int, folder: Path) -> Iterator[tuple[bytes, bool]]:
    """Files, and whether their checksums are right."""
    random_ = random.Random(seed)
    paths = files(case, folder)
    whole = [path.read_bytes() for path in paths]
    for i in range(count):
        if i % 9 == 0:
            yield forged_layout(random_, paths[0]), True
        elif i % 3 == 0:
            yield forged(random_, paths[0]), True
        else:
            content, other = random_.sample(whole, 2)
            yield damaged(random_, content, other), False


def try_mutations(case: Case, count: int, seed: int, folder: Path) -> int:
    """Loads mutations; how many were refused. Anything but a refusal or right tensors is raised."""
    expected = round_rest(case.small(), case.rest).state_dict()
    fresh, refused = case.fresh(), 0
    shapes = {key: value.shape for key, value in expected.items() if key != "tied.scale"}
    for content, forgery in mutations(case, count, seed, folder):
        (folder / "m.vq").write_bytes(content)
        opened = everything_of(folder / "m.vq")
        try:
            state = vq.load(folder / "m.vq", fresh).state_dict()
        except vq.CheckpointError:
            refused += 1
            continue
        assert opened
        # A forged tie may be to a layer that has no scale.
        assert {k: v.shape for k, v in state.items() if k != "tied.scale"} == shapes
        if not forgery:
            assert all(torch.equal(state[key], value) for key, value in expected.items())
    return refused


def everything_of(path: Path) -> bool:
    """Whether a file can be read without a model, all of it."""
    try:
        file = reader.open_file(path)
        for layer in file.layers.values():
            assert layer.decode().shape == (layer.view[0] if layer.view else layer.shape)
        dict(file.tensors)
    except vq.CheckpointError:
        return False
    return True


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_mutated_files_are_refused_or_right(case: Case, tmp_path: Path) -> None:
    assert try_mutations(case, 1000, 0, tmp_path) > 800


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        count = int(sys.argv[1])
        for what, case in CASES.items():
            refused = try_mutations(case, count, 1, Path(name))
            print(f"{what}: {refused} of {count} refused, the rest right")
