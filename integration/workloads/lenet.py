"""How the LeNets are trained, on whichever images."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from vq_plugin.seeded import seeded
from vq_plugin.workloads.cache import trained
from vq_plugin.workloads.data import Samples
from vq_plugin.workloads.training import train

M = TypeVar("M", bound=nn.Module)


def trained_lenet(
    name: str, make: Callable[[], M], samples: Callable[[], Samples], epochs: int
) -> M:
    """The network kept under ``name``, in eval mode; trained on ``samples()`` if there is none yet.

    Raises:
        FileNotFoundError: It has to be trained and the data set is not there.
        ValueError: The cached checkpoint is corrupt.
    """
    with seeded(0):
        untrained = make()
    return trained(name, untrained, lambda model: _train(model, samples(), epochs))


def _train(model: nn.Module, samples: Samples, epochs: int) -> None:
    train(
        model,
        samples,
        optimizer=partial(torch.optim.AdamW, weight_decay=0.01),
        max_lr=2e-3,
        epochs=epochs,
    )
