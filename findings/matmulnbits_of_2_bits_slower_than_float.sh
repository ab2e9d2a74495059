#!/usr/bin/env bash
# onnxruntime 1.32.0, x86-64 with AVX-512: MatMulNBits of 2 bits is slower than that of 4 bits, and at 32
# samples about twice as slow as the float32 product (4096x4096, blocks of 32, accuracy_level 4, one thread).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet onnxruntime==1.32.0 onnx==1.23.2 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import statistics
import time

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

N, BLOCK = 4096, 32
generator = np.random.default_rng(0)


def session(node, constants):
    places = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", N]) for n in ("x", "y")]
    tensors = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph([node], "graph", places[:1], places[1:], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def few_bits(bits):
    values = generator.integers(0, 256, (N, N // BLOCK, BLOCK * bits // 8), dtype=np.uint8)
    scales = generator.random((N, N // BLOCK), dtype=np.float32)
    node = helper.make_node(
        "MatMulNBits", ["x", "v", "s"], ["y"], domain="com.microsoft",
        K=N, N=N, bits=bits, block_size=BLOCK, accuracy_level=4,
    )
    return session(node, {"v": values, "s": scales})


weight = generator.standard_normal((N, N), dtype=np.float32)
runs = {
    "float": session(helper.make_node("MatMul", ["x", "w"], ["y"]), {"w": weight}),
    "4 bits": few_bits(4),
    "2 bits": few_bits(2),
}
value = generator.standard_normal((32, N), dtype=np.float32)
times = {name: [] for name in runs}
for _ in range(9):
    for name, run in runs.items():
        run.run(None, {"x": value})
        start = time.process_time()
        run.run(None, {"x": value})
        times[name].append((time.process_time() - start) * 1e3)
found = {name: statistics.median(each) for name, each in times.items()}
print({name: f"{each:.1f} ms" for name, each in found.items()})
assert found["2 bits"] > 1.3 * max(found["float"], found["4 bits"]), "behaviour changed"
PYTHON
