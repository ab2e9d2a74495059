#!/usr/bin/env bash
# torch 2.13.0, torch.nn.utils.parametrize: a deep copy of a parametrized module keeps the class that
# was made for the original. A parametrization that the copy gets for a second tensor is written into
# that class, and the original, which was not touched, can no longer read its own tensor.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import copy

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

assert torch.__version__.startswith("2.13.0"), torch.__version__
original = parametrizations.weight_norm(nn.Bilinear(2, 3, 4))
before = original.bias.clone()


class Identity(nn.Module):
    def forward(self, value):
        return value


copied = copy.deepcopy(original)
parametrize.register_parametrization(copied, "bias", Identity())
assert torch.equal(copied.bias, before)
assert type(copied) is type(original), "the copy has a class of its own now"
try:
    original.bias
except KeyError as error:
    print("the original after its copy was parametrized:", repr(error))
else:
    raise SystemExit("behaviour changed: the original still reads its bias")
PYTHON
