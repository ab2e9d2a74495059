"""The same bytes for the same input, on any number of threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from tests.fit.problems import correlated_inputs, moments_of

# float32 codebooks: rounding to half precision would hide small differences.
SCHEMES = [
    vq.KM(k=16, codebook_dtype="float32"),
    vq.KM(k=300, codebook_dtype="float32"),
    vq.KM(k=8, group=100, scale="row", codebook_dtype="float32"),
    vq.KM(k=8, keep_zeros=True, codebook_dtype="float32"),
    vq.PQ(k=16, dim=4, codebook_dtype="float32"),
    vq.PQ(k=16, dim=4, axis="out", codebook_dtype="float32"),
    vq.PQ(k=64, dim=8, codebooks="tensor", codebook_dtype="float32"),
    vq.PQ(k=16, dim=7, codebooks="tensor", codebook_dtype="float32"),
    vq.PQ(k=16, dim=4, scale="row", codebook_dtype="float32"),
    vq.RQ(k=16, stages=2, codebook_dtype="float32"),
    vq.RQ(k=16, stages=2, dim=8, axis="out", codebook_dtype="float32"),
    vq.Binary(codebook_dtype="float32"),
    vq.Binary(scale="row", codebook_dtype="float32"),
]


def weight() -> Tensor:
    # Not a power of two, and large enough that torch would split its sums among threads.
    return torch.randn(301, 407, generator=torch.Generator().manual_seed(3))


def fitted(scheme: vq.Scheme, importance: Tensor | None = None, seed: int = 0) -> list[bytes]:
    small = vq.quantize_weight(weight(), scheme, importance, seed)
    tensors = [small.codes, small.codebooks, *([] if small.scale is None else [small.scale])]
    return [t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_threads_do_not_change_a_byte(
    scheme: vq.Scheme, weighted: bool, set_threads: Callable[[int], None]
) -> None:
    importance = torch.rand(407, generator=torch.Generator().manual_seed(4)) if weighted else None
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        results.append(fitted(scheme, importance))
    assert results[0] == results[1] == results[2]


# More inputs than one thread multiplies at a time; more outputs than one thread sweeps.
@pytest.mark.parametrize("shape", [(24, 600), (600, 40)], ids=str)
@pytest.mark.parametrize(
    "scheme", [SCHEMES[0], SCHEMES[4], SCHEMES[6], SCHEMES[10], SCHEMES[11]], ids=str
)
def test_threads_do_not_change_a_byte_of_a_calibrated_fit(
    scheme: vq.Scheme, shape: tuple[int, int], set_threads: Callable[[int], None]
) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    moments = moments_of(correlated_inputs(500, shape[1]))
    results = []
    for threads in (1, 3):
        set_threads(threads)
        small = vq.quantize_weight(values, scheme, moments=moments)
        assert small.bias_shift is not None
        tensors = [small.codes, small.codebooks, small.bias_shift]
        results.append([t.contiguous().view(torch.uint8).numpy().tobytes() for t in tensors])
    assert results[0] == results[1]


@pytest.mark.parametrize("scheme", SCHEMES[::3], ids=str)
def test_repeating_a_fit_repeats_its_bytes_whatever_the_callers_random_state(
    scheme: vq.Scheme,
) -> None:
    first = fitted(scheme)
    torch.manual_seed(123)
    torch.rand(7)
    assert fitted(scheme) == first


@pytest.mark.parametrize("scheme", SCHEMES[::3], ids=str)
def test_the_callers_random_state_and_threads_stay(
    scheme: vq.Scheme, set_threads: Callable[[int], None]
) -> None:
    for threads in (1, 2):
        set_threads(threads)
        state = torch.get_rng_state()
        fitted(scheme)
        assert torch.equal(torch.get_rng_state(), state)
        assert torch.get_num_threads() == threads


def test_a_failing_fit_gives_the_threads_back(set_threads: Callable[[int], None]) -> None:
    set_threads(2)
    with pytest.raises(ValueError, match="a center does not fit"):
        vq.quantize_weight(torch.randn(9, 8) * 1e6, vq.PQ(k=4))
    assert torch.get_num_threads() == 2


def test_seeds_differ_where_there_is_chance() -> None:
    scheme = vq.PQ(k=16, dim=4)
    results = [fitted(scheme, seed=seed) for seed in (0, 1, 2, -1, 2**31)]
    assert len({books for _, books in results}) == len(results)


def test_the_callers_grad_mode_does_not_matter() -> None:
    scheme = vq.PQ(k=16, dim=4, codebook_dtype="float32")
    first = fitted(scheme)
    with torch.no_grad():
        assert fitted(scheme) == first
    with torch.inference_mode():
        assert fitted(scheme) == first


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_callers_default_dtype_does_not_matter(scheme: vq.Scheme, default: torch.dtype) -> None:
    values = weight()
    first = vq.quantize_weight(values, scheme)
    torch.set_default_dtype(default)
    try:
        again = vq.quantize_weight(values, scheme)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again.codes, first.codes)
    assert again.codebooks.dtype == torch.float32
    assert torch.equal(again.codebooks, first.codebooks)


def test_fits_from_several_threads_of_the_user_agree_and_leave_the_thread_count(
    set_threads: Callable[[int], None],
) -> None:
    set_threads(2)
    scheme = vq.PQ(k=16, dim=4, codebook_dtype="float32")
    alone = fitted(scheme)
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda _: fitted(scheme), range(6)))
    assert all(result == alone for result in together)
    assert torch.get_num_threads() == 2


def test_a_whole_model_is_compressed_to_the_same_bytes(set_threads: Callable[[int], None]) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Flatten(), nn.Linear(16 * 36, 60))
    data = [torch.randn(20, 3, 8, 8) for _ in range(3)]
    states = []
    for threads in (1, 2):
        set_threads(threads)
        states.append(vq.compress(model, {"0": vq.KM(), "*": vq.PQ()}, data).state_dict())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
