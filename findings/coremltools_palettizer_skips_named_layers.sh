#!/usr/bin/env bash
# torch 2.13.0, coremltools 9.0: PostTrainingPalettizer leaves Conv1d, Conv3d and transposed convolutions float, even
# where module_type_configs or module_name_configs names just them, and neither raises nor warns: a network for
# sound is as large after it as before. palettize_weights, which runs after the conversion, takes transposed
# convolutions, too. Of an attention that is named it leaves out_proj float, which global_config takes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 coremltools==9.0 scikit-learn==1.9.1 numpy==2.4.6
cd "$folder"
OMP_NUM_THREADS=1 "$folder/venv/bin/python" - 2>log <<'PYTHON' || { tail -n 5 log >&2; exit 1; }
import copy
import warnings

import coremltools as ct
import torch
from coremltools.optimize.torch.palettization import (
    PostTrainingPalettizer,
    PostTrainingPalettizerConfig,
)
from torch import nn

assert torch.__version__.startswith("2.13.0"), torch.__version__
assert ct.__version__ == "9.0", ct.__version__
torch.manual_seed(0)
BITS = {"n_bits": 2}


def values(layer, config):
    model = nn.Sequential(copy.deepcopy(layer))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        config = PostTrainingPalettizerConfig.from_dict(config)
        model = PostTrainingPalettizer(model, config).compress()
    assert not [each for each in told if issubclass(each.category, UserWarning)], told
    return {name: len(each.unique()) for name, each in model[0].named_parameters() if each.ndim > 1}


def all_ways(layer):
    return (
        values(layer, {"global_config": BITS}),
        values(layer, {"module_type_configs": {type(layer): BITS}}),
        values(layer, {"module_name_configs": {"0": BITS}}),
    )


for layer in (
    nn.Linear(32, 64), nn.Conv2d(32, 32, 3), nn.Conv1d(32, 32, 3), nn.Conv3d(8, 8, 3),
    nn.ConvTranspose1d(32, 32, 3), nn.ConvTranspose2d(32, 32, 3),
):
    counts = [found["weight"] for found in all_ways(layer)]
    print(f"{type(layer).__name__}: {counts} values for 2 bits, by global, class and name")
    # Seen: 4 of Linear and Conv2d in all three ways, all values that there were of the others.
    few = [count <= 4 for count in counts]
    if few != [isinstance(layer, (nn.Linear, nn.Conv2d))] * 3:
        raise SystemExit("behaviour changed: another layer is palettized")
attention = all_ways(nn.MultiheadAttention(32, 4))
print("MultiheadAttention:", *attention)
assert max(attention[0].values()) <= 4, "behaviour changed"
assert all(found["out_proj.weight"] > 4 >= found["in_proj_weight"] for found in attention[1:]), "behaviour changed"
PYTHON
