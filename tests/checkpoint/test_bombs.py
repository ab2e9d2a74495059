"""Small files that ask for much work or memory: refused, or read at the cost of their length."""

import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

import vq_plugin as vq
from tests.checkpoint.costs import assert_cheap, read_all
from tests.checkpoint.forging import LAYOUTS, contents, sealed, with_checksum
from vq_plugin.coding.scales import encode_scales

Header = dict[str, Any]
Tensors = dict[str, Tensor]


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("files") / "m.vq"
    vq.save(vq.compress(model(), vq.KM(k=4)), path)
    return path


def empty_codes(header: Header, tensors: Tensors, name: str, shape: list[int], dim: int) -> None:
    """A layer of one center, whose codes take no bytes."""
    rows, length = shape
    header["layers"][name] = {
        "scheme": f"pq(k=1,dim={dim})",
        "shape": shape,
        "view": None,
        "axis": "in",
        "group": None,
        "codes": [1, rows, -(-length // dim)],
        "dtype": "float64",
        "coding": None,
    }
    tensors[f"{name}.codes"] = torch.empty(0, dtype=torch.uint8)
    tensors[f"{name}.codebooks"] = torch.zeros(1, 1, 1, 1, dim, dtype=torch.float16)


def long_sub_vectors(header: Header, tensors: Tensors) -> None:
    empty_codes(header, tensors, "0", [1 << 20, 1], 1 << 14)


def no_columns(header: Header, tensors: Tensors) -> None:
    empty_codes(header, tensors, "0", [1 << 62, 0], 1)


def no_rows(header: Header, tensors: Tensors) -> None:
    empty_codes(header, tensors, "0", [0, 1 << 62], 1)


def many_layers(header: Header, tensors: Tensors) -> None:
    for i in range(300):
        empty_codes(header, tensors, f"more{i}", [1 << 11, 1 << 10], 1)


def many_stages(header: Header, tensors: Tensors) -> None:
    empty_codes(header, tensors, "0", [32, 32], 1)
    stages = 1 << 17
    header["layers"]["0"].update(codes=[stages, 32, 32], scheme=f"rq(k=1,stages={stages},dim=1)")
    tensors["0.codebooks"] = torch.zeros(stages, 1, 1, 1, 1, dtype=torch.float16)


def a_table_for_every_row(header: Header, tensors: Tensors) -> None:
    rows = 1 << 16
    header["layers"]["0"].update(shape=[rows, 1], codes=[1, rows, 1])
    header["layers"]["0"]["coding"] = {"along": "row", "bits": 1}
    tensors["0.codebooks"] = torch.zeros(1, 1, 1, 2, 1, dtype=torch.float16)
    tensors["0.codes"] = torch.full((2 * rows // 8,), 255, dtype=torch.uint8)


def ties_of_a_layer(header: Header, tensors: Tensors) -> None:
    empty_codes(header, tensors, "0", [1 << 11, 1 << 10], 1)
    header["aliases"].update({f"a{i}": "0" for i in range(20_000)})


def ties_of_a_tensor(header: Header, tensors: Tensors) -> None:
    tensors["big"] = torch.zeros(1 << 18)
    header["aliases"].update({f"a{i}": "big" for i in range(5_000)})


def many_dimensions(header: Header, tensors: Tensors) -> None:
    tensors["0.bias"] = torch.empty(0)
    header["layers"]["0"]["shape"] = [(1 << 62) - 1] * 100_000


def a_view_of_many_dimensions(header: Header, tensors: Tensors) -> None:
    numbers = [(1 << 62) - 1] * 30_000
    header["layers"]["0"]["view"] = [numbers, numbers, list(range(30_000))]


def a_scheme_of_blanks(header: Header, tensors: Tensors) -> None:
    header["layers"]["0"]["scheme"] = "km" + " " * 200_000 + "x"


def scales(header: Header, tensors: Tensors, rows: int, coded: int) -> None:
    """A layer of so many rows, and bytes that are the scales of some."""
    empty_codes(header, tensors, "0", [rows, 1], 1)
    header["layers"]["0"]["scheme"] = "uniform(step=0.5,scale=row)"
    data = encode_scales(np.where(np.arange(coded) % 16, 1, 2).astype(np.float16))
    assert data is not None
    tensors["0.scale"] = torch.from_numpy(data)


def scales_of_more_rows(header: Header, tensors: Tensors) -> None:
    scales(header, tensors, 1 << 22, 1 << 12)


def scales_of_as_many_rows_as_may_be(header: Header, tensors: Tensors) -> None:
    scales(header, tensors, 1 << 22, 1 << 22)


def a_huge_group(header: Header, tensors: Tensors) -> None:
    header["layers"]["0"]["group"] = (1 << 63) - 1


BOMBS = [
    long_sub_vectors,
    no_columns,
    no_rows,
    many_layers,
    many_stages,
    a_table_for_every_row,
    ties_of_a_layer,
    ties_of_a_tensor,
    many_dimensions,
    a_view_of_many_dimensions,
    a_scheme_of_blanks,
    scales_of_more_rows,
    scales_of_as_many_rows_as_may_be,
    a_huge_group,
]


@pytest.mark.parametrize("layout", ["readable", *LAYOUTS])
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_costs_little(
    bomb: Callable[[Header, Tensors], None], layout: str, small_file: Path, tmp_path: Path
) -> None:
    header, tensors = contents(small_file)
    bomb(header, tensors)
    path = tmp_path / "m.vq"
    path.write_bytes(sealed(header, tensors, layout))
    assert path.stat().st_size < 3_000_000
    assert_cheap(path, lambda: read_all(path, model()), bomb.__name__)


def texts() -> Iterator[tuple[str, str]]:
    """Texts that compress to kilobytes, and that json makes twenty times as long."""
    yield "lists", "[" + "[]," * 300_000 + "0]"
    yield "nested", "[" * 1_000_000
    yield "mappings", '{"format":1,"layers":{"a":[' + "{}," * 300_000 + "0]}}"
    yield "letters", '{"format":1,"layers":{' + ",".join(f'"{i}":0' for i in range(100_000)) + "}}"
    yield "numbers", '{"format":1,"layers":{},"aliases":[' + "1234," * 200_000 + "0]}"
    yield "wide", '{"format":1,"layers":{"' + "a" * 1_000_000 + "\N{GRINNING FACE}" + '":3}}'
    tensors = {f"{i:x}": ["bool", [0], 0] for i in range(5_000)}
    header = {"format": 1, "layers": {}, "aliases": {}, "tensors": tensors}
    yield "empty tensors", with_checksum(header)
    aliases = {f"{i:x}": "a" for i in range(10_000)}
    yield (
        "aliases",
        with_checksum(
            {"format": 1, "layers": {}, "aliases": aliases, "tensors": {"a": ["bool", [0], 0]}}
        ),
    )


@pytest.mark.parametrize("text", [text for _, text in texts()], ids=[name for name, _ in texts()])
def test_a_header_is_not_made_into_more_than_its_bytes_allow(text: str, tmp_path: Path) -> None:
    packed, path = zlib.compress(text.encode(), 9), tmp_path / "m.vq"
    data = torch.frombuffer(bytearray(packed), dtype=torch.uint8)
    pointer = json.dumps({"format": 1, "header": len(packed)}, separators=(",", ":"))
    path.write_bytes(save({"data": data}, {"vq_plugin": pointer}))
    assert_cheap(path, lambda: read_all(path, model()), "compact")
    path.write_bytes(save({"x": torch.zeros(1)}, {"vq_plugin": text}))
    assert_cheap(path, lambda: read_all(path, model()), "readable")


def test_a_scheme_that_a_terminal_would_obey_is_refused(small_file: Path, tmp_path: Path) -> None:
    header, tensors = contents(small_file)
    header["layers"]["0"]["scheme"] = "km(k=4)\x1b[2J"
    (tmp_path / "m.vq").write_bytes(sealed(header, tensors))
    with pytest.raises(vq.CheckpointError, match="cannot be"):
        vq.open_file(tmp_path / "m.vq")


@pytest.mark.parametrize("zeros", [0.99, 0.999])
def test_layers_that_are_nearly_empty_open_without_their_model(
    zeros: float, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3000, 3000, bias=False)
    with torch.no_grad():
        layer.weight *= torch.rand(3000, 3000) > zeros
    small = vq.compress(layer, vq.KM(k=4, keep_zeros=True))
    size = vq.save(small, tmp_path / "m.vq")
    assert size < layer.weight.numel() / (50 if zeros < 0.995 else 500)
    weight = vq.open_file(tmp_path / "m.vq").layers[""].decode()
    assert torch.equal(weight, small.weight)


def test_equal_weights_open_without_their_model(tmp_path: Path) -> None:
    layer = nn.Linear(2000, 2000, bias=False)
    nn.init.zeros_(layer.weight)
    assert vq.save(vq.compress(layer, vq.KM(k=4)), tmp_path / "m.vq") < 1000
    assert not vq.open_file(tmp_path / "m.vq").layers[""].decode().any()
