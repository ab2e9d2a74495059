"""The knapsack's relaxation against brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vq_plugin.allocation import steps


@pytest.mark.parametrize("seed", range(20))
def test_every_step_is_the_least_harmful_of_its_size(seed: int) -> None:
    random = np.random.default_rng(seed)
    layers = [
        list(zip(random.integers(1, 30, 4).tolist(), random.random(4).tolist(), strict=True))
        for _ in range(4)
    ]
    setting, following = steps(layers)
    seen = [tuple(setting)]
    for layer, choice in following:
        setting[layer] = choice
        seen.append(tuple(setting))

    def total(chosen: tuple[int, ...]) -> tuple[float, float]:
        nbytes, harm = zip(*(layer[at] for layer, at in zip(layers, chosen, strict=True)))
        return sum(nbytes), sum(harm)

    everything = [total(chosen) for chosen in itertools.product(range(4), repeat=4)]
    for chosen in seen:
        nbytes, harm = total(chosen)
        assert harm <= min(h for b, h in everything if b <= nbytes) + 1e-12
    assert total(seen[0])[1] == pytest.approx(min(h for _, h in everything))
    assert total(seen[-1])[0] == min(b for b, _ in everything)
