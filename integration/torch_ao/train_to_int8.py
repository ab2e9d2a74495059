"""Quantization-aware training as many run it: a trained CNN to int8 for x86, by FX.

``python -m integration.torch_ao.train_to_int8`` in the root of the repository runs it.
"""

import copy

import torch
from torch.ao.quantization import get_default_qat_qconfig_mapping
from torch.ao.quantization.backend_config.x86 import get_x86_backend_config
from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx

from integration.torch_ao.report import report
from vq_plugin.workloads import digits
from vq_plugin.workloads.training import single_threaded, train

SETTINGS = "x86"


def main() -> None:
    model = digits.model()
    samples = digits.load().train
    mapping, backend = get_default_qat_qconfig_mapping(SETTINGS), get_x86_backend_config()
    trained = copy.deepcopy(model).train()
    prepared = prepare_qat_fx(trained, mapping, (samples.images[:1],), backend_config=backend)
    with single_threaded():
        train(prepared, samples, optimizer=torch.optim.Adam, max_lr=1e-3, epochs=8)
    converted = convert_fx(prepared.eval(), backend_config=backend)
    report(model, converted)


if __name__ == "__main__":
    main()
