#!/usr/bin/env bash
# onnxruntime 1.32.0: quantize_static gives the table of an embedding, a constant that Gather reads, the type of
# activations and not that of weights. With weight_type=QInt4 a table stays at 8 bits while MatMul's weight is
# halved, and with activation_type=QUInt16, weights still of 8 bits, it takes 16: in a model that is mostly
# embeddings the bits that were asked for count for nothing. Nothing is raised or warned of.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - 2>log <<'PYTHON' || { tail -n 5 log >&2; exit 1; }
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

assert onnxruntime.__version__ == "1.32.0", onnxruntime.__version__
WORDS, SIZE = 512, 64
generator = np.random.default_rng(0)
tensors = [
    numpy_helper.from_array((0.05 * generator.standard_normal(shape)).astype(np.float32), name)
    for name, shape in (("table", (WORDS, SIZE)), ("weight", (SIZE, WORDS)))
]
nodes = [
    helper.make_node("Gather", ["table", "tokens"], ["found"]),
    helper.make_node("MatMul", ["found", "weight"], ["scores"]),
]
graph = helper.make_graph(
    nodes, "words",
    [helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n"])],
    [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", WORDS])],
    tensors,
)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), "float.onnx")


class Tokens(CalibrationDataReader):
    def __init__(self):
        self.left = iter([{"tokens": np.arange(WORDS)}])

    def get_next(self):
        return next(self.left, None)


def kinds(**types):
    quantize_static("float.onnx", "small.onnx", Tokens(), **types)
    stored = {each.name: each.data_type for each in onnx.load("small.onnx").graph.initializer}
    return tuple(TensorProto.DataType.Name(stored[f"{name}_quantized"]) for name in ("table", "weight"))


settings = {
    "as it is": {},
    "weights of 4 bits": {"weight_type": QuantType.QInt4},
    "activations of 16 bits": {"activation_type": QuantType.QUInt16},
}
found = {name: kinds(**types) for name, types in settings.items()}
for name, (table, weight) in found.items():
    print(f"{name}: table {table}, weight {weight}")
# Seen: INT8 and INT8; INT8 and INT4; UINT16 and INT8.
if found != {
    "as it is": ("INT8", "INT8"),
    "weights of 4 bits": ("INT8", "INT4"),
    "activations of 16 bits": ("UINT16", "INT8"),
}:
    raise SystemExit("behaviour changed: a table has the type of weights")
PYTHON
