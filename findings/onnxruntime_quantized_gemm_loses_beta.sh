#!/usr/bin/env bash
# onnxruntime 1.32.0: quantize_static of a Gemm whose beta is not 1, which is what torch.addmm(..., beta=2) is
# exported as, adds another bias than the float model: QDQ files once the bias where beta is 2, and
# QOperator files half of it, as does the QDQ file once onnxruntime has fused it. beta goes into the scale of the
# bias, which leaves the bias as it was, and is then taken from the operator. Nothing is raised or warned of.
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
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

assert onnxruntime.__version__ == "1.32.0", onnxruntime.__version__
N = 64
generator = np.random.default_rng(0)
weight = (0.05 * generator.standard_normal((N, N))).astype(np.float32)
bias = generator.standard_normal(N).astype(np.float32)
inputs = generator.standard_normal((256, N)).astype(np.float32)
levels = onnxruntime.GraphOptimizationLevel


class Inputs(CalibrationDataReader):
    def __init__(self):
        self.left = iter([{"x": inputs}])

    def get_next(self):
        return next(self.left, None)


def run(path, level):
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": inputs})[0]


def added(form, beta, level):
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1, beta=beta)
    places = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", N]) for n in ("x", "y")]
    tensors = [numpy_helper.from_array(v, n) for n, v in (("w", weight), ("b", bias))]
    graph = helper.make_graph([node], "graph", places[:1], places[1:], tensors)
    opsets = [helper.make_opsetid("", 21)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), "float.onnx")
    assert np.allclose(run("float.onnx", level), inputs @ weight.T + beta * bias, atol=1e-5)
    quantize_static("float.onnx", "int8.onnx", Inputs(), quant_format=form)
    # The factor of the bias that explains the quantized outputs best.
    rest = (run("int8.onnx", level) - inputs @ weight.T).mean(0)
    return float(rest @ bias / (bias @ bias))


for beta in (1.0, 2.0, 4.0):
    found = [
        added(QuantFormat.QDQ, beta, levels.ORT_DISABLE_ALL),
        added(QuantFormat.QDQ, beta, levels.ORT_ENABLE_ALL),
        added(QuantFormat.QOperator, beta, levels.ORT_ENABLE_ALL),
    ]
    print(f"beta {beta}: QDQ adds {found[0]:.2f} biases, fused {found[1]:.2f}, QOperator {found[2]:.2f}")
    # Seen: 1, 1 and 1 for beta 1; 1, 0.5 and 0.5 for beta 2; 1, 0.25 and 0.25 for beta 4.
    if not np.allclose(found, [1, 1 / beta, 1 / beta], atol=0.05):
        raise SystemExit("behaviour changed")
PYTHON
