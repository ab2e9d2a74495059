"""What layers keep decoded is never of other codebooks than those that they have."""

import threading
import time

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
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
