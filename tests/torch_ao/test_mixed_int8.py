"""Stock int8 layers and codebook layers from one prepare and convert."""

import copy

import pytest
import torch
from torch import nn
from torch.ao.nn import quantized
from torch.ao.nn.intrinsic import quantized as fused_quantized
from torch.ao.quantization import get_default_qconfig, get_default_qconfig_mapping
from torch.ao.quantization.backend_config.x86 import get_x86_backend_config
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import vq_plugin as vq
from vq_plugin.nn import CodebookConv2d, CodebookLinear
from vq_plugin.select import select
from vq_plugin.torch_ao import (
    check_converted,
    fused_float,
    get_backend_config,
    get_qconfig_mapping,
)

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")

BATCHES = [torch.randn(16, 1, 8, 8) for _ in range(2)]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 16),
        nn.ReLU(),
        nn.Linear(16, 10),
    ).eval()


def run(model, mapping, backend):
    prepared = prepare_fx(copy.deepcopy(model), mapping, (BATCHES[0],), backend_config=backend)
    for batch in BATCHES:
        prepared(batch)
    return convert_fx(prepared, backend_config=backend)


def mixed(model, schemes):
    mapping = get_qconfig_mapping(schemes, get_default_qconfig_mapping("x86"))
    return check_converted(run(model, mapping, get_backend_config()), schemes)


def test_int8_convolutions_and_codebook_linears():
    model = network()
    schemes = select(model, {nn.Linear: vq.PQ(k=8, dim=4)})
    converted = mixed(model, schemes)
    assert type(converted.get_submodule("0")) is fused_quantized.ConvReLU2d
    assert type(converted.get_submodule("3")) is fused_quantized.ConvReLU2d
    expected = vq.compress(model, schemes)
    for name in schemes:
        layer = converted.get_submodule(name)
        assert type(layer) is CodebookLinear
        assert torch.equal(layer.codes, expected.get_submodule(name).codes)
        assert torch.equal(layer.codebooks, expected.get_submodule(name).codebooks)
    got, wanted = converted(BATCHES[0]), expected(BATCHES[0])
    assert (got - wanted).norm() < 0.1 * wanted.norm()
    assert len(vq.summary(converted).rows) == 2


def test_a_codebook_layer_between_int8_layers():
    model = network()
    converted = mixed(model, {"7": vq.KM(k=16)})
    assert type(converted.get_submodule("0")) is fused_quantized.ConvReLU2d
    assert type(converted.get_submodule("7")) is CodebookLinear
    assert type(converted.get_submodule("9")) is quantized.Linear
    wanted = vq.compress(model, {"7": vq.KM(k=16)})(BATCHES[0])
    assert (converted(BATCHES[0]) - wanted).norm() < 0.1 * wanted.norm()


def test_codebook_convolutions_and_int8_linears():
    model = network()
    schemes = {"0": vq.KM(k=8), "re:3": vq.PQ(k=8, dim=4)}
    converted = mixed(model, schemes)
    assert type(converted.get_submodule("0")) is CodebookConv2d
    assert type(converted.get_submodule("3")) is CodebookConv2d
    assert type(converted.get_submodule("7")) is fused_quantized.LinearReLU
    expected = vq.compress(fused_float(model), schemes)
    assert torch.equal(converted.get_submodule("0").codes, expected.get_submodule("0").codes)


def test_int8_in_a_mapping_of_ours():
    schemes = {"7": vq.KM(k=16)}
    mapping = get_qconfig_mapping(schemes)
    mapping.set_module_name("3", get_default_qconfig("x86"))
    converted = check_converted(run(network(), mapping, get_backend_config()), schemes)
    assert type(converted.get_submodule("3")) is fused_quantized.ConvReLU2d
    assert type(converted.get_submodule("7")) is CodebookLinear
    assert type(converted.get_submodule("9")) is nn.Linear


def test_layers_left_to_the_base():
    converted = mixed(network(), {"re:[79]": vq.KM(k=16), "9": None, nn.Conv2d: None, "*": None})
    assert type(converted.get_submodule("7")) is CodebookLinear
    assert type(converted.get_submodule("9")) is quantized.Linear
    assert type(converted.get_submodule("3")) is fused_quantized.ConvReLU2d


def test_our_backend_changes_nothing_for_stock_models():
    model, mapping = network(), get_default_qconfig_mapping("x86")
    stock = run(model, mapping, get_x86_backend_config())
    ours = run(model, mapping, get_backend_config())
    assert torch.equal(stock(BATCHES[1]), ours(BATCHES[1]))
    assert str(stock) == str(ours)


def test_the_stock_backend_is_not_changed():
    get_backend_config()
    for config in get_x86_backend_config().configs:
        assert torch.uint8 not in [dtypes.weight_dtype for dtypes in config.dtype_configs]


def test_a_file_with_int8_layers_is_refused(tmp_path):
    converted = mixed(network(), {"7": vq.KM(k=16)})
    with pytest.raises(ValueError, match="without pickle"):
        vq.save(converted, tmp_path / "model.vq")
