"""A CNN on Fashion-MNIST whose two large dense layers hold 99 % of the weights.

The shape that codebooks serve best, and the project's main measuring stick: 3.76 M parameters,
15.0 MB in float32.
"""

from functools import partial

import torch
from torch import Tensor, nn

from integration.workloads import fashion_mnist
from integration.workloads.fashion_mnist import (
    calibration,
    evaluate,
    evaluate_samples,
    test,
    test_samples,
    training_batches,
)
from vq_plugin.seeded import seeded
from vq_plugin.workloads.cache import trained
from vq_plugin.workloads.training import train

__all__ = [
    "FashionCNN",
    "calibration",
    "evaluate",
    "evaluate_samples",
    "model",
    "test",
    "test_samples",
    "training_batches",
]


class FashionCNN(nn.Module):
    """Two convolutions (32, 64) and three dense layers (3136-1024-512-10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(64 * 7 * 7, 1024),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(1024, 512),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(512, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(N, 1, 28, 28)` to logits `(N, 10)`."""
        features: Tensor = self.features(images)
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


def model(seed: int = 0) -> FashionCNN:
    """The model trained from a seed, in eval mode; the first call trains it for three minutes.

    Raises:
        FileNotFoundError: It has to be trained and the data set is not there.
        ValueError: The cached checkpoint is corrupt.
    """
    with seeded(seed):
        untrained = FashionCNN()
    name = f"fashion_mnist_cnn_seed{seed}" if seed else "fashion_mnist_cnn"
    return trained(name, untrained, partial(_train, seed=seed))


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
