"""A small network whose settings differ in size and loss."""

import torch
from torch import nn


def dense_net(generator: torch.Generator) -> nn.Sequential:
    """Three dense layers, 24 inputs and 5 classes, of random weights and small biases."""
    model = nn.Sequential(
        nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5)
    )
    with torch.no_grad():
        for value in model.parameters():
            value.copy_(torch.randn(value.shape, generator=generator) * (value.dim() - 0.9))
    return model
