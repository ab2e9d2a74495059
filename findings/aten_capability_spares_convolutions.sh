#!/usr/bin/env bash
# torch 2.13.0, x86-64 with AVX2 or more: ATEN_CPU_CAPABILITY=default has torch report DEFAULT, no vector
# instructions, and its convolutions still run with all that the processor has: oneDNN reads another
# variable, ONEDNN_MAX_CPU_ISA. Peers that are "confined" for a comparison are not.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
cat > "$folder/convolution.py" <<'PYTHON'
import torch

print("torch:", torch.backends.cpu.get_cpu_capability(), flush=True)
images, weight = torch.randn(1, 64, 56, 56), torch.randn(64, 64, 3, 3)
with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
    torch.nn.functional.conv2d(images, weight, padding=1)
PYTHON
run() { env "$@" "$folder/venv/bin/python" "$folder/convolution.py" | grep -E "^torch:|,cpu,isa:"; }
confined=$(run ATEN_CPU_CAPABILITY=default)
both=$(run ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41)
echo "$confined"
echo "with ONEDNN_MAX_CPU_ISA=SSE41, too:"
echo "$both"
# Seen: torch: DEFAULT beside "isa:Intel AVX-512 with Intel DL Boost and bfloat16 support", and
# "isa:Intel SSE4.1" with both variables.
grep -q "^torch: DEFAULT" <<< "$confined"
grep -q "isa:Intel AVX" <<< "$confined"
grep -q "isa:Intel SSE4.1" <<< "$both"
