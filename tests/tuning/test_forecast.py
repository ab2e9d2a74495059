"""What a fit will come to: against fits."""

import math

import pytest
import torch

import vq_plugin as vq
from vq_plugin.tuning import LADDER
from vq_plugin.tuning.forecast import expected_error, forecast


@pytest.mark.parametrize("shape", [(256, 256), (64, 512)])
def test_expected_errors_of_gaussian_weights(shape: tuple[int, int]) -> None:
    """Within a factor of 1.6 where errors span four orders."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for scheme in LADDER:
        if scheme is None:
            continue
        small = vq.quantize_weight(weight, scheme)
        real = float((small.decode() - weight).square().mean() / weight.square().mean())
        found = expected_error(scheme.geometry(shape))
        assert abs(math.log(found / real)) < math.log(1.6), (scheme, found, real)


def test_what_is_known_corrects_what_is_near() -> None:
    expected = [[1e-4, 1e-2, 1e-1, 2e-1], [1e-4, 1e-2, 1e-1, 2e-1]]
    for row, found in zip(expected, forecast(expected, [{}, {}]), strict=True):
        assert found == pytest.approx(row)
    first, second = forecast(expected, [{2: 1.0}, {}])
    assert first[2] == 1.0
    assert 1.5 < first[3] < 2.001
    # Another layer is believed to be alike until something is known of it.
    assert second[2] == pytest.approx(1.0)
    _, second = forecast(expected, [{2: 1.0}, {2: 0.1}])
    assert second[2] == 0.1
    assert second[3] == pytest.approx(0.2, rel=0.7)


def test_nothing_known_and_no_harm_are_no_trouble() -> None:
    assert forecast([[0.0, 0.0]], [{1: 0.5}]) == [[0.0, 0.5]]
    assert forecast([[0.1, 0.2]], [{1: 0.0}])[0][1] == 0.0
