"""The host's calls, as the page docs/torch_ao.md shows them."""

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import vq_plugin.model
from vq_plugin.torch_ao import (
    check_converted,
    get_backend_config,
    get_qconfig_mapping,
    observe_inputs,
)


@pytest.fixture
def convert():
    """Prepares, calibrates, converts and checks a float model."""

    def run(model, schemes, example: Tensor, calibration: Iterable[Tensor] = (), **settings):
        backend = get_backend_config()
        mapping = get_qconfig_mapping(schemes, **settings)
        prepared = prepare_fx(model, mapping, (example,), backend_config=backend)
        if calibration:
            observe_inputs(prepared)
        with torch.no_grad():
            for batch in calibration:
                prepared(batch)
        return check_converted(convert_fx(prepared, backend_config=backend), schemes)

    return run


@pytest.fixture
def count_fits(monkeypatch) -> Callable[[], int]:
    """How many weights were fitted so far."""
    fits: list[tuple[int, ...]] = []
    real = vq_plugin.model.quantize_weight

    def counted(weight, *args, **kwargs):
        fits.append(tuple(weight.shape))
        return real(weight, *args, **kwargs)

    monkeypatch.setattr(vq_plugin.model, "quantize_weight", counted)
    return lambda: len(fits)
