#!/usr/bin/env bash
# torch 2.13.0: after torch.ao's prepare_fx and convert_fx a PReLU of slope 0.25, the value that it starts with,
# multiplies positive values by 0.25, too: the activation is a straight line, and a network of it nearly
# linear. Weight, scales and zero points are right, and quantized::prelu called with them gives the same.
# Nothing is raised or warned of, with all of torch's x86 engines. LeakyReLU of that slope is right, and
# so is PReLU left float: QConfigMapping().set_object_type(nn.PReLU, None).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - <<'PYTHON'
import copy

import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

assert torch.__version__.startswith("2.13.0"), torch.__version__
values = torch.linspace(-1, 1, 1001).reshape(1, -1)


def slopes(activation, mapping):
    prepared = prepare_fx(nn.Sequential(copy.deepcopy(activation)).eval(), mapping, (values,))
    prepared(values)
    converted = convert_fx(prepared)
    found = converted(values)
    sides = [float((found[side] / values[side]).mean()) for side in (values < -0.2, values > 0.2)]
    return [round(side, 2) for side in sides], type(converted.get_submodule("0")).__module__


engines = [name for name in ("x86", "fbgemm", "onednn") if name in torch.backends.quantized.supported_engines]
for engine in engines:
    torch.backends.quantized.engine = engine
    mapping = get_default_qconfig_mapping(engine)
    prelu, kind = slopes(nn.PReLU(), mapping)
    leaky, _ = slopes(nn.LeakyReLU(0.25), mapping)
    kept, _ = slopes(nn.PReLU(), mapping.set_object_type(nn.PReLU, None))
    print(f"{engine}: slopes of PReLU below and above zero {prelu}, of LeakyReLU {leaky}, left float {kept}")
    # Seen: [0.25, 0.25], [0.25, 1.0] and [0.25, 1.0] with each engine.
    assert kind.startswith("torch.ao.nn.quantized"), kind
    assert all(abs(each[1] - 1) < 0.02 for each in (leaky, kept)), "behaviour changed"
    if abs(prelu[1] - 0.25) > 0.02:
        raise SystemExit("behaviour changed: a quantized PReLU keeps positive values")
PYTHON
