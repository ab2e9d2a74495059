"""What the tests share: a Hypothesis profile, threads shared out and given back, a browser."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from vq_plugin import ops
from vq_plugin.extension import extension
from vq_plugin.nn import CodebookLayer
from vq_plugin.ops.costs import forget_costs
from vq_plugin.ops.native import native

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# The same examples on every run: a pipeline that fails must fail again.
settings.register_profile(
    "vq_plugin", deadline=None, derandomize=True, database=None, max_examples=40
)
settings.load_profile("vq_plugin")


def pytest_configure() -> None:
    """Workers of pytest-xdist share the processors, and so do the processes that tests start.

    Threads of OpenMP spin while they wait for each other: with two in each of two workers on two
    processors, most of the time went there. Tests of threads set a number of their own.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        threads = max(1, torch.get_num_threads() // workers)
        torch.set_num_threads(threads)
        os.environ["OMP_NUM_THREADS"] = str(threads)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Refuses sets among cases: all workers have to name the same, and a set is in no order."""
    for mark in metafunc.definition.iter_markers("parametrize"):
        if _holds_a_set(mark.args[1]):
            test = metafunc.definition.nodeid
            raise pytest.UsageError(f"{test}: cases are, or hold, a set: make it a list")


def _holds_a_set(cases: object) -> bool:
    if isinstance(cases, list | tuple):
        return any(map(_holds_a_set, cases))
    return isinstance(cases, set | frozenset)


@pytest.fixture(autouse=True, scope="session")
def _shipped_costs() -> Iterator[None]:
    """Which way layers run does not hang on what somebody measured on this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VQ_PLUGIN_COSTS", "shipped")
        yield


@pytest.fixture(autouse=True, scope="session")
def _signals_end() -> Iterator[None]:
    """Processes inherit what nohup and jobs in the background say: to ignore them."""
    found = {
        signal.SIGHUP: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }
    before = {number: signal.signal(number, handler) for number, handler in found.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def by_codes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Layers run from their codes wherever kernels can, however small they are."""
    monkeypatch.setattr("vq_plugin.ops.costs.codes_pay", lambda *_, **__: True)
    forget_costs()
    yield
    forget_costs()


@pytest.fixture
def fresh_native(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The kernels are chosen anew in the test, and again after it."""
    before = ops.isa()
    for cached in (native, extension, ops.isa):
        cached.cache_clear()
    with monkeypatch.context() as patch:
        yield patch
    for cached in (native, extension, ops.isa):
        cached.cache_clear()
    if before is not None:
        ops.use_isa(before)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's thread count; the old one comes back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def browser() -> Iterator["Browser"]:
    """A headless Chromium; tests that need it are skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip(f"no Chromium: none of {', '.join(names)} is on the PATH")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(autouse=True)
def _fixed_random_state() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Codes, codebooks, scales and outputs of two models are equal bit for bit."""

    def check(one: nn.Module, other: nn.Module, *inputs: Tensor) -> None:
        ours, theirs = codebook_layers(one), codebook_layers(other)
        assert ours.keys() == theirs.keys() != set()
        for name, layer in ours.items():
            assert type(layer) is type(theirs[name])
            state, reference = layer.state_dict(), theirs[name].state_dict()
            assert state.keys() == reference.keys()
            for key, value in state.items():
                assert torch.equal(value, reference[key]), (name, key)
        with torch.no_grad():
            assert torch.equal(one(*inputs), other(*inputs))

    return check


def codebook_layers(model: nn.Module) -> dict[str, CodebookLayer]:
    return {n: m for n, m in model.named_modules() if isinstance(m, CodebookLayer)}
