"""Whoever keeps parameters elsewhere, or wraps tensors, gets what float layers give."""

import socket
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.nn.utils import parametrize

import vq_plugin as vq
from tests.nn.decoding import CASES, SCHEMES, assert_near, decoded, pair

LAYERS = ["linear", "pointwise", "conv2d"]


@pytest.fixture
def one_process() -> Iterator[None]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_fully_sharded_models_compute_and_train(one_process: None, own: bool) -> None:
    for name in CASES:
        small, _, x = pair(name, vq.PQ(k=16, dim=4, scale="row"))
        expected = small(x).detach()
        loss = small(x).square().sum()
        gradient = float(torch.autograd.grad(loss, list(small.parameters()))[0].norm())
        sharded = FullyShardedDataParallel(
            nn.Sequential(small), device_id=torch.device("cpu"), use_orig_params=own
        )
        for _ in range(2):
            with torch.no_grad():
                assert_near(sharded(x), expected)
            sharded.zero_grad()
            sharded(x).square().sum().backward()
        assert gradient > 0
        assert all(p.grad is not None for p in sharded.parameters() if p.numel())
        with torch.no_grad():
            for parameter in sharded.parameters():
                parameter.mul_(2)
            assert not torch.allclose(sharded(x), expected)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_replicas_hold_plain_tensors(name: str, scheme: vq.Scheme) -> None:
    # As nn.DataParallel makes them, of layers on several GPUs.
    small, _, x = pair(name, scheme)
    expected = small(x)
    replica = small._replicate_for_data_parallel()
    for key, parameter in small._parameters.items():
        replica._parameters.pop(key, None)
        setattr(replica, key, None if parameter is None else parameter * 2)
    double = decoded(CASES[name][0], small)
    with torch.no_grad():
        for parameter in double.parameters():
            parameter.mul_(4 if scheme.scale == "row" and parameter.dim() > 1 else 2)
        assert_near(replica(x), double(x), 1e-3)
    replica(x).sum().backward()
    assert small.codebooks.grad is not None
    assert_near(small(x), expected)


class Halved(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values / 2


@pytest.mark.parametrize("name", LAYERS)
def test_codebooks_may_be_computed(name: str) -> None:
    small, expected, x = pair(name, vq.PQ(k=16, dim=4))
    parametrize.register_parametrization(small, "codebooks", Halved())
    with torch.no_grad():
        expected.weight.div_(2)  # type: ignore[operator]
        assert_near(small(x), expected(x))
    assert_near(small(x), expected(x))


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors(layout: torch.layout, gradients: bool) -> None:
    for layer, parts in (
        (nn.Linear(64, 64), [torch.randn(2, 64), torch.randn(5, 64)]),
        (nn.Embedding(50, 16), [torch.arange(2), torch.arange(5)]),
    ):
        small = vq.compress(layer, vq.PQ(k=16, dim=4))
        with torch.set_grad_enabled(gradients):
            found = small(torch.nested.nested_tensor(parts, layout=layout))
        assert found.is_nested
        for one, part in zip(found.unbind(), parts, strict=True):
            assert_near(one, small(part))


def test_codes_follow_codebooks_to_their_device() -> None:
    small, _, x = pair("conv2d", vq.KM(k=16))
    codebooks = nn.Parameter(small.codebooks.to("meta"))
    bias = nn.Parameter(small.bias.to("meta"))
    swapped = {"codebooks": codebooks, "bias": bias}
    assert torch.func.functional_call(small, swapped, (x.to("meta"),)).is_meta
    with torch.no_grad():
        assert torch.isfinite(small(x)).all()


def test_scripts_are_refused_with_what_to_do() -> None:
    small = vq.compress(nn.Sequential(nn.Linear(8, 8)), vq.KM(k=4))
    with pytest.raises(RuntimeError, match=r"use torch\.jit\.trace"):
        torch.jit.script(small)
