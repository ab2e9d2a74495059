#!/usr/bin/env bash
# torch 2.13.0, onnx 1.23.2, onnxscript 0.7.2: torch.onnx.export of nn.LSTM(proj_size=...) raises nothing and
# says nothing. ONNX's LSTM has no projection: the file says that outputs have proj_size elements, the
# operator gives hidden_size, and the checker refuses the file.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 onnx==1.23.2 onnxscript==0.7.2 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import onnx
import torch
from torch import nn

assert torch.__version__.startswith("2.13.0"), torch.__version__
assert onnx.__version__ == "1.23.2", onnx.__version__

model = nn.LSTM(10, 12, batch_first=True, proj_size=5).eval()
written = torch.onnx.export(model, (torch.zeros(2, 7, 10),), dynamo=True, verbose=False)
try:
    onnx.checker.check_model(written.model_proto, full_check=True)
except onnx.shape_inference.InferenceError as error:
    print("exported without a word, then:", str(error).strip().splitlines()[0])
else:
    raise SystemExit("behaviour changed: what is exported is valid")
PYTHON
