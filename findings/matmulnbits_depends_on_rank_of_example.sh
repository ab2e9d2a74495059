#!/usr/bin/env bash
# torch 2.13.0, onnxruntime 1.32.0: whether MatMulNBitsQuantizer makes a torch model small depends on the rank of
# the example that it was exported with. Of an example of two dimensions torch.onnx.export makes Gemm, which
# the quantizer leaves float without a word: the file stays what it was. Of three dimensions, which the same
# layers take, it makes MatMul, and 4 bits give a sixth of the file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 onnxruntime==1.32.0 onnx==1.23.2 onnxscript==0.7.2 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - 2>log <<'PYTHON' || { tail -n 5 log >&2; exit 1; }
import onnx
import onnxruntime
import torch
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import nn

assert torch.__version__.startswith("2.13.0"), torch.__version__
assert onnxruntime.__version__ == "1.32.0", onnxruntime.__version__
model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)).eval()


def written(example):
    torch.onnx.export(model, (example,), "float.onnx", dynamo=True, verbose=False, external_data=False)
    before = onnx.load("float.onnx")
    quantizer = MatMulNBitsQuantizer(onnx.load("float.onnx"), bits=4, block_size=32)
    quantizer.process()
    after = quantizer.model.model
    return [{each.op_type for each in graph.graph.node if "M" in each.op_type or "Gemm" in each.op_type}
            for graph in (before, after)], after.ByteSize() / before.ByteSize()


two, three = written(torch.zeros(1, 256)), written(torch.zeros(1, 1, 256))
for dimensions, ((before, after), part) in ((2, two), (3, three)):
    print(f"example of {dimensions} dimensions: {before} becomes {after}, {part:.2f} of the file")
# Seen: {'Gemm'} becomes {'Gemm'}, 1.00 of the file; {'MatMul'} becomes {'MatMulNBits'}, 0.17 of the file.
assert three[0] == [{"MatMul"}, {"MatMulNBits"}] and three[1] < 0.2, "behaviour changed"
if two[0] != [{"Gemm"}, {"Gemm"}] or two[1] < 0.99:
    raise SystemExit("behaviour changed: layers are quantized whatever the example")
PYTHON
