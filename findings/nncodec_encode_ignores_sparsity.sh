#!/usr/bin/env bash
# nncodec 2.1.3: nncodec.nn.encode(parameters, {"sparsity": 0.9}), an example of its README, gives the bytes
# that it gives without: the option counts only for epoch > 0, which is 0 unless told otherwise. A module in
# the place of a dictionary raises KeyError: 'ioq', a key that the defaults lack.
# Its numpy<2 is not obeyed here: with 2.4.6 it runs, and so does torch without CUDA, once two operators are
# defined that torchvision of PyPI asks for.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 h5py==3.16.0 pandas==3.1.1 \
    pillow==13.0.0 scikit-learn==1.9.1 tqdm==4.70.1
"$folder/venv/bin/pip" install --quiet --no-deps nncodec==2.1.3 torchvision==0.28.0 \
    opencv-python-headless==5.0.0.93
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    for name in ("nms", "qnms"):
        kind = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{name}", kind)
from nncodec.nn import decode, encode

quiet = {"qp": -24, "verbose": False}
weight = (0.05 * np.random.default_rng(0).standard_normal((256, 256))).astype(np.float32)
streams = {
    "no sparsity": encode({"w": weight}, quiet),
    "sparsity 0.9": encode({"w": weight}, {**quiet, "sparsity": 0.9}),
    "sparsity 0.9, epoch 1": encode({"w": weight}, {**quiet, "sparsity": 0.9}, epoch=1),
}
zeros = {name: float((decode(stream)["w"] == 0).mean()) for name, stream in streams.items()}
for name, stream in streams.items():
    print(f"{name}: {len(stream)} bytes, {zeros[name]:.1%} zeros")
assert streams["no sparsity"] == streams["sparsity 0.9"], "behaviour changed"
assert zeros["sparsity 0.9"] < 0.5 < 0.9 <= zeros["sparsity 0.9, epoch 1"], "behaviour changed"
try:
    encode(torch.nn.Linear(8, 8), quiet)
except KeyError as error:
    print(f"a module: KeyError: {error}")
    assert str(error) == "'ioq'", "behaviour changed"
else:
    raise AssertionError("behaviour changed")
PYTHON
