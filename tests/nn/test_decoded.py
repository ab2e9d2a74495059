"""What layers keep decoded is never of other codebooks than those that they have."""

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin import ops
from vq_plugin.nn import CodebookLinear
from vq_plugin.nn.decoded import Decoded


def test_what_is_kept_is_of_the_tables_that_it_is_filed_under() -> None:
    codes, table = torch.zeros(1), torch.ones(4)
    decoded = Decoded()

    def slow(given: Tensor) -> Tensor:
        result = given * 10
        table.fill_(2)  # as another thread does meanwhile
        return result

    assert torch.equal(decoded.get(codes, [table], slow), torch.full((4,), 10.0))
    assert torch.equal(decoded.get(codes, [table], lambda t: t * 10), torch.full((4,), 20.0))


def test_a_slower_thread_that_stores_last_is_noticed() -> None:
    codes, table = torch.zeros(1), torch.ones(4)
    decoded, old_read, new_stored = Decoded(), threading.Event(), threading.Event()

    def slow(given: Tensor) -> Tensor:
        old_read.set()
        assert new_stored.wait(10)
        return given * 10

    thread = threading.Thread(target=lambda: decoded.get(codes, [table], slow))
    thread.start()
    assert old_read.wait(10)
    table.fill_(2)
    decoded.get(codes, [table], lambda t: t * 10)
    new_stored.set()
    thread.join()
    assert torch.equal(decoded.get(codes, [table], lambda t: t * 10), torch.full((4,), 20.0))


def _in_place(table: nn.Parameter) -> None:
    with torch.no_grad():
        table[-1, -1, -1, -1, -1] += 1


def _through_data(table: nn.Parameter) -> None:
    table.data[0, 0, 0, 0, 0] += 1


def _scaled_through_data(table: nn.Parameter) -> None:
    table.data.mul_(2)


def _through_numpy(table: nn.Parameter) -> None:
    table.detach().numpy()[0, -1, -1, 1] *= -1


def _moved(table: nn.Parameter) -> None:
    table.data.copy_(table.data.flatten().roll(8).view_as(table))


def _replaced(table: nn.Parameter) -> None:
    table.data = table.data.flip(3).contiguous()


@pytest.mark.parametrize(
    "write",
    [_in_place, _through_data, _scaled_through_data, _through_numpy, _moved, _replaced],
    ids=["in place", "data", "data scaled", "numpy", "data moved", "data replaced"],
)
@pytest.mark.parametrize(
    "scheme",
    [vq.PQ(k=256, dim=8), vq.PQ(k=16, dim=4, axis="out", scale="row"), vq.KM(k=16, group=32)],
    ids=["large", "with scale", "groups"],
)
def test_every_way_to_write_to_codebooks_is_noticed(
    scheme: vq.Scheme, write: Callable[[nn.Parameter], None]
) -> None:
    layer = CodebookLinear.from_float(nn.Linear(64, 300), scheme)
    x = torch.randn(128, 64)
    before = ops.isa()
    if before is not None:
        ops.use_isa("scalar")  # which would not pay
    try:
        with torch.no_grad():
            old = layer(x)
            assert layer._decoded.kept is not None
            assert torch.equal(layer(x), old)
            write(layer.codebooks)
            found = layer(x)
            assert not torch.equal(found, old)
            assert torch.equal(found, functional.linear(x, layer.weight, layer.bias))
    finally:
        if before is not None:
            ops.use_isa(before)


def _digest(values: NDArray[np.uint8]) -> bytes:
    module = ops.native()
    assert module is not None
    found: bytes = module.digest(values.ctypes.data, values.nbytes)
    return found


@pytest.mark.skipif(ops.native() is None, reason="there are no native kernels")
def test_digests_are_others_whatever_byte_is_written_and_alike_on_every_instruction_set() -> None:
    before = ops.isa()
    assert before is not None
    random = np.random.default_rng(0)
    for nbytes in (0, 1, 7, 8, 63, 64, 65, 200, 8192):
        values = random.integers(0, 256, nbytes, dtype=np.uint8)
        # What scaling, exchanging, zeros and single bits make of it; none is like another.
        others = [np.roll(values, shift) for shift in (1, 4, 8, 64)] + [values ^ 128, values * 0]
        for at in range(0, nbytes, 1 if nbytes < 1000 else 97):
            others.append(values.copy())
            others[-1][at] ^= 1 << at % 8
        digests: dict[bytes, bytes] = {}
        try:
            for isa in ops.isas():
                ops.use_isa(isa)
                for other in (values, *others):
                    assert digests.setdefault(other.tobytes(), _digest(other)) == _digest(other)
        finally:
            ops.use_isa(before)
        assert len(set(digests.values())) == len(digests)


@pytest.mark.parametrize(
    ("layer", "scheme", "shape"),
    [
        (nn.Conv2d(16, 16, 3), vq.KM(k=16), (1, 16, 6, 6)),
        (nn.Linear(256, 256), vq.KM(k=1024), (4, 256)),
        (nn.GRUCell(64, 64), vq.KM(k=16), (1, 64)),
    ],
    ids=["convolution", "many centers", "parameters"],
)
def test_codebooks_may_change_while_other_threads_run(
    layer: nn.Module, scheme: vq.Scheme, shape: tuple[int, ...]
) -> None:
    small = vq.compress(layer, scheme).requires_grad_(False)
    x, stop = torch.randn(shape), threading.Event()
    tables = [p for name, p in small.named_parameters() if name.endswith("codebooks")]
    base = [table.detach().clone() for table in tables]

    @torch.no_grad()
    def run() -> None:
        while not stop.is_set():
            small(x)

    end, step = time.monotonic() + 1.5, 0
    while time.monotonic() < end:
        stop.clear()
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            step += 1
            for table, values in zip(tables, base, strict=True):
                table.data.copy_(values * (1 + 0.01 * (step % 7)))
            time.sleep(0.0005)
        stop.set()
        for thread in threads:
            thread.join()
        with torch.no_grad():
            kept = small(x)
            vq.set_memory(small, "codes")
            torch.testing.assert_close(kept, small(x), rtol=1e-5, atol=1e-5)
            vq.set_memory(small, "weight")


@pytest.mark.parametrize(
    ("layer", "scheme"),
    [
        (nn.Linear(16, 16), vq.PQ(k=16, dim=4)),
        (nn.Conv2d(16, 16, 1), vq.KM(k=16)),
        (nn.Conv2d(16, 16, 3), vq.PQ(k=16, dim=4, layout="channels")),
    ],
    ids=["linear", "pointwise", "convolution"],
)
def test_without_kernels_weights_are_kept_and_follow_their_codebooks(
    layer: nn.Module, scheme: vq.Scheme, fresh_native: pytest.MonkeyPatch
) -> None:
    fresh_native.setenv("VQ_PLUGIN_ISA", "none")
    small = vq.compress(layer, scheme)
    x = torch.randn(1, 16, 16, 16)
    with torch.no_grad():
        old = small(x)
        assert torch.equal(small(x), old)
        assert small._decoded.kept is not None
        small.codebooks.data.mul_(2)
        assert not torch.equal(small(x), old)
