#!/usr/bin/env bash
# torch 2.13.0, hqq 0.2.8.post1: Quantizer, and so HQQLinear, takes 5 and 6 bits and stores each code in a byte: such
# a weight is as large as one of 8 bits, at 8 and 4 times its error. 4 bits are packed, and 3 to 3.5. Nothing is
# raised or warned of. Who lowers bits as far as accuracy holds, and stops at 5, has saved nothing over 8.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 hqq==0.2.8.post1 \
    transformers==5.24.0 accelerate==1.15.0 numpy==2.4.6
cd "$folder"
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - 2>log <<'PYTHON' || { tail -n 5 log >&2; exit 1; }
from importlib.metadata import version

import torch
from hqq.core.quantize import Quantizer

assert torch.__version__.startswith("2.13.0"), torch.__version__
assert version("hqq") == "0.2.8.post1"
torch.manual_seed(0)
weight = 0.02 * torch.randn(1024, 1024)
sizes, errors = {}, {}
for bits in (8, 6, 5, 4, 3):
    codes, meta = Quantizer.quantize(
        weight.clone(), nbits=bits, group_size=64, device="cpu", compute_dtype=torch.float32
    )
    sizes[bits] = 8 * codes.numel() * codes.element_size() / weight.numel()
    errors[bits] = float((Quantizer.dequantize(codes, meta) - weight).norm() / weight.norm())
    print(f"{bits} bits: {sizes[bits]:.2f} bits a weight, relative error {errors[bits]:.4f}")
# Seen: 8, 8, 8, 4 and 3.50 bits a weight; errors of 0.0051, 0.0205, 0.0416, 0.0860 and 0.1844.
assert sizes[8] == 8 and sizes[4] == 4 and sizes[3] < 4, "behaviour changed"
if not sizes[6] == sizes[5] == 8 or errors[6] < 2 * errors[8]:
    raise SystemExit("behaviour changed: fewer bits take less")
PYTHON
