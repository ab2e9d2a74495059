"""An error for releases of torch without torch.ao's front ends, which are announced for removal."""

from __future__ import annotations

import torch

try:
    import torch.ao.quantization.quantize_fx
except ImportError as error:
    raise ImportError(
        f"vq_plugin.torch_ao needs torch.ao.quantization, which torch 2.10 to 2.15 have and torch "
        f"{torch.__version__} lacks ({error}): use vq_plugin.torchao, as docs/migration.md shows"
    ) from error
