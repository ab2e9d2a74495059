"""One model and one scheme, three doors: the same codes, codebooks and outputs."""

import copy

import pytest

pytest.importorskip("neural_compressor", reason="Intel Neural Compressor is not installed")

import torch
from neural_compressor.torch.quantization import quantize
from torch import nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import vq_plugin as vq
from vq_plugin.inc import VQConfig
from vq_plugin.torch_ao import (
    check_converted,
    fused_float,
    get_backend_config,
    get_qconfig_mapping,
    observe_inputs,
)
from vq_plugin.workloads import digits

SCHEMES = [
    vq.KM(k=16),
    vq.KM(k=5, group=8, scale="row"),
    vq.PQ(k=16, dim=4),
    vq.PQ(k=8, dim=3, axis="out", codebooks="tensor"),
    vq.RQ(k=16, stages=2, dim=8),
    vq.Binary(scale="row"),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("calibrated", [False, True])
def test_three_doors(assert_same, scheme, calibrated):
    # FX folds batch norm into the layers before it; the others are given the same.
    model, batches = fused_float(digits.model()), digits.calibration()
    direct = vq.compress(model, scheme, batches if calibrated else None)

    prepared = prepare_fx(
        copy.deepcopy(model),
        get_qconfig_mapping(scheme),
        (batches[0],),
        backend_config=get_backend_config(),
    )
    if calibrated:
        observe_inputs(prepared)
        with torch.no_grad():
            for batch in batches:
                prepared(batch)
    fx = check_converted(convert_fx(prepared, backend_config=get_backend_config()), scheme)

    def run_fn(calibrating: nn.Module) -> None:
        for batch in batches:
            calibrating(batch)

    inc = quantize(copy.deepcopy(model), VQConfig(scheme), run_fn=run_fn if calibrated else None)
    assert_same(fx, direct, batches[0])
    assert_same(inc, direct, batches[0])
