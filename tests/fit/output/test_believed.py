"""What is believed of errors that make up for each other, against errors drawn one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from vq_plugin.fit.output import believed as believed_module
from vq_plugin.fit.output.across import shrunk
from vq_plugin.fit.output.believed import believed
from vq_plugin.schemes.scalar import LEAST_FELT


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def half(directions: Tensor, own: float, seed: int, gradients: int = 200) -> Tensor:
    """Sum of ``g gᵀ`` over gradients along some directions, and of each output by itself."""
    count, outputs = directions.shape
    along = normal(gradients, count, seed=seed) @ directions
    each = along + own * normal(gradients, outputs, seed=-seed)
    return each.T @ each


def off(matrix: Tensor) -> Tensor:
    return matrix - matrix.diagonal().diag()


@pytest.mark.parametrize("own", [0.1, 0.5])
def test_halves_that_agree_are_believed(own: float) -> None:
    directions = normal(2, 12)
    one, two = half(directions, own, 1), half(directions, own, 2)
    found = believed(one, two)
    assert found is not None
    assert torch.equal(found.together.diagonal(), (one + two).diagonal())
    shares = (off(found.together) / off(one + two))[~torch.eye(12, dtype=torch.bool)]
    assert torch.allclose(shares, shares[0])
    assert 1 - float(shares[0]) == pytest.approx(0.2)


@pytest.mark.parametrize("seed", range(10, 16))
def test_halves_that_know_nothing_of_each_other_are_not_believed(seed: int) -> None:
    one, two = half(normal(2, 12), 0.1, 1), half(normal(2, 12, seed=seed), 0.1, 2)
    assert believed(one, one) is not None
    assert believed(two, two) is not None
    assert believed(one, two) is None


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (torch.zeros(4, 4), torch.zeros(4, 4)),
        (torch.ones(4, 4), torch.zeros(4, 4)),
        (torch.arange(1.0, 5.0).diag(), torch.arange(1.0, 5.0).diag()),
        (torch.ones(1, 1), torch.ones(1, 1)),
        (torch.full((4, 4), torch.inf), torch.ones(4, 4)),
        (torch.full((4, 4), torch.nan), torch.ones(4, 4)),
    ],
    ids=["unfelt", "half unfelt", "apart", "one output", "infinite", "no numbers"],
)
def test_nothing_is_believed_where_nothing_is_said(one: Tensor, two: Tensor) -> None:
    assert believed(one.double(), two.double()) is None


def left(asked: Tensor, felt: Tensor, scale: Tensor) -> float:
    return believed_module._harm(believed_module._errors(asked, scale), felt, scale)


def test_what_is_left_is_what_drawn_errors_do() -> None:
    """Errors that make up for each other by one half, one draw after the other, felt by another."""
    directions = normal(3, 8)
    one, two = half(directions, 0.3, 1).numpy(), half(directions, 0.3, 2).numpy()
    scale = 0.5 + normal(8, seed=4).abs().numpy()
    wide = one * np.outer(scale, scale)
    wide += 0.05 * wide.diagonal().mean() * np.eye(8)
    order = np.argsort(-(one.diagonal() * scale**2))
    generator = np.random.default_rng(0)
    alone = made_up = 0.0
    for _ in range(4000):
        own, error = generator.standard_normal(8), np.zeros(8)
        for at, output in enumerate(order):
            # The best that an output can still do about those before it, once those after it have
            # made up for all they can.
            later = order[at + 1 :]
            reduced = wide.copy()
            if len(later):
                inner = np.linalg.solve(wide[np.ix_(later, later)], wide[later])
                reduced = wide - wide[:, later] @ inner
            before = order[:at]
            aim = -(reduced[output, before] @ error[before]) / reduced[output, output]
            error[output] = aim + own[output]
        alone += float((own * scale) @ np.diag(two.diagonal()) @ (own * scale))
        made_up += float((error * scale) @ two @ (error * scale))
    found = left(torch.from_numpy(one), torch.from_numpy(two), torch.from_numpy(scale))
    assert found == pytest.approx(made_up / alone, rel=0.03)
    assert found < 0.9


def test_what_is_doubted_makes_one_half_say_what_the_other_does() -> None:
    """Of few gradients, by which errors make up for more than they do by others."""
    directions = normal(6, 24)
    one, two = half(directions, 0.5, 1, 12), half(directions, 0.5, 2, 12)
    found = believed(one, two)
    assert found is not None
    assert 0.05 < found.doubt < 0.9
    part = 1 - float(found.together[0, 1] / (one + two)[0, 1])
    judged = 1 - (1 - part) * (1 - found.doubt)
    size = (one + two).diagonal()
    scale = (size.mean() / size.clamp_min(LEAST_FELT * size.mean())).sqrt()
    own = sum(left(shrunk(each, part), shrunk(each, judged), scale) for each in (one, two))
    others = left(shrunk(one, part), two, scale) + left(shrunk(two, part), one, scale)
    assert own == pytest.approx(others, rel=1e-3)


def test_equal_halves_leave_no_doubt() -> None:
    one = half(normal(2, 12), 0.1, 1)
    found = believed(one, one)
    assert found is not None
    assert found.doubt == pytest.approx(0.0, abs=0.02)
