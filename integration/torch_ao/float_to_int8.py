"""A pipeline as many run it: a trained CNN to int8, static, for x86, by FX.

``python -m integration.torch_ao.float_to_int8`` in the root of the repository runs it.
"""

import copy

import torch
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.backend_config.x86 import get_x86_backend_config
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from integration.torch_ao.report import report
from vq_plugin.workloads import digits

SETTINGS = "x86"


def main() -> None:
    model = digits.model()
    batches = digits.calibration()
    mapping, backend = get_default_qconfig_mapping(SETTINGS), get_x86_backend_config()
    prepared = prepare_fx(copy.deepcopy(model), mapping, (batches[0],), backend_config=backend)
    with torch.no_grad():
        for batch in batches:
            prepared(batch)
    converted = convert_fx(prepared, backend_config=backend)
    report(model, converted)


if __name__ == "__main__":
    main()
