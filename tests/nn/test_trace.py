"""``torch.jit.trace``: programs that take other sizes, and hold codes."""

import io

import pytest
import torch
from torch import nn

import vq_plugin as vq
from tests.nn.decoding import CASES, SCHEMES, assert_near, pair

# Torch's, of traces as such, and of sizes of codebooks that a trace may take for constants.
pytestmark = [
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
]


@pytest.mark.parametrize("run_before", [False, True])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_a_trace_takes_other_batches(
    name: str, scheme: vq.Scheme, gradients: bool, run_before: bool
) -> None:
    small, expected, x = pair(name, scheme)
    with torch.set_grad_enabled(gradients):
        if run_before:
            small(x)
        traced = torch.jit.trace(small, x)  # type: ignore[no-untyped-call]
        file = io.BytesIO()
        torch.jit.save(traced, file)  # type: ignore[no-untyped-call]
        file.seek(0)
        loaded = torch.jit.load(file)  # type: ignore[no-untyped-call]
    for program in (traced, loaded):
        for batch in (x[:1], torch.cat([x, -x, x])):
            assert_near(program(batch), expected(batch))
    # Gradients, also of what was traced without.
    inputs = x.clone().requires_grad_()
    traced(inputs).sum().backward()
    assert inputs.grad is not None


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_trace_of_an_embedding_takes_other_shapes(scheme: vq.Scheme) -> None:
    small = vq.compress(nn.Embedding(50, 16, padding_idx=4), scheme).eval()
    traced = torch.jit.trace(small, torch.arange(5))  # type: ignore[no-untyped-call]
    other = torch.arange(12).reshape(3, 4)
    assert_near(traced(other), small(other))


def test_convolutions_take_images_of_other_sizes() -> None:
    for layer in (nn.Conv2d(8, 8, 3), nn.Conv2d(32, 32, 1, stride=2)):
        small = vq.compress(layer, vq.PQ(k=16, dim=4)).eval()
        channels = layer.in_channels
        traced = torch.jit.trace(small, torch.randn(2, channels, 4, 4))  # type: ignore[no-untyped-call]
        x = torch.randn(5, channels, 7, 9)
        assert_near(traced(x), small(x))


@pytest.mark.parametrize("name", ["linear", "pointwise"])
def test_a_trace_refuses_inputs_of_another_width(name: str) -> None:
    small, _, x = pair(name, vq.PQ(k=16, dim=4))
    traced = torch.jit.trace(small, x)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError):
        traced(x[:, :-1])


def test_a_trace_holds_codes_not_weights() -> None:
    model = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Unflatten(1, (32, 4, 4)))
    model.extend([nn.Conv2d(32, 64, 3), nn.Conv2d(64, 512, 1)])
    small = vq.compress(model, vq.PQ(k=16, dim=4, codebooks="tensor")).eval()
    x = torch.randn(2, 512)
    with torch.no_grad():
        small(x)
        traced = torch.jit.trace(small, x)  # type: ignore[no-untyped-call]
    file = io.BytesIO()
    torch.jit.save(traced, file)  # type: ignore[no-untyped-call]
    dense = sum(4 * p.numel() for p in model.parameters())
    assert len(file.getvalue()) < dense / 8
