"""What hosts cannot know of a model is said, and nothing of it is used."""

import warnings

import pytest
import torch

import vq_plugin as vq
from vq_plugin.fit.output.moments import Moments
from vq_plugin.hosting.fit import fit_gathered

STEPS = vq.Uniform(0.5, scale="row")


def test_steps_by_gradients_go_by_the_size_of_rows() -> None:
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    moments = Moments(torch.ones(()))
    with pytest.warns(UserWarning, match="hosts cannot know: here rows count by their size"):
        found = fit_gathered("fc", weight, STEPS, moments, 0)
    assert torch.equal(found.decode(), vq.quantize_weight(weight, STEPS).decode())


@pytest.mark.parametrize("scheme", [STEPS, vq.KM(k=4, scale="row")])
def test_what_needs_no_gradients_is_not_talked_about(scheme: vq.Scheme) -> None:
    moments = None if scheme is STEPS else Moments(torch.ones(()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_gathered("fc", torch.randn(8, 16), scheme, moments, 0)
