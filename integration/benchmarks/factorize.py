"""SVD beside KM and PQ at equal bytes, bases of kernels, merged neurons: one CNN, three trainings.

    python -m integration.benchmarks.factorize [--quick]

The Fashion-MNIST CNN, trained from three seeds (three minutes each, once). Nothing is trained after
that, unless a row says so. Losses are points of accuracy on the test split, the mean of the seeds
with their spread; rates are those of the weights that a row changes, as stored: float32 for factors,
codes and codebooks for what is coded.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import nn

import vq_plugin as vq
from integration.benchmarks.harness import Check, Report, Table, parse_arguments
from integration.workloads import fashion_mnist, fashion_mnist_cnn
from vq_plugin.seeded import seeded
from vq_plugin.workloads import digits
from vq_plugin.workloads.cache import trained
from vq_plugin.workloads.training import train


def network(seed: int) -> nn.Module:
    """The CNN, trained from a seed."""
    if seed == 0:
        return fashion_mnist_cnn.model()
    with seeded(seed):
        untrained = fashion_mnist_cnn.FashionCNN()
    return trained(f"fashion_mnist_cnn_seed{seed}", untrained, partial(_train, seed=seed))


def _train(model: nn.Module, seed: int) -> None:
    train(
        model,
        fashion_mnist.load().train,
        optimizer=partial(torch.optim.AdamW, weight_decay=0.01),
        max_lr=2e-3,
        epochs=6,
        batch_size=128,
        seed=seed,
    )
