"""``train_to_int8.py`` with codebooks: beside the imports, three lines differ."""

import copy

import torch
from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx

import vq_plugin as vq
from integration.torch_ao.report import report
from vq_plugin.torch_ao import check_converted, get_backend_config, get_qat_qconfig_mapping
from vq_plugin.workloads import digits
from vq_plugin.workloads.training import single_threaded, train

SETTINGS = {"re:classifier.*": vq.PQ(k=16, dim=8, codebooks="tensor"), "*": vq.KM(k=4)}


def main() -> None:
    model = digits.model()
    samples = digits.load().train
    mapping, backend = get_qat_qconfig_mapping(model, SETTINGS), get_backend_config()
    trained = copy.deepcopy(model).train()
    prepared = prepare_qat_fx(trained, mapping, (samples.images[:1],), backend_config=backend)
    with single_threaded():
        train(prepared, samples, optimizer=torch.optim.Adam, max_lr=1e-3, epochs=8)
    converted = check_converted(convert_fx(prepared.eval(), backend_config=backend), SETTINGS)
    report(model, converted)


if __name__ == "__main__":
    main()
