"""The same bytes by every way into the package: ``compress``, and all hosts."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq

pytest.importorskip("torchao")
pytest.importorskip("neural_compressor")

from neural_compressor.torch.quantization import quantize as inc_quantize
from torch.ao.quantization import convert, prepare
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torchao.quantization import quantize_
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

import vq_plugin.torch_ao as fx
import vq_plugin.torchao as ao
from vq_plugin.inc import VQConfig

SCHEMES = {
    "km": vq.KM(k=16),
    "pq in": vq.PQ(k=8, dim=4),
    "pq out": vq.PQ(k=8, dim=4, axis="out"),
    "pq in, shared": vq.PQ(k=8, dim=4, codebooks="tensor"),
    "pq out, shared": vq.PQ(k=8, dim=4, axis="out", codebooks="tensor"),
    "rq": vq.RQ(k=8, stages=2, dim=8),
    "binary": vq.Binary(),
}


def run(model: nn.Module, batches: list[Tensor]) -> None:
    with torch.no_grad():
        for batch in batches:
            model(batch)


def by_fx(model, scheme, batches):
    backend = fx.get_backend_config()
    mapping = fx.get_qconfig_mapping(scheme)
    prepared = prepare_fx(model, mapping, (torch.zeros(1, 1, 8, 8),), backend_config=backend)
    if batches:
        run(fx.observe_inputs(prepared), batches)
    return fx.check_converted(convert_fx(prepared, backend_config=backend), scheme)


def by_eager(model, scheme, batches):
    prepared = prepare(fx.assign_qconfigs(model, scheme))
    if batches:
        run(fx.observe_inputs(prepared), batches)
    return fx.check_converted(convert(prepared, mapping=fx.get_eager_mapping()), scheme)


def by_quantize(model, scheme, batches):
    def layers(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear | nn.Conv2d)

    if batches:
        quantize_(model, ao.VQWeightOnlyConfig(scheme, step="prepare"), layers)
        run(model, batches)
    step = "convert" if batches else None
    quantize_(model, ao.VQWeightOnlyConfig(scheme, step=step), layers)
    return ao.check_converted(model, scheme)


def by_pt2e(model, scheme, batches):
    program = torch.export.export(
        model, (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
    )
    prepared = prepare_pt2e(program.module(), ao.VQQuantizer(scheme))
    run(prepared, batches)
    return ao.check_converted(convert_pt2e(prepared), scheme)


def by_inc(model, scheme, batches):
    data = {"run_fn": run, "run_args": (batches,)} if batches else {}
    return inc_quantize(model, VQConfig(scheme), **data)


ROUTES = [by_fx, by_eager, by_quantize, by_pt2e, by_inc]


@pytest.mark.parametrize("calibrated", [False, True], ids=["weights", "calibrated"])
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_every_route_gives_the_same_bytes(scheme, calibrated, assert_same):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 32), nn.ReLU(), nn.Linear(32, 8)
    ).eval()
    batches = [torch.randn(12, 1, 8, 8) for _ in range(3)] if calibrated else []
    expected = vq.compress(model, scheme, batches or None)
    for route in ROUTES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            found = route(copy.deepcopy(model), scheme, batches)
        assert_same(found, expected, torch.randn(3, 1, 8, 8))
