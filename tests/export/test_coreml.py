"""Core ML packages: constants decoded by hand, and what is refused; prediction needs macOS."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.nn import coded_weights

ct = pytest.importorskip("coremltools")
from coremltools.converters.mil.frontend.milproto import load as milproto  # noqa: E402


def palettes(path: Path) -> list[np.ndarray]:
    """The palettes of a package as it lies on the disk, value by value as Apple documents them."""
    package = ct.models.MLModel(str(path), skip_model_load=True)
    spec = package.get_spec()
    program = milproto.load(
        spec, specification_version=spec.specificationVersion, file_weights_dir=package.weights_dir
    )
    found = []
    for operation in program.functions["main"].operations:
        if operation.op_type == "constexpr_lut_to_dense":
            if "shape" in operation.inputs:
                found.append(of_one_table(operation))
            else:
                axis = operation.vector_axis
                axis = 0 if axis is None else int(axis.val)
                found.append(of_tables(operation.indices.val, operation.lut.val, axis))
    return found


def of_tables(indices: np.ndarray, tables: np.ndarray, axis: int) -> np.ndarray:
    dim = tables.shape[-1]
    shape = [size * (dim if at == axis else 1) for at, size in enumerate(indices.shape)]
    values = np.empty(shape, np.float16)
    blocks = [size // count for size, count in zip(indices.shape, tables.shape, strict=False)]
    for place in itertools.product(*map(range, indices.shape)):
        table = tables[tuple(at // block for at, block in zip(place, blocks, strict=True))]
        for element in range(dim):
            to = [at * dim + element if a == axis else at for a, at in enumerate(place)]
            values[tuple(to)] = table[int(indices[place]), element]
    return values


def of_one_table(operation: Any) -> np.ndarray:
    table, shape = operation.lut.val, tuple(operation.shape.val)
    width = len(table).bit_length() - 1
    stream = np.unpackbits(operation.indices.val.astype(np.uint8), bitorder="little")
    count = int(np.prod(shape))
    bits = stream[: count * width].reshape(count, width)
    return table[(bits << np.arange(width)).sum(1)].reshape(shape)  # type: ignore[no-any-return]


def check_palettes(small: nn.Module, path: Path) -> None:
    """Every coded weight is a palette with its bits."""
    found = palettes(path)
    weights = [coded.codebook_weight.decode().half() for coded in coded_weights(small).values()]
    assert len(found) == len(weights)
    for weight in weights:
        same = [other for other in found if other.shape == tuple(weight.shape)]
        assert any(np.array_equal(weight.numpy().view(np.uint16), o.view(np.uint16)) for o in same)


SCHEMES = {
    "iOS16": ["km(k=5)", "binary()"],
    "iOS17": ["km(k=16)"],
    "iOS18": [
        "km(k=5)",
        "km(k=20,group=3)",
        "pq(k=16,dim=4,layout=channels)",
        "pq(k=12,dim=4,axis=out,codebook_dtype=int8)",
        "pq(k=4,dim=2,codebooks=tensor,layout=channels)",
    ],
}


class Parallel(nn.Module):
    """A convolution and a linear layer for each of some schemes."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(4, 8, 3) for _ in range(count))
        self.linear = nn.ModuleList(nn.Linear(32, 12) for _ in range(count))
        # One that would move the weights of a convolution if it were folded into them.
        self.norm = nn.BatchNorm2d(8)
        nn.init.uniform_(self.norm.weight, 0.5, 2)

    def forward(self, x: Tensor) -> list[Tensor]:
        places = [self.norm(convolve(x)).relu().flatten(1) for convolve in self.convolutions]
        return [layer(each) for layer, each in zip(self.linear, places, strict=True)]


@pytest.mark.parametrize("target", SCHEMES)
def test_palettes_have_the_bits_of_decoded_weights(tmp_path: Path, target: Any) -> None:
    texts = SCHEMES[target]
    schemes: dict[Any, Any] = {}
    for at, text in enumerate(texts):
        schemes[rf"re:(convolutions|linear)\.{at}"] = vq.parse_scheme(text)
    small = vq.compress(Parallel(len(texts)).eval(), schemes)
    vq.export_coreml(small, tmp_path / "m.mlpackage", torch.randn(1, 4, 4, 4), target=target)
    check_palettes(small, tmp_path / "m.mlpackage")


def test_weights_are_as_small_as_their_codes(tmp_path: Path) -> None:
    small = vq.compress(nn.Linear(512, 256), vq.PQ(k=16, dim=4, codebooks="tensor"))
    vq.export_coreml(small, tmp_path / "m.mlpackage", torch.zeros(1, 512))
    (weights,) = (tmp_path / "m.mlpackage").rglob("weight.bin")
    assert weights.stat().st_size <= 1.25 * vq.summary(small).nbytes


def test_tables_of_embeddings_are_palettes(tmp_path: Path) -> None:
    small = vq.compress(nn.Sequential(nn.Embedding(40, 16)), vq.PQ(k=16, dim=4))
    vq.export_coreml(small, tmp_path / "m.mlpackage", torch.zeros(1, 3, dtype=torch.int32))
    check_palettes(small, tmp_path / "m.mlpackage")


X = torch.zeros(1, 8)


def linear(scheme: str) -> Callable[[], nn.Module]:
    return lambda: vq.compress(nn.Sequential(nn.Linear(8, 6)), vq.parse_scheme(scheme))


@pytest.mark.parametrize(
    ("model", "example", "options", "message"),
    [
        (linear("km(k=4)"), X, {"target": "iOS15"}, "target 'iOS15': it can be iOS16"),
        (linear("rq(k=4,stages=2,dim=4)"), X, {}, "layer '0': .*use KM or PQ"),
        (linear("km(k=4,scale=row)"), X, {}, "layer '0': .*use scale=None"),
        (linear("km(k=4,codebook_dtype=float32)"), X, {}, "use codebook_dtype='float16'"),
        (linear("pq(k=4,dim=3)"), X, {}, "do not divide 8 inputs; use dim=2"),
        (linear("pq(k=4,dim=4)"), X, {"target": "iOS16"}, "layer '0': .*use KM"),
        (
            lambda: vq.compress(nn.Sequential(nn.Conv2d(4, 8, 3)), vq.PQ(k=4, dim=4)),
            torch.zeros(1, 4, 4, 4),
            {},
            "layer '0': .*use layout='channels' or axis='out'",
        ),
        (
            lambda: vq.compress(nn.Sequential(nn.LSTM(8, 6)), vq.KM(k=4)),
            torch.zeros(2, 1, 8),
            {"dynamic_batch": False},
            "Core ML cannot express the model: .*lstm",
        ),
        (lambda: nn.Linear(8, 4), X, {}, "no codebook weights"),
    ],
)
def test_bad_input_leaves_the_old_package(
    tmp_path: Path, model: Callable[[], nn.Module], example: Any, options: Any, message: str
) -> None:
    package = tmp_path / "m.mlpackage"
    package.mkdir()
    (package / "old").touch()
    with pytest.raises(ValueError, match=message):
        vq.export_coreml(model(), package, example, **options)
    assert [each.name for each in tmp_path.rglob("*")] == ["m.mlpackage", "old"]


def test_packages_are_replaced_whole(tmp_path: Path) -> None:
    package = tmp_path / "m.mlpackage"
    package.mkdir()
    (package / "old").touch()
    vq.export_coreml(linear("km(k=4)")(), package, X)
    assert not (package / "old").exists()
    assert [each.name for each in tmp_path.iterdir()] == ["m.mlpackage"]


def test_the_program_has_one_order(tmp_path: Path) -> None:
    """Maps of a protocol buffer may be written in any: equal models would be unequal files."""
    small = vq.compress(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)), vq.KM(k=4))
    for name in ("one", "two"):
        vq.export_coreml(small, tmp_path / f"{name}.mlpackage", torch.randn(2, 16))
    one, two = (next((tmp_path / f"{n}.mlpackage").rglob("*.mlmodel")) for n in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString(one.read_bytes())
    assert one.read_bytes() == spec.SerializeToString(deterministic=True)


def test_names_of_packages(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.mlpackage"):
        vq.export_coreml(linear("km(k=4)")(), tmp_path / "m.onnx", X)


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vq_plugin.export.extras.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'vq-plugin\[coreml\]'"):
        vq.export_coreml(linear("km(k=4)")(), tmp_path / "m.mlpackage", X)
