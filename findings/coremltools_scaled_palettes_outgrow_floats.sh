#!/usr/bin/env bash
# torch 2.13.0, coremltools 9.0: palettize_weights with enable_per_channel_scale=True, meant to make few bits
# more exact at the price of a scale for each channel, writes the lookup table once for every input of
# every output: with 8 bits, or with 4 bits and tables of 16 channels each, the file is larger than the
# float16 one. Scales are per input and place in the kernel, whereas the manual says that weights are
# normalized along the output channels: a row of large weights still sets the table for all.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 coremltools==9.0 scikit-learn==1.9.1 numpy==2.4.6
cd "$folder"
OMP_NUM_THREADS=1 "$folder/venv/bin/python" -W ignore - 2>log <<'PYTHON' || { tail -n 5 log >&2; exit 1; }
import shutil
from pathlib import Path

import coremltools as ct
import torch
from coremltools.optimize.coreml import OpPalettizerConfig, OptimizationConfig, palettize_weights
from torch import nn

assert torch.__version__.startswith("2.13.0"), torch.__version__
assert ct.__version__ == "9.0", ct.__version__
torch.manual_seed(0)
layers = {
    "Linear(256, 256)": (nn.Linear(256, 256, bias=False), torch.zeros(1, 256)),
    "Conv2d(64, 64, 3)": (nn.Conv2d(64, 64, 3, bias=False), torch.zeros(1, 64, 8, 8)),
}
settings = {
    "4 bits": dict(nbits=4),
    "8 bits": dict(nbits=8),
    "4 bits, 16 channels a table": dict(nbits=4, granularity="per_grouped_channel", group_size=16),
}


def constants(model):
    shutil.rmtree("saved.mlpackage", ignore_errors=True)
    model.save("saved.mlpackage")
    return sum(path.stat().st_size for path in Path("saved.mlpackage").rglob("weight.bin"))


for name, (layer, example) in layers.items():
    def written(**options):
        # Converted anew each time: this option writes into the weights of the model that it is given.
        program = ct.convert(
            torch.jit.trace(layer.eval(), example), inputs=[ct.TensorType(shape=example.shape)],
            minimum_deployment_target=ct.target.iOS18,
        )
        if not options:
            return constants(program), None
        config = OptimizationConfig(global_config=OpPalettizerConfig(mode="kmeans", **options))
        program = palettize_weights(program, config)
        scales = [operation.scale.shape for operation in program._mil_program["main"].operations
                  if operation.op_type == "constexpr_blockwise_shift_scale"]
        return constants(program), scales

    floats, _ = written()
    print(f"{name}: {floats} bytes in float16")
    for setting, options in settings.items():
        plain, _ = written(**options)
        scaled, (shape,) = written(**options, enable_per_channel_scale=True)
        print(f"  {setting}: {plain} bytes, {scaled} with scales, of shape {shape}")
        assert shape[0] == 1 and shape[1] == layer.weight.shape[1], "behaviour changed: scales of outputs"
        if setting != "4 bits" and scaled < floats or scaled < 1.2 * plain:
            raise SystemExit("behaviour changed: a scaled palette is smaller than floats")
PYTHON
