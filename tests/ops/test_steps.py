"""Numbers of a step in training: native operators against sums in float64 by NumPy."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vq_plugin.ops import native, steps

REACH = 7


def problem(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A latent weight, some of it 0, between two numbers or out of reach; a gradient; a step."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.tensor(0.25)
    latent = 2 * torch.randn(count, generator=generator)
    latent[::3] = 0
    latent[1::5] = 0.125
    return latent, torch.randn(count, generator=generator), step


def numbers(latent: Tensor, step: Tensor) -> np.ndarray:
    return np.clip(np.rint(latent.double().numpy() / float(step)), -REACH, REACH)


@settings(max_examples=60, deadline=None)
@given(count=st.sampled_from([1, 255, 256, 700, 16_384, 40_001]), seed=st.integers(0, 9))
def test_weights_are_the_centers_of_their_numbers(count: int, seed: int) -> None:
    latent, _, step = problem(count, seed)
    centers, weight = torch.randn(2 * REACH + 1), torch.empty(count)
    steps.write_multiples(weight, latent, centers, step)
    expected = centers.numpy()[numbers(latent, step).astype(int) + REACH]
    assert weight.tolist() == expected.tolist()


@settings(max_examples=60, deadline=None)
@given(count=st.sampled_from([1, 255, 256, 700, 16_384, 40_001]), seed=st.integers(0, 9))
def test_counts_and_sums_of_numbers(count: int, seed: int) -> None:
    latent, grad, step = problem(count, seed)
    places = numbers(latent, step).astype(int) + REACH
    counts = steps.count_multiples(latent, step, REACH)
    assert counts.tolist() == np.bincount(places, minlength=2 * REACH + 1).tolist()
    sums = steps.sums_of_multiples(grad, latent, step, REACH)
    expected = np.bincount(places, grad.double().numpy(), 2 * REACH + 1)
    assert np.allclose(sums.numpy(), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(count=st.sampled_from([1, 255, 256, 700, 16_384, 40_001]), seed=st.integers(0, 9))
def test_bits_pull_and_the_step_feels_what_rounding_changes(count: int, seed: int) -> None:
    latent, grad, step = problem(count, seed)
    pulls = torch.rand(REACH + 1, generator=torch.Generator().manual_seed(seed))
    place = latent.double().numpy() / float(step)
    size = np.minimum(np.abs(place), REACH).astype(int)
    pull = np.copysign(pulls.double().numpy()[size], place)
    change = numbers(latent, step) - place
    wide = grad.double().numpy()
    expected = float((wide * change).sum() * float(step) - (pull * place).sum())
    gradient = wide + pull / float(step)
    slope = steps.pull_multiples(grad, latent, pulls, step)
    assert np.allclose(grad.numpy(), gradient, rtol=1e-6, atol=1e-6)
    scale = float(np.abs(wide * change).sum() * float(step) + np.abs(pull * place).sum())
    assert abs(float(slope) - expected) <= 1e-6 * scale


def by_torch(run: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> object:
    with monkeypatch.context() as context:
        context.setattr(steps, "native", lambda: None)
        return run()


def test_torch_gives_the_same_where_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    latent, grad, step = problem(5_000, 0)
    pulls, centers = torch.rand(REACH + 1), torch.randn(2 * REACH + 1)

    def all_of_it() -> list[Tensor]:
        pulled, weight = grad.clone(), torch.empty_like(latent)
        steps.write_multiples(weight, latent, centers, step)
        slope = steps.pull_multiples(pulled, latent, pulls, step)
        counts = steps.count_multiples(latent, step, REACH)
        return [weight, pulled, counts, slope, steps.sums_of_multiples(grad, latent, step, REACH)]

    *exact, slope, sums = all_of_it()
    *others, other_slope, other_sums = by_torch(all_of_it, monkeypatch)  # type: ignore[misc]
    assert all(torch.equal(a, b) for a, b in zip(exact, others, strict=True))
    assert torch.allclose(slope, other_slope, rtol=1e-4)
    assert torch.allclose(sums, other_sums, atol=1e-4)


def test_threads_change_no_bit(set_threads: Callable[[int], None]) -> None:
    latent, grad, step = problem(300_000, 1)
    found = []
    for threads in (1, 2):
        set_threads(threads)
        slope = steps.pull_multiples(grad.clone(), latent, torch.arange(REACH + 1.0), step)
        found.append((float(slope), *steps.sums_of_multiples(grad, latent, step, REACH).tolist()))
    assert found[0] == found[1]


def test_other_layouts_and_dtypes_go_by_torch() -> None:
    latent = torch.randn(8, 6).T
    weight = torch.empty(6, 8, dtype=torch.float64)
    steps.write_multiples(weight, latent, torch.arange(-3.0, 4.0), torch.tensor(1.0))
    assert torch.equal(weight, latent.round().clamp(-3, 3).double())


def test_nan_stays_where_it_is() -> None:
    latent = torch.tensor([1.0, torch.nan, -2.0])
    weight = torch.empty(3)
    steps.write_multiples(weight, latent, torch.arange(-3.0, 4.0), torch.tensor(1.0))
    assert weight[[0, 2]].tolist() == [1.0, -2.0]
    assert weight.isnan().tolist() == [False, True, False]
    slope = steps.pull_multiples(torch.zeros(3), latent, torch.ones(4), torch.tensor(1.0))
    assert slope.isnan()


@pytest.mark.skipif(native() is None, reason="no kernels here")
def test_operators_refuse_what_does_not_fit_together() -> None:
    some, other = torch.zeros(4), torch.zeros(5)
    with pytest.raises(RuntimeError, match="of 4 numbers"):
        torch.ops.vq.write_multiples(other, some, torch.zeros(7), 1.0)
    with pytest.raises(RuntimeError, match="of 4 numbers"):
        torch.ops.vq.pull_multiples(other, some, torch.zeros(4), 1.0)
    with pytest.raises(RuntimeError, match="of 4 numbers"):
        torch.ops.vq.sums_of_multiples(other, some, 1.0, 3)
    with pytest.raises(RuntimeError, match="centers"):
        torch.ops.vq.write_multiples(some, some.clone(), torch.zeros(8), 1.0)
    with pytest.raises(RuntimeError, match="reach to 0"):
        torch.ops.vq.count_multiples(some, 1.0, 0)
