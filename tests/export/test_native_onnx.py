"""Files whose codebook layers are operators of the library, and run without it as well."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from tests.export.reading import Attention, Functions, Tied, coded
from vq_plugin.nn import coded_weights

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


class Net(nn.Module):
    """Layers with a kernel, and some that have none."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 8)
        self.first = nn.Conv2d(8, 16, 3, padding=1)
        self.pointwise = nn.Conv2d(16, 24, 1, stride=2)
        self.flat = nn.Conv2d(24, 8, 3, groups=2)
        self.wide = nn.Linear(8, 40)
        self.again = nn.Linear(8, 40, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        image = self.words(words).movedim(-1, 1)
        features = self.flat(self.pointwise(self.first(image).relu()).relu())
        places = features.flatten(2).mT
        result: Tensor = self.wide(places) + self.again(places)
        return result


CHANNELS = vq.PQ(k=16, dim=3, layout="channels")


@pytest.fixture
def words() -> Tensor:
    return torch.randint(20, (2, 8, 8), generator=torch.Generator().manual_seed(0))


def session(path: Path, *, native: bool) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if native:
        options.register_custom_ops_library(vq.onnxruntime_library())
    return onnxruntime.InferenceSession(path, options)


def close(found: np.ndarray, expected: Tensor) -> bool:
    return bool(np.abs(found - expected.numpy()).max() <= 1e-5 * expected.abs().max())


@pytest.mark.parametrize(
    "scheme",
    [
        vq.PQ(k=16, dim=3, axis="out", scale="row"),
        vq.RQ(k=40, stages=2, dim=4, codebook_dtype="int8"),
        vq.KM(k=7, group=3, codebook_dtype="bfloat16"),
    ],
    ids=str,
)
def test_one_file_runs_with_the_library_and_without(
    scheme: vq.Scheme, words: Tensor, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    small = vq.compress(Net().eval(), {"first": CHANNELS, "*": scheme})
    path = tmp_path / "small.onnx"
    vq.export_onnx(small, path, words, operator="native")
    operators = [node.op_type for node in onnx.load(path).graph.node if node.domain]
    table = [] if getattr(scheme, "axis", "in") == "out" else ["CodebookEmbedding"]
    assert operators == [*table, "CodebookConv", *["CodebookLinear"] * 3]
    more = words.flip(0).repeat(3, 1, 1)
    for native in (True, False):
        one = session(path, native=native)
        for batch in (words, more):
            (found,) = one.run(None, {"words": batch.numpy()})
            with torch.no_grad():
                assert close(found, small(batch)), native


def test_codes_are_in_the_file_once_and_in_four_bits(words: Tensor, tmp_path: Path) -> None:
    model = Net().eval()
    model.again.weight = model.wide.weight
    small = vq.compress(model, vq.PQ(k=16, dim=4))
    vq.export_onnx(small, tmp_path / "small.onnx", words, operator="native")
    written = onnx.load(tmp_path / "small.onnx")
    kinds = {each.name: each.data_type for each in written.graph.initializer}
    assert kinds["wide.codes"] == kinds["pointwise.codes"] == onnx.TensorProto.UINT4
    assert kinds["words.rows"] == onnx.TensorProto.UINT4
    assert not any(name.startswith("again") for name in kinds)
    # One for every shape, with a bias or without.
    assert len(written.functions) == 4


class Tables(nn.Module):
    """Rows of one table for each of some schemes."""

    schemes = (
        "km(k=3,scale=row)",
        "km(k=200,group=7)",
        "pq(k=16,dim=3)",
        "rq(k=20,stages=2,dim=5)",
    )

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(41, 14, 4 * (i % 2) or None) for i in range(4))

    def forward(self, rows: Tensor) -> list[Tensor]:
        return [table(rows) for table in self.tables]


def test_rows_of_tables_are_the_layers_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    schemes = {f"tables.{at}": scheme for at, scheme in enumerate(Tables.schemes)}
    small = vq.compress(Tables(), schemes).eval()
    path = tmp_path / "small.onnx"
    vq.export_onnx(small, path, torch.zeros(2, 3, dtype=torch.int32), operator="native")
    nodes = [node.op_type for node in onnx.load(path).graph.node if node.domain]
    assert nodes == ["CodebookEmbedding"] * 4
    rows = torch.randint(41, (5, 3), dtype=torch.int32)
    rows[0] = torch.tensor([40, 4, 0])
    for native in (True, False):
        one = session(path, native=native)
        with torch.no_grad():
            for found, expected in zip(
                one.run(None, {"rows": rows.numpy()}), small(rows), strict=True
            ):
                assert np.array_equal(found, expected.numpy())
        for row in (41, -42):
            with pytest.raises(Exception, match=r"no row|out of (data )?bounds"):
                one.run(None, {"rows": np.full((1, 3), row, np.int32)})


def test_a_table_that_a_linear_layer_has_too(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(40, 16), nn.Linear(16, 40, bias=False)).eval()
    model[1].weight = model[0].weight
    small = vq.compress(model, vq.PQ(k=16, dim=4))
    path = tmp_path / "small.onnx"
    vq.export_onnx(small, path, torch.zeros(2, 3, dtype=torch.int64), operator="native")
    rows = torch.randint(40, (4, 3))
    for native in (True, False):
        (found,) = session(path, native=native).run(None, {"input": rows.numpy()})
        with torch.no_grad():
            assert close(found, small(rows))


def test_layers_that_no_kernel_reads_are_portable(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    value = torch.randn(2, 640, generator=generator)
    model = nn.Sequential(nn.Linear(640, 640), nn.Linear(640, 8)).eval()
    small = vq.compress(model, {"0": vq.KM(k=300), "1": vq.KM(k=16)})
    vq.export_onnx(small, tmp_path / "small.onnx", value, operator="native")
    nodes = onnx.load(tmp_path / "small.onnx").graph.node
    assert sum(node.op_type == "CodebookLinear" for node in nodes) == 1
    (found,) = session(tmp_path / "small.onnx", native=True).run(None, {"input": value.numpy()})
    with torch.no_grad():
        assert close(found, small(value))


@pytest.mark.parametrize(
    ("model", "nodes"),
    [
        (Tied, ["CodebookLinear"]),
        (Functions, ["CodebookEmbedding", "CodebookLinear"]),
        (Attention, ["CodebookEmbedding", "CodebookLinear", "CodebookLinear"]),
    ],
)
def test_weights_that_are_read_beside_their_layer_are_portable(
    model: type[nn.Module], nodes: list[str], words: Tensor, tmp_path: Path
) -> None:
    small, rows = coded(model), words[:, 0]
    vq.export_onnx(small, tmp_path / "small.onnx", rows, operator="native")
    graph = onnx.load(tmp_path / "small.onnx").graph
    assert sorted(node.op_type for node in graph.node if node.domain) == nodes
    for native in (True, False):
        (found,) = session(tmp_path / "small.onnx", native=native).run(None, {"rows": rows.numpy()})
        with torch.no_grad():
            assert close(found, small(rows))


def test_precision_is_the_layers(tmp_path: Path) -> None:
    small = vq.compress(nn.Linear(64, 32).eval(), vq.PQ(k=16, dim=4))
    vq.set_precision(small, "fast")
    value = torch.randn(4, 64)
    vq.export_onnx(small, tmp_path / "small.onnx", value, operator="native")
    (found,) = session(tmp_path / "small.onnx", native=True).run(None, {"input": value.numpy()})
    (layer,) = coded_weights(small).values()
    operands = (layer._codes, layer.codebooks, None, layer.bias)
    with torch.no_grad():
        expected = vq.ops.codebook_linear(
            value, *operands, out_features=32, codebook_dtype=torch.float16, precision="fast"
        )
    assert np.array_equal(found, expected.numpy())


def test_files_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    small = vq.compress(nn.Linear(64, 32).eval(), vq.PQ(k=16, dim=4))
    for name in ("a", "b"):
        vq.export_onnx(small, tmp_path / name, torch.zeros(2, 64), operator="native")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_older_opsets_have_no_codes_of_four_bits(tmp_path: Path) -> None:
    small = vq.compress(nn.Linear(64, 32).eval(), vq.PQ(k=16, dim=4))
    with pytest.raises(ValueError, match="opset 20: native operators need 21 or later"):
        vq.export_onnx(small, tmp_path / "s", torch.zeros(1, 64), operator="native", opset=20)
    assert not (tmp_path / "s").exists()
