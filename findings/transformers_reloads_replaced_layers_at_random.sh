#!/usr/bin/env bash
# torch 2.13.0, torchao 0.18.0, transformers 5.24.0: a config of torchao whose handler gives back a
# layer of another class, as register_quantize_module_handler invites to, is applied by from_pretrained
# and written by save_pretrained. from_pretrained of what was written raises nothing, makes float
# layers, and fills them with random numbers.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 torchao==0.18.0 transformers==5.24.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import sys
import types
from dataclasses import dataclass

import torch
import torchao
import transformers
from torch import nn
from torchao.core.config import ALLOWED_AO_MODULES, AOBaseConfig
from torchao.quantization.transform_module import register_quantize_module_handler
from transformers import LlamaConfig, LlamaForCausalLM, TorchAoConfig

assert torch.__version__.startswith("2.13.0"), torch.__version__
assert torchao.__version__.startswith("0.18.0"), torchao.__version__
assert transformers.__version__ == "5.24.0", transformers.__version__


@dataclass
class HalvesConfig(AOBaseConfig):
    pass


class Halves(nn.Module):
    # The host asks for it after the load.
    weight = None

    def forward(self, value):
        return nn.functional.linear(value, self.stored.float())


@register_quantize_module_handler(HalvesConfig)
def _halve(module, config):
    # In place, as from_pretrained hands each layer over by itself.
    half = Halves()
    half.register_buffer("stored", module.weight.detach().half())
    module.__dict__ = half.__dict__
    module.__class__ = Halves
    return module


place = types.ModuleType("halves")
place.HalvesConfig = HalvesConfig
sys.modules["halves"] = place
ALLOWED_AO_MODULES.add("halves")
size = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
LlamaForCausalLM(LlamaConfig(vocab_size=16, **size)).save_pretrained("float")
quantized = LlamaForCausalLM.from_pretrained(
    "float", quantization_config=TorchAoConfig(HalvesConfig())
)
layer = "model.layers.0.mlp.up_proj"
assert type(quantized.get_submodule(layer)) is Halves
quantized.save_pretrained("halves")
again = LlamaForCausalLM.from_pretrained("halves")
tokens = torch.arange(4).reshape(1, 4)
same = torch.allclose(again(tokens).logits, quantized(tokens).logits, atol=1e-3)
print("saved:", type(quantized.get_submodule(layer)).__name__,
      "loaded:", type(again.get_submodule(layer)).__name__, "same outputs:", same)
if same or type(again.get_submodule(layer)) is not nn.Linear:
    raise SystemExit("behaviour changed: the layers come back")
PYTHON
