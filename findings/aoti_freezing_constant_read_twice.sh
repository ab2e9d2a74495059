#!/usr/bin/env bash
# torch 2.13.0: AOTInductor with torch._inductor.config.freezing fails for a model that reads a tensor
# which is neither a parameter nor a buffer in two places, one of which is folded. With a buffer
# in its place, without freezing, and by torch.compile with freezing it works.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 setuptools
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import torch
from torch import nn

assert torch.__version__.startswith("2.13.0"), torch.__version__


class Twice(nn.Module):
    def __init__(self, buffer):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8))
        if buffer:
            self.register_buffer("table", torch.randn(8))
        else:
            self.table = torch.randn(8)

    def forward(self, value):
        return value * (self.weight + self.table) + self.table


def package(freezing, buffer):
    model, value = Twice(buffer).eval(), torch.randn(2, 8)
    program = torch.export.export(model, (value,))
    with torch.no_grad(), torch._inductor.config.patch(freezing=freezing):
        torch._inductor.aoti_compile_and_package(program, package_path="twice.pt2")
        torch.testing.assert_close(torch._inductor.aoti_load_package("twice.pt2")(value), model(value))


package(freezing=False, buffer=False)
package(freezing=True, buffer=True)
with torch.no_grad(), torch._inductor.config.patch(freezing=True):
    torch.compile(Twice(False).eval())(torch.randn(2, 8))
try:
    package(freezing=True, buffer=False)
except RuntimeError as error:
    print("with freezing:", str(error).splitlines()[0])
else:
    raise SystemExit("behaviour changed: the package is made")
PYTHON
