"""The dense layout: when it is written, what it saves, and that it cannot be made to lie."""

import json
import tracemalloc
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.checkpoint import read_header
from vq_plugin.checkpoint.file import _stored
from vq_plugin.checkpoint.opened import open_file
from vq_plugin.format.container import to_bytes
from vq_plugin.format.header import Header


def layout(path: Path) -> tuple[bool, float]:
    """Whether a file is dense, and the share of it that is readable text."""
    content = path.read_bytes()
    with safe_open(path, "pt") as file:
        dense = file.metadata()["vq_plugin"].startswith("1,")
    return dense, (8 + int.from_bytes(content[:8], "little")) / len(content)


def test_many_small_tensors_take_little_more_than_their_bytes(tmp_path: Path) -> None:
    layers = [nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)) for _ in range(40)]
    small = vq.compress(nn.Sequential(*layers), vq.KM(k=5))
    size = vq.save(small, tmp_path / "m.vq", rest="float16")
    header, sizes = read_header(tmp_path / "m.vq")
    assert len(sizes) == 40 * 8
    assert size < sum(sizes.values()) + 3 * len(sizes) + 300
    again = vq.load(tmp_path / "m.vq", nn.Sequential(*layers)).state_dict()
    assert list(again) == list(small.state_dict())
    assert any(kind.rounded for kind in header.tensors.values())


@pytest.mark.parametrize(("width", "dense"), [(32, True), (128, True), (512, False)])
def test_a_header_is_readable_where_that_takes_one_percent(
    width: int, dense: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(width, width)
    small = vq.compress(layer, vq.KM(k=16))
    size = vq.save(small, tmp_path / "m.vq", rest="float16")
    assert layout(tmp_path / "m.vq")[0] == dense
    assert dense or layout(tmp_path / "m.vq")[1] <= 0.01
    # What the readable header of a layer takes.
    assert (size < 100 * 700) == dense
    loaded = vq.load(tmp_path / "m.vq", layer)
    assert torch.equal(loaded.codes, small.codes)  # type: ignore[arg-type]


DTYPES = [
    *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.int8, torch.int16),
    *(torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.float8_e4m3fn, torch.float8_e5m2),
]


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), st.text(max_size=5)
        ),
        min_size=1,
    )
)
def test_tensors_of_any_dtype_and_shape_come_back(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[torch.dtype, list[int], str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.vq"
    tensors = {
        f"{i}{name}": (torch.arange(torch.Size(shape).numel()) % 2).reshape(shape).to(dtype)
        for i, (dtype, shape, name) in enumerate(kinds)
    }
    content = to_bytes(Header(), {key: _stored(key, value) for key, value in tensors.items()})
    path.write_bytes(content)
    again = dict(open_file(path).tensors)
    assert again.keys() == tensors.keys()
    for key, value in tensors.items():
        assert (again[key].dtype, again[key].shape) == (value.dtype, value.shape)
        assert torch.equal(
            again[key].flatten().view(torch.uint8), value.flatten().view(torch.uint8)
        )
    plain = save_size({key: value.contiguous() for key, value in tensors.items()}, path)
    assert len(content) <= plain + 300


def save_size(tensors: dict[str, Tensor], path: Path) -> int:
    save_file(tensors, path)
    return path.stat().st_size


@pytest.mark.parametrize("fill", [b" ", b"[", b'{"a":'], ids=str)
def test_a_header_that_grows_without_end_is_refused_before_it_does(
    fill: bytes, tmp_path: Path
) -> None:
    bomb = zlib.compress(fill * (200_000_000 // len(fill)), 9)
    data = torch.frombuffer(bytearray(bomb), dtype=torch.uint8)
    save_file(
        {"data": data}, tmp_path / "m.vq", {"vq_plugin": f'{{"format":1,"header":{len(bomb)}}}'}
    )
    tracemalloc.start()
    with pytest.raises(vq.CheckpointError, match=r"m\.vq: .*the header is damaged"):
        vq.load(tmp_path / "m.vq", nn.Linear(3, 3))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # 64 times as much, and a copy of it; not the 200 MB.
    assert peak < 140 * len(bomb) + 1_000_000


@pytest.mark.parametrize(
    "tensors",
    [
        {"other": torch.zeros(9, dtype=torch.uint8)},
        {"data": torch.zeros(9, dtype=torch.uint8), "x": torch.zeros(1)},
        {"data": torch.zeros(9, dtype=torch.int8)},
        {"data": torch.zeros(3, 3, dtype=torch.uint8)},
        {"data": torch.zeros(3, dtype=torch.uint8)},
    ],
)
def test_a_file_without_its_one_tensor_of_bytes_is_refused(
    tensors: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "m.vq", {"vq_plugin": '{"format":1,"header":9}'})
    with pytest.raises(vq.CheckpointError, match=r"m\.vq: .*(one tensor|header)"):
        vq.load(tmp_path / "m.vq", nn.Linear(3, 3))
