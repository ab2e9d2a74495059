"""Codebook layers from the calls of ``torch.ao.quantization``: FX and eager.

Every import of ``torch.ao`` is inside this package; ``import vq_plugin`` needs none of it.
"""

from vq_plugin.torch_ao import versions  # isort: skip
from vq_plugin.hosting.commitment import commitment_loss
from vq_plugin.torch_ao.backend import get_backend_config
from vq_plugin.torch_ao.check import check_converted
from vq_plugin.torch_ao.eager import assign_qconfigs, get_eager_mapping
from vq_plugin.torch_ao.fused import fused_float
from vq_plugin.torch_ao.inputs import observe_inputs
from vq_plugin.torch_ao.mapping import get_qconfig_mapping
from vq_plugin.torch_ao.qat import get_qat_qconfig_mapping

del versions

__all__ = [
    "assign_qconfigs",
    "check_converted",
    "commitment_loss",
    "fused_float",
    "get_backend_config",
    "get_eager_mapping",
    "get_qat_qconfig_mapping",
    "get_qconfig_mapping",
    "observe_inputs",
]
