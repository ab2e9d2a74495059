"""``float_to_int8.py`` with codebooks: beside the imports, three lines differ.

A fourth, ``observe_inputs(prepared)`` before the calibration loop, would weigh errors by the
inputs; without it the loop changes nothing here.
"""

import copy

import torch
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import vq_plugin as vq
from integration.torch_ao.report import report
from vq_plugin.torch_ao import check_converted, get_backend_config, get_qconfig_mapping
from vq_plugin.workloads import digits

SETTINGS = {"re:classifier.*": vq.PQ(k=16, dim=4), "*": vq.KM(k=16)}


def main() -> None:
    model = digits.model()
    batches = digits.calibration()
    mapping, backend = get_qconfig_mapping(SETTINGS), get_backend_config()
    prepared = prepare_fx(copy.deepcopy(model), mapping, (batches[0],), backend_config=backend)
    with torch.no_grad():
        for batch in batches:
            prepared(batch)
    converted = check_converted(convert_fx(prepared, backend_config=backend), SETTINGS)
    report(model, converted)


if __name__ == "__main__":
    main()
