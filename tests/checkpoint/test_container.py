"""The dense layout: when it is written, what it saves, and that it cannot be made to lie."""

import copy
import os
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import vq_plugin as vq
from tests.checkpoint.forging import contents, dense
from vq_plugin.checkpoint import read_header
from vq_plugin.checkpoint.file import _stored
from vq_plugin.checkpoint.opened import open_file
from vq_plugin.format.container import to_bytes
from vq_plugin.format.dense import DICTIONARY
from vq_plugin.format.header import Header


def layout(path: Path) -> tuple[bool, float]:
    """Whether a file is dense, and the share of it that is readable text."""
    content = path.read_bytes()
    with safe_open(path, "pt") as file:
        short = file.metadata()["vq_plugin"].startswith("1,")
    return short, (8 + int.from_bytes(content[:8], "little")) / len(content)


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


@pytest.mark.parametrize(("width", "short"), [(32, True), (512, True), (2048, False)])
def test_a_header_is_readable_where_that_takes_a_thousandth(
    width: int, short: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(width, width)
    small = vq.compress(layer, vq.KM(k=16))
    size = vq.save(small, tmp_path / "m.vq", rest="float16")
    assert layout(tmp_path / "m.vq")[0] == short
    assert short or layout(tmp_path / "m.vq")[1] <= 0.001
    # What the readable header of a layer takes.
    assert (size < 1000 * 700) == short
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


def test_the_dictionary_is_that_of_the_page_and_never_changes() -> None:
    page = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    lines = page.partition("### Dictionary")[2].split("```")[1].splitlines()[1:]
    assert "".join(lines).encode() == DICTIONARY
    assert (len(DICTIONARY), zlib.crc32(DICTIONARY)) == (1491, 3102402416)


def norms() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv1d(4, 4, 3), nn.BatchNorm1d(4), nn.ReLU()] * 3
    return nn.Sequential(*copy.deepcopy(layers)).eval()


def test_biases_of_a_byte_that_are_mostly_zero_take_next_to_nothing(tmp_path: Path) -> None:
    layer = nn.Linear(16, 2000)
    with torch.no_grad():
        layer.bias[20:] = 0
    small = vq.compress(layer, vq.KM(k=2))
    size = vq.save(small, tmp_path / "m.vq", rest="int8")
    assert layout(tmp_path / "m.vq")[0]
    with torch.no_grad():
        small.bias.zero_()
    assert size < vq.save(small, tmp_path / "zeros.vq", rest="int8") + 80
    assert read_header(tmp_path / "m.vq")[1]["bias"] == 2000


def test_counts_of_batches_take_next_to_nothing_and_come_back(tmp_path: Path) -> None:
    model = norms()
    for norm in (model[1], model[4], model[7]):
        norm.num_batches_tracked.fill_(123_456_789)
    small = vq.compress(model, vq.KM(k=4))
    size = vq.save(small, tmp_path / "m.vq")
    again = vq.load(tmp_path / "m.vq", norms())
    assert int(again[4].num_batches_tracked) == 123_456_789  # type: ignore[index, union-attr]
    for norm in (model[1], model[4], model[7]):
        norm.num_batches_tracked.zero_()
    assert size < vq.save(vq.compress(model, vq.KM(k=4)), tmp_path / "m.vq") + 16


def test_more_numbers_than_the_bytes_allow_are_refused(tmp_path: Path) -> None:
    path, zeros = tmp_path / "m.vq", (1 << 22) + (1 << 20)
    value = nn.Parameter(torch.zeros(zeros))
    tensors = {"a": (_stored("a", value.char())[0]._replace(rounded="float32", exponent=-126),
                     np.zeros(zeros, np.uint8))}  # fmt: skip
    path.write_bytes(to_bytes(Header(), tensors))
    # It is written without being coded.
    assert path.stat().st_size > zeros
    assert not open_file(path).tensors["a"].any()
    header, body = contents(path)[0], np.zeros(zeros, np.uint8).tobytes()
    path.write_bytes(dense(header, body))
    assert path.stat().st_size < 1000
    with pytest.raises(vq.CheckpointError, match="whole numbers in a file of"):
        open_file(path)


def test_damage_anywhere_in_a_dense_file_is_seen_when_it_is_opened(tmp_path: Path) -> None:
    small = vq.compress(norms(), vq.KM(k=4))
    vq.save(small, tmp_path / "m.vq", rest="int8")
    content = bytearray((tmp_path / "m.vq").read_bytes())
    content[-1] ^= 1
    (tmp_path / "m.vq").write_bytes(content)
    with pytest.raises(vq.CheckpointError, match="the checksum of the whole file differs"):
        open_file(tmp_path / "m.vq")


CHANGED = """\
import os, shutil, sys
import vq_plugin as vq
from vq_plugin.reader import open_file

for opened in (vq.open_file, open_file):
    for change in ("cut", "written over", "replaced", "removed"):
        for name in ("small", "large"):
            shutil.copyfile(f"{name}.vq", "m.vq")
            layer = opened("m.vq").layers[""]
            if change == "cut":
                os.truncate("m.vq", os.path.getsize("m.vq") // 2)
            elif change == "written over":
                shutil.copyfile(f"other_{name}.vq", "m.vq")
            elif change == "replaced":
                shutil.copyfile(f"other_{name}.vq", "new.vq")
                os.replace("new.vq", "m.vq")
            else:
                os.remove("m.vq")
            try:
                weight = layer.decode()
            except vq.CheckpointError as error:
                print(opened.__module__, change, name, str(error).replace("\\n", " "))
            else:
                expected = vq.open_file(f"{name}.vq").layers[""].decode()
                same = (weight == (expected if opened is vq.open_file else expected.numpy())).all()
                print(opened.__module__, change, name, "same" if same else "other values")
"""


def test_a_file_that_changes_while_it_is_open_is_the_same_or_an_error(tmp_path: Path) -> None:
    """In a process of its own: what is mapped and then cut ends it by a signal."""
    for name, width in (("small", 64), ("large", 1200)):
        for other in ("", "other_"):
            layer = nn.Linear(width, width)
            vq.save(vq.compress(layer, vq.KM(k=16)), tmp_path / f"{other}{name}.vq")
        assert layout(tmp_path / f"{name}.vq")[0] == (name == "small")
    done = subprocess.run(
        [sys.executable, "-c", CHANGED],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * 4 * 2
    for line in lines:
        if "large" in line and line.split()[1] in ("cut", "written"):
            assert "m.vq: tensor 'codes'" in line or "m.vq: tensor 'codebooks'" in line
        else:
            assert line.endswith(" same")


class Named(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)
        self.register_parameter("__metadata__", nn.Parameter(torch.arange(3.0)))


@pytest.mark.parametrize("width", [32, 1200])
def test_what_safetensors_calls_its_metadata_may_be_a_parameter(width: int, tmp_path: Path) -> None:
    vq.save(vq.compress(Named(width), vq.KM(k=16)), tmp_path / "m.vq")
    again = vq.load(tmp_path / "m.vq", Named(width))
    assert again.get_parameter("__metadata__").tolist() == [0, 1, 2]
    assert layout(tmp_path / "m.vq")[0]
