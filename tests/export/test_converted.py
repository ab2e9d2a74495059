"""What hosts convert is exported as what vq.compress makes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import vq_plugin as vq
from vq_plugin.torch_ao import check_converted, get_backend_config, get_qconfig_mapping

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")

SCHEME = vq.KM(k=4)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8)
    ).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def by_fx(model: nn.Module, images: torch.Tensor, schemes: Any = SCHEME, base: Any = None) -> Any:
    backend, mapping = get_backend_config(), get_qconfig_mapping(schemes, base)
    prepared = prepare_fx(copy.deepcopy(model), mapping, (images,), backend_config=backend)
    prepared(images)
    return check_converted(convert_fx(prepared, backend_config=backend), schemes)


def by_pt2e(model: nn.Module, images: torch.Tensor) -> Any:
    pytest.importorskip("torchao")
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    from vq_plugin.torchao import VQQuantizer

    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(model, (images,), dynamic_shapes=shapes)
    return convert_pt2e(prepare_pt2e(program.module(), VQQuantizer(SCHEME)))


@pytest.mark.parametrize("convert", [by_fx, by_pt2e])
@pytest.mark.parametrize("operator", ["portable", "native"])
def test_converted_models_run_in_onnx_runtime(
    convert: Callable[..., Any], operator: Any, model: nn.Module, images: torch.Tensor,
    tmp_path: Path,
) -> None:  # fmt: skip
    onnxruntime = pytest.importorskip("onnxruntime")
    small, path = convert(model, images), tmp_path / "m.onnx"
    vq.export_onnx(small, path, images, operator=operator)
    assert path.stat().st_size < 6000
    session = onnxruntime.InferenceSession(path)
    for batch in (images, images[:1]):
        (found,) = session.run(None, {session.get_inputs()[0].name: batch.numpy()})
        with torch.no_grad():
            assert np.allclose(found, small(batch).numpy(), atol=1e-5)


@pytest.mark.parametrize("export", [vq.export_onnx, vq.export_aoti, vq.export_executorch])
def test_int8_layers_beside_them_are_refused_by_name(
    export: Callable[..., None], model: nn.Module, images: torch.Tensor, tmp_path: Path
) -> None:
    mixed = by_fx(model, images, {"4": SCHEME}, get_default_qconfig_mapping("x86"))
    with pytest.raises(ValueError, match=r"layer '0' is of torch\.ao's int8, whose packed"):
        export(mixed, tmp_path / "m.pt2", images)
    assert list(tmp_path.iterdir()) == []
