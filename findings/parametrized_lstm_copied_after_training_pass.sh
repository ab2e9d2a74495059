#!/usr/bin/env bash
# torch 2.13.0: an LSTM with one parametrized weight can be deep-copied before its first pass and after
# a pass without gradients, but not after a pass with them: the module goes on holding the computed
# weight of that pass in its list of flat weights. A Linear layer with the same parametrization is
# copied at any time.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import copy

import torch
from torch import nn
from torch.nn.utils import parametrizations

assert torch.__version__.startswith("2.13.0"), torch.__version__
linear = parametrizations.weight_norm(nn.Linear(3, 4))
linear(torch.randn(2, 3))
copy.deepcopy(linear)

lstm = parametrizations.weight_norm(nn.LSTM(3, 4), "weight_hh_l0")
copy.deepcopy(lstm)
lstm(torch.randn(2, 3))
try:
    copy.deepcopy(lstm)
except RuntimeError as error:
    print("after a pass with gradients:", str(error).split(".")[0])
else:
    raise SystemExit("behaviour changed: the LSTM is copied after a pass with gradients")
with torch.no_grad():
    lstm(torch.randn(2, 3))
copy.deepcopy(lstm)
print("after a pass without gradients it is copied again")
PYTHON
