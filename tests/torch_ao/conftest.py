"""The host's calls, as the page docs/torch_ao.md shows them."""

import importlib
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx

from vq_plugin.torch_ao import (
    check_converted,
    get_backend_config,
    get_qat_qconfig_mapping,
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
def prepare_qat():
    """Prepares a float model for training."""

    def run(model, schemes, example: Tensor, base=None, **settings):
        mapping = get_qat_qconfig_mapping(model, schemes, base, **settings)
        return prepare_qat_fx(
            model.train(), mapping, (example,), backend_config=get_backend_config()
        )

    return run


@pytest.fixture
def train():
    """A few steps towards outputs of 1; the optimizer goes on where it is given again."""

    def run(prepared, inputs: Tensor, steps: int = 3, optimizer=None):
        optimizer = optimizer or torch.optim.SGD(prepared.parameters(), lr=0.05, momentum=0.9)
        for _ in range(steps):
            optimizer.zero_grad()
            (prepared(inputs) - 1).square().mean().backward()
            optimizer.step()
        return prepared

    return run


@pytest.fixture
def count_fits(monkeypatch) -> Callable[[], int]:
    """How many weights were fitted so far."""
    fits: list[tuple[int, ...]] = []
    module = importlib.import_module("vq_plugin.slot_fit")
    real = module.quantize_weight

    def counted(weight, *args, **kwargs):
        fits.append(tuple(weight.shape))
        return real(weight, *args, **kwargs)

    monkeypatch.setattr(module, "quantize_weight", counted)
    return lambda: len(fits)
