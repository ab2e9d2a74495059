"""What a fit will come to: against fits."""

import math

import pytest
import torch

import vq_plugin as vq
from vq_plugin.fit.output.moments import Moments
from vq_plugin.forecast import Guess, Sample, expected_error, forecast
from vq_plugin.sizes import file_nbytes
from vq_plugin.tuning import LADDER


@pytest.mark.parametrize("shape", [(256, 256), (64, 512)])
def test_expected_errors_of_gaussian_weights(shape: tuple[int, int]) -> None:
    """Within a factor of 1.6 where errors span four orders."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for scheme in LADDER:
        if scheme is None or not scheme.trains:
            continue
        small = vq.quantize_weight(weight, scheme)
        real = float((small.decode() - weight).square().mean() / weight.square().mean())
        found = expected_error(scheme.geometry(shape))
        assert abs(math.log(found / real)) < math.log(1.6), (scheme, found, real)


@pytest.mark.parametrize("step", [0.1, 0.4, 1.6])
def test_a_sample_expects_bytes_and_error_of_equal_steps(step: float) -> None:
    """Within 2 % of the bytes of a file and 10 % of the error, rows of unlike size included."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn((512, 512), generator=generator)
    weight *= torch.linspace(0.5, 2, 512).unsqueeze(1)
    scheme = vq.Uniform(step=step, scale="row")
    counts = torch.linspace(2, 1, 512).double()
    expected = Sample.of(weight, counts).expected("fc", scheme, (512, 512))
    small = vq.quantize_weight(weight, scheme, moments=Moments(torch.ones(()), outputs=counts))
    assert expected.nbytes == pytest.approx(file_nbytes(small), rel=0.02)
    errors = (small.decode() - weight).double().square().sum(1)
    assert expected.error == pytest.approx(float(counts @ errors), rel=0.1)


ERRORS = (1e-4, 1e-2, 1e-1, 2e-1)


def guesses(kind: str = "km") -> list[Guess]:
    return [Guess(kind, error, error) for error in ERRORS]


def test_what_is_known_corrects_what_is_near() -> None:
    layers = [guesses(), guesses()]
    for found in forecast(layers, [{}, {}]):
        assert found == pytest.approx(ERRORS)
    first, second = forecast(layers, [{2: 1.0}, {}])
    assert first[2] == 1.0
    assert 1.5 < first[3] < 2.001
    # Another layer is believed to be alike until something is known of it.
    assert second[2] == pytest.approx(1.0)
    _, second = forecast(layers, [{2: 1.0}, {2: 0.1}])
    assert second[2] == 0.1
    assert second[3] == pytest.approx(0.2, rel=0.7)


def test_other_kinds_say_little_of_what_is_known_of_its_own() -> None:
    """Calibrated fits of single weights leave a thousandth, of sub-vectors a twentieth."""
    layer = [*guesses("km"), *guesses("pq")]
    (found,) = forecast([layer], [{2: 1e-4}])
    assert found[6] == pytest.approx(1e-4)
    (found,) = forecast([layer], [{2: 1e-4, 6: 5e-3}])
    assert found[3] == pytest.approx(2e-4, rel=0.5)
    assert found[7] == pytest.approx(1e-2, rel=0.5)


def test_layers_lend_each_other_what_they_know_of_a_scheme_in_any_order() -> None:
    _, second = forecast([guesses(), guesses()[::-1]], [{0: 1e-6, 3: 0.2}, {}])
    assert second[3] == pytest.approx(1e-6, rel=0.5)
    assert second[0] == pytest.approx(0.2, rel=0.5)


def test_nothing_known_and_no_harm_are_no_trouble() -> None:
    assert forecast([[Guess("km", 0.0, 0.0)] * 2], [{1: 0.5}]) == [[0.0, 0.5]]
    assert forecast([guesses()], [{1: 0.0}])[0][1] == 0.0
