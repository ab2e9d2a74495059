#!/usr/bin/env bash
# openvino 2026.4.1: the CPU plugin keeps constants of type nf4 and u4 packed where a product reads them
# (Convert, Subtract, Multiply, MatMul), but makes float32 weights of codes that a Gather looks up in a
# constant table, whatever the type of the codes: 8 MB in the file, 151 MB in memory beside 44 MB.
# So a palette is small in memory only if its values are those of NF4.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet openvino==2026.4.1 numpy==2.4.6
cd "$folder"
cat >measure.py <<'PYTHON'
import ctypes
import sys
from pathlib import Path

import numpy as np
import openvino as ov
import openvino.opset13 as op

N = 4096
generator = np.random.default_rng(0)


def resident():
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def weight(kind):
    values = generator.integers(0, 256, (N, N // 2), dtype=np.uint8)
    packed = ov.Type.nf4 if kind == "nf4" else ov.Type.u4
    codes = op.constant(ov.Tensor(values, ov.Shape([N, N]), packed))
    if kind == "table":
        table = op.constant(generator.standard_normal(16).astype(np.float32))
        return op.gather(table, op.convert(codes, "i32"), op.constant(np.int32(0))), values
    wide = op.convert(codes, "f16")
    if kind == "u4":
        wide = op.subtract(wide, op.constant(np.full((N, 1), 8, np.float16)))
    scaled = op.multiply(wide, op.constant(np.full((N, 1), 0.01, np.float16)))
    return op.convert(scaled, "f32"), values


kind = sys.argv[1]
value = op.parameter([-1, N], np.float32)
found, kept = weight(kind)
ov.save_model(ov.Model([op.matmul(value, found, False, True)], [value], "m"), "m.xml", False)
core = ov.Core()
before = resident()
compiled = core.compile_model("m.xml", "CPU", {"INFERENCE_NUM_THREADS": 1})
compiled.create_infer_request().infer({0: np.zeros((1, N), np.float32)})
print(resident() - before)
PYTHON
declare -A held
for kind in table u4 nf4; do
    held[$kind]=$("$folder/venv/bin/python" measure.py "$kind")
    echo "$kind: $(stat --format=%s m.bin) bytes in the file, ${held[$kind]} MB in memory"
done
python3 -c "
table, u4, nf4 = ${held[table]}, ${held[u4]}, ${held[nf4]}
assert table > 64 + min(u4, nf4) and max(u4, nf4) < 64, 'behaviour changed'"
