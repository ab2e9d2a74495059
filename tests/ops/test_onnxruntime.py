"""The operator library in real sessions of ONNX Runtime."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.ops.problems import Operands, operands
from tests.ops.test_codebook_conv import Problem, problems
from vq_plugin import ops
from vq_plugin.extension import onnxruntime_library

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from vq_plugin.export.native_onnx import add_definitions  # noqa: E402
from vq_plugin.schemes import Geometry  # noqa: E402

CSRC = Path(__file__).parent / "csrc"


def model_of(operator: str, at: Operands, attributes: dict[str, Any], **cut: Any) -> Any:
    """One node."""
    dtype = at.settings["codebook_dtype"]
    along_out = at.settings.get("along_out", False)
    codes = ops.pack_codes(at.codes, along_out=along_out) if at.packs else at.codes
    tensors = {
        "codes": codes,
        "codebooks": at.codebooks.to(dtype).float(),
        "scale": None if at.scale is None else at.scale.to(dtype).float(),
        "bias": at.bias,
    }
    constants = [
        numpy_helper.from_array(value.contiguous().numpy(), name)
        for name, value in tensors.items()
        if value is not None
    ]
    if at.packs:
        # Nibbles of a dword, the lowest first.
        constants[0].data_type = TensorProto.UINT4
        constants[0].dims.append(8)
    names = ["input", *(name if value is not None else "" for name, value in tensors.items())]
    while not names[-1]:
        names.pop()
    node = helper.make_node(operator, names, ["output"], domain="vq_plugin", **attributes)
    shape = [f"d{i}" for i in range(at.input.dim())]
    input = helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)
    graph = helper.make_graph([node], "graph", [input], [output], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("vq_plugin", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    stages, _, books, k, dim = at.codebooks.shape
    geometry = Geometry(
        dim=dim, stages=stages, group=at.settings.get("group"), shared=books == 1, k=k,
        scaled=at.scale is not None, **cut,
    )  # fmt: skip
    add_definitions(model, {"codes": geometry})
    return model


def linear_model(at: Operands, **changed: Any) -> Any:
    chosen = {
        "out_features": at.settings["out_features"],
        "along_out": int(at.settings["along_out"]),
        "group": at.settings["group"] or 0,
    }
    shape = (at.settings["out_features"], at.input.shape[-1])
    axis = "out" if at.settings["along_out"] else "in"
    return model_of("CodebookLinear", at, {**chosen, **changed}, shape=shape, axis=axis)


def conv_model(at: Problem) -> Any:
    chosen = at.settings
    attributes = {
        "out_channels": chosen["out_channels"],
        "kernel_shape": chosen["kernel_size"],
        "strides": chosen["stride"],
        "padding": chosen["padding"],
        "dilations": chosen["dilation"],
        "group": chosen["groups"],
    }
    channels = at.input.shape[1] // chosen["groups"]
    shape = (chosen["out_channels"], channels, *chosen["kernel_size"])
    return model_of("CodebookConv", at, attributes, shape=shape, axis="channels")


def session(model: Any, *, native: bool = True, threads: int = 1) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if native:
        options.register_custom_ops_library(onnxruntime_library())
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def run(one: Any, input: Tensor) -> np.ndarray:
    output: np.ndarray = one.run(None, {"input": np.ascontiguousarray(input.numpy())})[0]
    return output


def by_torch(at: Operands) -> np.ndarray:
    along_out = at.settings["along_out"]
    codes = ops.pack_codes(at.codes, along_out=along_out) if at.packs else at.codes
    # Torch's own operator takes inputs of other layouts.
    tensors = (at.input.contiguous(), codes, at.codebooks, at.scale, at.bias)
    return ops.codebook_linear(*tensors, **at.settings).numpy()


def layer(outputs: int, inputs: int, batch: int) -> Operands:
    generator = torch.Generator().manual_seed(0)
    chosen = {
        "out_features": outputs,
        "along_out": False,
        "group": None,
        "codebook_dtype": torch.float16,
    }
    return Operands(
        torch.randn(batch, inputs, generator=generator),
        torch.randint(16, (1, outputs, inputs // 4), generator=generator).to(torch.uint8),
        torch.randn(1, 1, inputs // 4, 16, 4, generator=generator),
        None,
        torch.randn(outputs, generator=generator),
        chosen,
    )


@settings(max_examples=60, deadline=None)
@given(operands())
def test_linear_layers_are_those_of_torch_bit_for_bit(at: Operands) -> None:
    expected = by_torch(at)
    found = run(session(linear_model(at)), at.input)
    assert found.shape == expected.shape
    assert np.array_equal(found, expected)


@settings(max_examples=60, deadline=None)
@given(operands())
def test_definitions_of_linear_layers_compute_the_same(at: Operands) -> None:
    model = linear_model(at)
    onnx.checker.check_model(model, full_check=True)
    if at.input.numel():
        found = run(session(model, native=False), at.input)
        expected = by_torch(at)
        assert np.abs(found - expected).max() <= 1e-5 * (np.abs(expected).max() + 1)


@settings(max_examples=60, deadline=None)
@given(problems())
def test_convolutions_are_those_of_torch_bit_for_bit(at: Problem) -> None:
    groups, outputs = at.settings["groups"], at.settings["out_channels"]
    model = conv_model(at)
    onnx.checker.check_model(model, full_check=True)
    # In this layout alone both sum in the same order.
    at.input = input = at.input.contiguous()
    expected = at.run().numpy()
    plain = run(session(model, native=False), input)
    assert np.abs(plain - expected).max() <= 1e-5 * (np.abs(expected).max() + 1)
    if at.packs and (groups == 1 or outputs // groups % 16 == 0):
        assert np.array_equal(run(session(model), input), expected)


def test_only_a_registered_library_runs_from_codes(tmp_path: Path) -> None:
    model = linear_model(layer(32, 64, 1))
    for native, expected in ((True, ["CodebookLinear"]), (False, ["Gemm"])):
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.log_severity_level = 4
        if native:
            options.register_custom_ops_library(onnxruntime_library())
        onnxruntime.InferenceSession(model.SerializeToString(), options)
        graph = onnx.load(tmp_path / "optimized.onnx").graph
        assert [node.op_type for node in graph.node] == expected
        sizes = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) > 1}
        assert (TensorProto.UINT4 in sizes) == native


def test_threads_change_no_bit() -> None:
    at = layer(1024, 1024, 8)
    model = linear_model(at)
    expected = by_torch(at)
    for threads in (1, 2, 3, 8):
        one = session(model, threads=threads)
        for _ in range(3):
            assert np.array_equal(run(one, at.input), expected), threads
        # The same session from several threads at once, as servers call it.
        with ThreadPoolExecutor(4) as pool:
            found = pool.map(partial(run, one), [at.input] * 16)
            assert all(np.array_equal(output, expected) for output in found)


def test_sessions_come_and_go_on_several_threads() -> None:
    at = layer(64, 64, 2)
    model, expected = linear_model(at), by_torch(at)

    def whole_life(_: int) -> bool:
        return np.array_equal(run(session(model, threads=2), at.input), expected)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(whole_life, range(24)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out_features": 47}, "codes (1, 2, 2, 16) and codebooks (1, 1, 16, 16, 4) do not make"),
        ({"group": 8}, "do not make a weight of 32 x 64"),
        ({"precision": 5}, "precision is 0 (exact), 1 (high) or 2 (fast), got 5"),
        ({"out_features": -3}, "out_features is negative"),
    ],
)
def test_nodes_that_do_not_fit_say_why(change: dict[str, int], message: str) -> None:
    at = layer(32, 64, 1)
    model = linear_model(at)
    (node,) = model.graph.node
    for name, value in change.items():
        kept = [attribute for attribute in node.attribute if attribute.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])
    del model.functions[:]
    node.overload = ""
    with pytest.raises(Exception, match="ONNXRuntimeError") as raised:
        run(session(model), at.input)
    assert message in str(raised.value)


def test_inputs_of_another_size_are_an_error() -> None:
    at = layer(32, 64, 1)
    with pytest.raises(Exception, match="do not make a weight of 32 x 60"):
        run(session(linear_model(at)), at.input[:, :60])


def test_a_package_without_the_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vq_plugin.extension.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"reinstall with a C\+\+ compiler"):
        onnxruntime_library()


_IN_A_PROCESS = """
import sys
import numpy as np, onnxruntime
assert "torch" not in sys.modules
options = onnxruntime.SessionOptions()
options.register_custom_ops_library(sys.argv[1])
session = onnxruntime.InferenceSession(sys.argv[2], options)
np.save(sys.argv[4], session.run(None, {"input": np.load(sys.argv[3])})[0])
"""


def write_problem(folder: Path) -> None:
    """A layer, an input and the output of torch's operator; .ci/sanitize takes them elsewhere."""
    at = layer(200, 128, 5)
    onnx.save(linear_model(at), folder / "model.onnx")
    at.input.numpy().tofile(folder / "input.bin")
    by_torch(at).tofile(folder / "output.bin")
    np.save(folder / "input.npy", at.input.numpy())
    (folder / "sizes.json").write_text(json.dumps([5, 128, 200]))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    write_problem(tmp_path)
    return {path.name: path for path in tmp_path.iterdir()}


def in_a_process(files: dict[str, Path], isa: str) -> "subprocess.CompletedProcess[str]":
    output = files["model.onnx"].with_name(f"{isa}.npy")
    paths = [onnxruntime_library(), files["model.onnx"], files["input.npy"], output]
    return subprocess.run(
        [sys.executable, "-c", _IN_A_PROCESS, *map(str, paths)],
        env={**os.environ, "VQ_PLUGIN_ISA": isa},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("isa", ops.isas())
def test_every_instruction_set_gives_the_same_bits_without_torch(
    isa: str, files: dict[str, Path]
) -> None:
    done = in_a_process(files, isa)
    assert done.returncode == 0, done.stderr
    found = np.load(files["model.onnx"].with_name(f"{isa}.npy"))
    assert found.tobytes() == files["output.bin"].read_bytes()


def test_an_unknown_instruction_set_is_an_error(files: dict[str, Path]) -> None:
    done = in_a_process(files, "avx1024")
    assert "VQ_PLUGIN_ISA=avx1024 names no kernels of this machine" in done.stderr


@pytest.mark.usefixtures("files")
def test_programs_in_cpp_load_it(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    (runtime,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    program = tmp_path / "onnxruntime_test"
    flags = ["-std=c++17", "-O1", "-pthread", "-Wall", "-Wextra", "-Werror"]
    source = str(CSRC / "onnxruntime_test.cpp")
    subprocess.run(["g++", *flags, source, "-o", str(program), "-ldl"], check=True)
    done = subprocess.run(
        [program, runtime, onnxruntime_library(), tmp_path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the same bits" in done.stdout


def table_model(
    codes: np.ndarray, books: np.ndarray, scale: np.ndarray | None, **given: int
) -> Any:
    """One node that looks rows of 4-bit codes up."""
    constants = [numpy_helper.from_array(books, "books")]
    constants += [] if scale is None else [numpy_helper.from_array(scale, "scale")]
    flat = codes.reshape(-1)
    flat = np.append(flat, 0) if len(flat) % 2 else flat
    packed = (flat[::2] | flat[1::2] << 4).astype(np.uint8).tobytes()
    constants.append(helper.make_tensor("codes", TensorProto.UINT4, codes.shape, packed, raw=True))
    names = ["rows", "codes", "books", *([] if scale is None else ["scale"])]
    node = helper.make_node("CodebookEmbedding", names, ["y"], domain="vq_plugin", **given)
    rows = helper.make_tensor_value_info("rows", TensorProto.INT64, ["n"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "d"])
    graph = helper.make_graph([node], "graph", [rows], [y], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("vq_plugin", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def library_session(model: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.register_custom_ops_library(onnxruntime_library())
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


@pytest.mark.parametrize(("dim", "own", "group"), [(1, 1, 0), (1, 1, 3), (3, 5, 0), (4, 1, 0)])
def test_rows_of_a_table(dim: int, own: int, group: int) -> None:
    random = np.random.default_rng(0)
    groups = -(-7 // group) if group else 1
    # An odd number of codes in a row: every other row begins in the middle of a byte.
    codes = random.integers(16, size=(2, 7, 5)).astype(np.uint8)
    books = random.standard_normal((2, groups, own, 9, dim)).astype(np.float32)
    scale = random.standard_normal(7).astype(np.float32)
    width = 5 * dim - (dim > 1)
    one = library_session(table_model(codes, books, scale, embedding_dim=width, group=group))
    rows = np.array([6, 0, 3, 5, 3])
    (found,) = one.run(None, {"rows": rows})
    for row, vector in zip(rows, found, strict=True):
        at = row // group if group else 0
        # Codes of centers that there are not stand for the last.
        parts = [
            [books[t, at, s % own, min(codes[t, row, s], 8)] for s in range(5)] for t in range(2)
        ]
        expected = (np.concatenate(parts[0]) + np.concatenate(parts[1]))[:width] * scale[row]
        assert np.array_equal(vector, expected)


@pytest.mark.parametrize(
    ("books", "width", "scale"),
    [
        ((1, 1, 1, 16, 4), 21, 7),
        ((1, 1, 3, 16, 4), 20, 7),
        ((2, 1, 1, 16, 4), 20, 7),
        ((1, 1, 1, 16, 4), 20, 6),
    ],
)
def test_tables_whose_parts_do_not_fit(books: tuple[int, ...], width: int, scale: int) -> None:
    codes, ones = np.zeros((1, 7, 5), np.uint8), np.ones(scale, np.float32)
    model = table_model(codes, np.zeros(books, np.float32), ones, embedding_dim=width)
    with pytest.raises(Exception, match="make no table of rows"):
        library_session(model).run(None, {"rows": np.array([0])})
