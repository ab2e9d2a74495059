"""Programs compiled for devices without kernels of ours decode a weight in one kernel."""

from collections.abc import Iterator
from importlib import import_module

import pytest
import torch
from torch import nn
from torch._inductor import metrics
from torch.nn import functional

import vq_plugin as vq


@pytest.fixture
def _no_kernels(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is compiled for the CPU is what is compiled for a device without kernels of ours."""
    # The package has a function of that name.
    module = import_module("vq_plugin.ops.recording")
    monkeypatch.setattr(module, "_KERNEL_DEVICES", frozenset())
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_no_kernels")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "scheme", [vq.KM(k=16), vq.PQ(k=16, dim=4), vq.RQ(k=16, stages=2, dim=4)], ids=str
)
def test_compiled_decoding_is_one_kernel(scheme: vq.Scheme, dtype: torch.dtype) -> None:
    layer = vq.nn.CodebookLinear.from_float(nn.Linear(16, 32), scheme).to(dtype)
    inputs = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    metrics.reset()
    with torch.no_grad():
        outputs = torch.compile(layer)(inputs)
        expected = functional.linear(inputs, layer.weight, layer.bias)
    # The product is torch's.
    assert metrics.generated_kernel_count == 1
    torch.testing.assert_close(outputs, expected)
