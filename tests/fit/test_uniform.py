"""Equal steps: what they lose, how rows share it, and what they take in a file."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import vq_plugin as vq
from vq_plugin.fit.output.moments import Moments
from vq_plugin.sizes import file_nbytes


def laplacian(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    signs = torch.rand(rows, columns, generator=generator) - 0.5
    return signs.sign() * -torch.log1p(-2 * signs.abs())


@given(st.floats(0.02, 4), st.integers(1, 40), st.integers(1, 40), st.sampled_from([None, "row"]))
def test_no_weight_is_off_by_more_than_half_a_step(
    step: float, rows: int, columns: int, scale: str | None
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    scheme = vq.Uniform(step, k=4095, scale=scale, codebook_dtype="float32")  # type: ignore[arg-type]
    small = vq.quantize_weight(weight, scheme)
    size = weight.square().mean(1, keepdim=True) if scale else weight.square().mean()
    # A center moves to the mean of what is nearest to it, inside its interval.
    assert bool(((small.decode() - weight).abs() <= step * size.sqrt() * 1.0001).all())


def test_at_the_error_of_k_means_its_file_is_smaller() -> None:
    weight = laplacian(256, 256)
    for k in (8, 16, 32):
        other = vq.quantize_weight(weight, vq.KM(k))
        error = float((other.decode() - weight).square().mean())
        step = next(
            s / 100 for s in range(200, 1, -2)
            if float((vq.quantize_weight(weight, vq.Uniform(s / 100)).decode() - weight)
                     .square().mean()) <= error
        )  # fmt: skip
        assert file_nbytes(vq.quantize_weight(weight, vq.Uniform(step))) < 0.97 * file_nbytes(other)


def test_rows_are_given_the_steps_that_the_outputs_bear() -> None:
    weight = laplacian(64, 256) * torch.logspace(-1, 1, 64).unsqueeze(1)
    felt = torch.logspace(2, -2, 64, dtype=torch.float64) * torch.linspace(1, 3, 64)
    moments = Moments(torch.ones(()), outputs=felt)
    small = vq.quantize_weight(weight, vq.Uniform(0.2, scale="row"), moments=moments)
    by_row = (small.decode() - weight).double().square().sum(1) * felt
    assert float(by_row.max() / by_row.min()) < 1.5


def test_of_rows_that_nothing_is_felt_of_something_is_left() -> None:
    weight = laplacian(8, 64)
    felt = torch.ones(8, dtype=torch.float64)
    felt[3] = 0
    moments = Moments(torch.ones(()), outputs=felt)
    small = vq.quantize_weight(weight, vq.Uniform(0.5, scale="row"), moments=moments)
    errors = (small.decode() - weight).square().sum(1) / weight.square().sum(1)
    assert errors[2] < errors[3] < 0.2


@pytest.mark.parametrize("scale", [None, "row"])
def test_the_last_center_reaches_the_largest_weight(scale: str | None) -> None:
    weight = laplacian(16, 64)
    weight[:, 0] = 100
    scheme = vq.Uniform(0.01, k=63, scale=scale)  # type: ignore[arg-type]
    small = vq.quantize_weight(weight, scheme)
    assert small.k <= 63
    assert torch.allclose(small.decode()[:, 0], weight[:, 0], rtol=2e-3)


@pytest.mark.parametrize("scale", [None, "row"])
def test_zeros_ones_and_single_weights(scale: str | None) -> None:
    scheme = vq.Uniform(scale=scale)  # type: ignore[arg-type]
    for weight in (torch.zeros(4, 4), torch.ones(3, 5), torch.tensor([[2.5]])):
        small = vq.quantize_weight(weight, scheme)
        assert torch.allclose(small.decode(), weight, rtol=1e-3)


@pytest.mark.parametrize("step", [0, -1.0, float("nan"), float("inf"), True, "1"])
def test_a_step_that_is_none_is_refused(step: float) -> None:
    with pytest.raises(ValueError, match="step must be a finite number above 0"):
        vq.Uniform(step)
