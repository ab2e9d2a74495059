"""ONNX files: what they compute in ONNX Runtime, what they hold, and what is refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

import vq_plugin as vq

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from vq_plugin.export.onnx import OPSETS  # noqa: E402


class Tokens(nn.Module):
    """A table, and a head that may be tied to it."""

    def __init__(self, *, tied: bool = False, padding: int | None = None) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 12, padding_idx=padding)
        self.head = nn.Linear(12, 40, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.head(self.table(tokens))
        return output


def session(path: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def outputs(path: Path, *inputs: Tensor) -> list[np.ndarray]:
    ran = session(path)
    names = [each.name for each in ran.get_inputs()]
    return ran.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})  # type: ignore[no-any-return]


def check_same(model: nn.Module, path: Path, *inputs: Tensor) -> None:
    with torch.no_grad():
        expected = [each.numpy() for each in tree_leaves(model(*inputs)) if each is not None]
    found = outputs(path, *inputs)
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()


class Parallel(nn.Module):
    """Layers that all get the input, each in a shape of its own: many cases in one file."""

    def __init__(self, layers: dict[str, nn.Module], shaped: Any = None) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.shaped = shaped or {}

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(self.shaped.get(n, lambda x: x)(x)) for n, layer in self.layers.items()]


SCHEMES = {
    "padded": "km(k=5,scale=row)",
    "two_bytes": "km(k=300)",
    "groups": "km(k=16,group=5,codebook_dtype=int8)",
    "one_center": "km(k=1)",
    "binary": "binary()",
    "uniform": "uniform(k=16)",
    "inputs": "pq(k=16,dim=4,codebook_dtype=bfloat16)",
    "outputs": "pq(k=32,dim=8,codebook_dtype=int8,axis=out)",
    "shared": "pq(k=4,dim=4,codebooks=tensor,codebook_dtype=float32)",
    "stages": "rq(k=8,stages=3,dim=7)",
}


def test_every_scheme_runs_in_onnx_runtime(tmp_path: Path) -> None:
    # 30 and 50 are no multiples of a sub-vector, nor of a byte of codes.
    model = Parallel({name: nn.Linear(30, 50) for name in SCHEMES})
    schemes = {f"layers.{name}": vq.parse_scheme(text) for name, text in SCHEMES.items()}
    small = vq.compress(model, schemes)
    vq.export_onnx(small, tmp_path / "m.onnx", torch.randn(2, 30))
    check_same(small, tmp_path / "m.onnx", torch.randn(7, 30))


@pytest.mark.parametrize("opset", [OPSETS[0], OPSETS[-1]])
def test_codes_have_no_gaps_in_any_opset(tmp_path: Path, opset: int) -> None:
    centers = (2, 4, 16, 128)
    model = Parallel({f"{k}": nn.Linear(96, 128) for k in centers})
    small = vq.compress(model, {f"layers.{k}": vq.KM(k=k) for k in centers})
    vq.export_onnx(small, tmp_path / "m.onnx", torch.randn(2, 96), opset=opset)
    check_same(small, tmp_path / "m.onnx", torch.randn(3, 96))
    graph = onnx.load(tmp_path / "m.onnx")
    assert [each.version for each in graph.opset_import if each.domain == ""] == [opset]
    for k in centers:
        start = f"layers.{k}.weight.codes"
        codes = [each for each in graph.graph.initializer if each.name.startswith(start)]
        bits = (k - 1).bit_length()
        assert sum(len(each.raw_data) for each in codes) == bits * 96 * 128 // 8
        if opset >= 25 and k in (4, 16):
            kind = onnx.TensorProto.UINT2 if k == 4 else onnx.TensorProto.UINT4
            assert [each.data_type for each in codes] == [kind]


@pytest.mark.parametrize("layout", ["flat", "channels"])
def test_convolutions(tmp_path: Path, layout: Any) -> None:
    layers: dict[str, nn.Module] = {
        "line": nn.Conv1d(10, 16, 3, padding=1),
        "grouped": nn.Conv2d(10, 16, 3, stride=2, groups=2),
        "space": nn.Conv3d(10, 8, (3, 3, 1), padding="same"),
        "1x1": nn.Conv2d(10, 16, 1),
        "reflecting": nn.Conv2d(10, 16, 3, padding=1, padding_mode="reflect"),
    }
    shaped = {"line": lambda x: x[..., 0], "space": lambda x: x.unsqueeze(-1)}
    small = vq.compress(Parallel(layers, shaped), vq.PQ(k=16, dim=4, layout=layout))
    vq.export_onnx(small, tmp_path / "m.onnx", torch.randn(3, 10, 5, 5))
    check_same(small, tmp_path / "m.onnx", torch.randn(5, 10, 5, 5))


MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lstm": (lambda: nn.LSTM(10, 12, batch_first=True, bidirectional=True), (3, 7, 10)),
    "gru": (lambda: nn.GRU(10, 12, batch_first=True), (3, 7, 10)),
    "attention": (lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (3, 7, 16)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 8, 3, stride=2, groups=2), (3, 6, 5, 5)),
    "parametrized": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(20, 9)), (3, 20)),
    "normed": (
        lambda: nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten()),
        (3, 3, 6, 6),
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(tmp_path: Path, name: str) -> None:
    make, shape = MODULES[name]
    small = vq.compress(make().eval(), vq.PQ(k=16, dim=4))
    vq.export_onnx(small, tmp_path / "m.onnx", torch.randn(shape))
    check_same(small, tmp_path / "m.onnx", torch.randn(5, *shape[1:]))


@pytest.mark.parametrize(
    ("scheme", "padding"),
    [("pq(k=16,dim=4)", 3), ("rq(k=16,stages=2,dim=3,axis=out,scale=row)", None)],
)
def test_tables_look_up_rows_of_codes(tmp_path: Path, scheme: str, padding: int | None) -> None:
    small = vq.compress(Tokens(padding=padding), vq.parse_scheme(scheme))
    tokens = torch.randint(40, (3, 6))
    tokens[0, 0] = 3
    vq.export_onnx(small, tmp_path / "m.onnx", tokens)
    check_same(small, tmp_path / "m.onnx", tokens[:2])


def test_a_bare_table(tmp_path: Path) -> None:
    small = vq.compress(nn.Embedding(40, 12), vq.KM(k=16, scale="row"))
    tokens = torch.randint(40, (3, 6))
    vq.export_onnx(small, tmp_path / "m.onnx", tokens)
    check_same(small, tmp_path / "m.onnx", tokens[:2])


def test_tables_are_never_decoded(tmp_path: Path) -> None:
    """Not in memory either: no value of an optimized session is as large as the table."""
    small = vq.compress(
        nn.Sequential(nn.Embedding(512, 64)), vq.PQ(k=16, dim=4, codebooks="tensor")
    )
    vq.export_onnx(small, tmp_path / "m.onnx", torch.zeros(2, 3, dtype=torch.int64))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(tmp_path / "m.onnx", options, providers=["CPUExecutionProvider"])
    assert (tmp_path / "optimized.onnx").stat().st_size < 512 * 64 * 4 / 4


def test_bags(tmp_path: Path) -> None:
    small = vq.compress(nn.EmbeddingBag(40, 12, mode="sum", padding_idx=1), vq.KM(k=16))
    tokens = torch.randint(40, (3, 6))
    tokens[0, 0] = 1
    vq.export_onnx(small, tmp_path / "m.onnx", tokens, dynamic_batch=False)
    check_same(small, tmp_path / "m.onnx", tokens)


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    small = vq.compress(Tokens(tied=True), vq.PQ(k=16, dim=4))
    tokens = torch.randint(40, (3, 6))
    vq.export_onnx(small, tmp_path / "m.onnx", tokens)
    check_same(small, tmp_path / "m.onnx", tokens)
    names = [each.name for each in onnx.load(tmp_path / "m.onnx").graph.initializer]
    assert sum(name.endswith(".codes") for name in names) == 1


def test_hooks_and_the_model_stay(tmp_path: Path) -> None:
    small = vq.compress(nn.Sequential(nn.Linear(8, 8), nn.Dropout()), vq.KM(k=4))
    small[0].register_forward_hook(lambda module, inputs, output: output * 2)
    state = {name: value.clone() for name, value in small.state_dict().items()}
    vq.export_onnx(small, tmp_path / "m.onnx", torch.randn(1, 8))
    assert small.training
    assert all(torch.equal(state[name], value) for name, value in small.state_dict().items())
    check_same(small.eval(), tmp_path / "m.onnx", torch.randn(4, 8))


def test_files_are_deterministic_and_name_no_place(tmp_path: Path) -> None:
    small = vq.compress(nn.Sequential(nn.Linear(8, 8)), vq.KM(k=4))
    for name in ("a", "b"):
        vq.export_onnx(small, tmp_path / name, torch.randn(1, 8))
    data = (tmp_path / "a").read_bytes()
    assert data == (tmp_path / "b").read_bytes()
    assert b".py" not in data


def test_examples_by_name_and_of_several_inputs(tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 4)

        def forward(self, one: Tensor, *, other: Tensor | None = None) -> Tensor:
            assert other is not None
            output: Tensor = self.fc(one + other)
            return output

    small = vq.compress(Two(), vq.KM(k=4))
    one, other = torch.randn(5, 8), torch.randn(5, 8)
    vq.export_onnx(small, tmp_path / "m.onnx", {"one": one[:1], "other": other[:1]})
    (found,) = session(tmp_path / "m.onnx").run(None, {"one": one.numpy(), "other": other.numpy()})
    assert np.allclose(found, small(one, other=other).detach().numpy(), atol=1e-6)


class FixedBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc(x).reshape(3, 4)
        return output


class Eigenvalues(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x @ x.mT)


def linear() -> nn.Module:
    return vq.compress(nn.Linear(8, 4), vq.KM(k=4))


X = torch.zeros(3, 8)


@pytest.mark.parametrize(
    ("model", "example", "options", "message"),
    [
        (linear, X, {"opset": 17}, "opset 17: it can be one of 18 to 25"),
        (linear, X, {"operator": "fast"}, "operator 'fast'"),
        (lambda: nn.Linear(8, 4), X, {}, "no codebook weights: compress it first"),
        (
            lambda: torch.export.export(linear().eval(), (X,)).module(),
            X,
            {},
            "an exported graph has no layers",
        ),
        (linear, (), {}, "the example has no tensor: give inputs that the model can"),
        (linear, X.numpy(), {}, "no tensor: a NumPy array is no tensor: make one .*from_numpy"),
        (linear, [X.numpy()], {}, "no tensor: a NumPy array is no tensor"),
        (linear, iter([X]), {}, "no tensor: an iterator gives batches: take one"),
        (linear, DataLoader(X), {}, "no tensor: a DataLoader gives batches: take one"),
        (linear, X[:0], {}, r"no sample: a tensor has shape \(0, 8\)"),
        (linear, X[:0], {"dynamic_batch": False}, r"no sample: a tensor has shape \(0, 8\)"),
        (linear, X[:, :5], {}, "does not run on the example"),
        (linear, (X, X[:2]), {}, "no first size in common"),
        (linear, (X, X), {}, "does not run on the example"),
        (lambda: vq.compress(FixedBatch(), vq.KM(k=4)), X, {}, "pass dynamic_batch=False"),
        (
            lambda: vq.compress(nn.Sequential(nn.Linear(8, 8), Eigenvalues()), vq.KM(k=4)),
            X,
            {},
            re.escape("_linalg_eigh") + ".*in '1'",
        ),
        (
            lambda: vq.compress(nn.Sequential(nn.LSTM(8, 6, proj_size=2)), vq.KM(k=4)),
            X,
            {"dynamic_batch": False},
            "layer '0': ONNX has no LSTM with a projection",
        ),
    ],
)  # fmt: skip
def test_bad_input_leaves_the_old_file(
    tmp_path: Path, model: Callable[[], nn.Module], example: Any, options: Any, message: str
) -> None:
    (tmp_path / "m.onnx").write_text("old")
    with pytest.raises(ValueError, match=message):
        vq.export_onnx(model(), tmp_path / "m.onnx", example, **options)
    assert [each.name for each in tmp_path.iterdir()] == ["m.onnx"]
    assert (tmp_path / "m.onnx").read_text() == "old"


def test_a_model_of_one_batch_is_refused_on_one_line(tmp_path: Path) -> None:
    """torch.export's own words go on for a page."""
    small = vq.compress(FixedBatch(), vq.KM(k=4))
    with pytest.raises(ValueError, match=r"torch\.export says: ") as caught:
        vq.export_onnx(small, tmp_path / "m.onnx", X)
    assert "\n" not in str(caught.value)


def test_a_fixed_batch_is_written_as_such(tmp_path: Path) -> None:
    small = vq.compress(FixedBatch(), vq.KM(k=4))
    vq.export_onnx(small, tmp_path / "m.onnx", X, dynamic_batch=False)
    check_same(small, tmp_path / "m.onnx", torch.randn(3, 8))


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vq_plugin.export.extras.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=re.escape("pip install 'vq-plugin[onnx]'")):
        vq.export_onnx(linear(), tmp_path / "m.onnx", X)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="its folder does not exist"):
        vq.export_onnx(linear(), tmp_path / "no" / "m.onnx", X)
