#!/usr/bin/env bash
# torch 2.13.0, torchao 0.18.0: IntxWeightOnlyConfig takes torch.int1, as its text promises for 1 to 8 bits, and
# with the mapping that it has unless told otherwise every code becomes 0: a scale of twice the largest weight
# brings all within a half of zero. The layer gives its bias, whatever comes in. MappingType.ASYMMETRIC leaves
# weights nearly as wrong as zeros. Nothing is raised or warned of. Signs with one scale a row, also 1 bit,
# lose a quarter of such a weight's energy.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torchao==0.18.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import copy
import warnings

import torch
import torchao
from torch import nn
from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerGroup, quantize_

assert torch.__version__.startswith("2.13.0"), torch.__version__
assert torchao.__version__.startswith("0.18.0"), torchao.__version__
torch.manual_seed(0)
layer = nn.Linear(128, 64)
weight = layer.weight.detach()


def loss(value):
    return float((value - weight).square().sum() / weight.square().sum())


def quantized(bits, **options):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        made = copy.deepcopy(layer)
        quantize_(made, IntxWeightOnlyConfig(getattr(torch, f"int{bits}"), PerGroup(32), **options))
    assert not told, told
    return made


signs = weight.sign() * weight.abs().mean(1, keepdim=True)
print(f"signs and scales: {loss(signs):.3f} of the energy lost")
for bits in (3, 2, 1):
    made = quantized(bits)
    lost, codes = loss(made.weight.dequantize()), made.weight.qdata.unique().tolist()
    print(f"int{bits}: {lost:.3f} lost, codes {codes}")
other = quantized(1, mapping_type=MappingType.ASYMMETRIC)
print(f"int1, ASYMMETRIC: {loss(other.weight.dequantize()):.3f} lost")
# Seen: 0.253 for signs; 0.021 for 3 bits, 0.113 for 2, 1.000 and the one code 0 for 1; 0.984.
value = torch.randn(8, 128)
if made.weight.qdata.any() or not torch.equal(made(value), layer.bias.expand(8, 64)):
    raise SystemExit("behaviour changed: one bit keeps something of the weight")
assert loss(other.weight.dequantize()) > 0.9, "behaviour changed"
PYTHON
