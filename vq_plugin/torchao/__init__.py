"""Codebook layers from the calls of torchao: ``quantize_`` and PT2E.

Every import of ``torchao`` is inside this package; ``import vq_plugin`` needs none of it.
"""

from vq_plugin.torchao import versions  # isort: skip
from vq_plugin.hosting.commitment import commitment_loss
from vq_plugin.torchao.check import check_converted
from vq_plugin.torchao.config import VQWeightOnlyConfig
from vq_plugin.torchao.fused import fused_float
from vq_plugin.torchao.handler import compress_module
from vq_plugin.torchao.hosts import PT2E
from vq_plugin.torchao.quantizer import VQQuantizer

del compress_module, versions

__all__ = [
    "PT2E",
    "VQQuantizer",
    "VQWeightOnlyConfig",
    "check_converted",
    "commitment_loss",
    "fused_float",
]
