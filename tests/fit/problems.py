"""Layers with correlated inputs, and what the fit is told of them."""

import torch
from torch import Tensor

from vq_plugin.fit.output.metric import LowRank, Metric
from vq_plugin.fit.output.moments import Moments, Samples


def correlated_inputs(count: int, features: int, seed: int = 0) -> Tensor:
    """Inputs that go together, of different sizes and with means, ``(count, features)``."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    mixed = normal(count, features) @ normal(features, features) / features**0.5
    return mixed * torch.exp(normal(features)) + normal(features)


def moments_of(inputs: Tensor, groups: int = 1, *, bias: bool = True) -> Moments:
    """Moments of inputs, ``(count, groups · inputs)``, as plain means."""
    x = inputs.reshape(len(inputs), groups, -1).transpose(0, 1)
    mean = x.mean(1) if bias else None
    return Moments(torch.ones(()), x.mT @ x / len(inputs), mean)


def kept_moments_of(inputs: Tensor, groups: int = 1, *, bias: bool = True) -> Moments:
    """The same, with the samples kept as they are."""
    x = inputs.reshape(len(inputs), groups, -1).transpose(0, 1)
    return Moments(torch.ones(()), Samples(x), x.mean(1) if bias else None)


def matrix_of(metric: Metric) -> Tensor:
    """What a quadratic form is, ``(groups, inputs, inputs)``."""
    if isinstance(metric, LowRank):
        return metric.rows.mT @ metric.rows + metric.own.diag_embed()
    return metric.matrix
