#!/usr/bin/env bash
# torch 2.13.0, torchao 0.18.0, PT2E: prepare_pt2e calls Quantizer.prepare_obs_or_fq_callback, where a
# quantizer may still change its observers. ComposableQuantizer hands on annotate and
# transform_for_annotation, but not that call: the same quantizer, alone in a composition, is never
# asked.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torchao==0.18.0 numpy==2.4.6
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
import torchao
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e
from torchao.quantization.pt2e.quantizer import ComposableQuantizer, Quantizer

assert torch.__version__.startswith("2.13.0"), torch.__version__
assert torchao.__version__.startswith("0.18.0"), torchao.__version__
calls = []


class Mine(Quantizer):
    def annotate(self, model):
        calls.append("annotate")
        return model

    def validate(self, model):
        pass

    def prepare_obs_or_fq_callback(self, model, observers):
        calls.append("callback")


def prepare(quantizer):
    calls.clear()
    program = torch.export.export(nn.Linear(2, 2).eval(), (torch.zeros(1, 2),))
    prepare_pt2e(program.module(), quantizer)
    return list(calls)


alone, composed = prepare(Mine()), prepare(ComposableQuantizer([Mine()]))
print("alone:", alone, "in a ComposableQuantizer:", composed)
assert alone == ["annotate", "callback"], alone
if composed != ["annotate"]:
    raise SystemExit("behaviour changed: ComposableQuantizer hands the callback on")
PYTHON
