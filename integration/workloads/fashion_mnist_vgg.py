"""A VGG-like network on Fashion-MNIST: 16.8 M weights in dense layers, as in the nets of 2014.

Convolutions with batch norm, 0.24 M weights, and three dense layers, 6272-2304-1024-10.
"""

from functools import partial

import torch
from torch import Tensor, nn

from integration.workloads import fashion_mnist
from vq_plugin.seeded import seeded
from vq_plugin.workloads.cache import trained
from vq_plugin.workloads.training import train


class FashionVGG(nn.Module):
    """Four convolutions (32, 64, 128, 128) and three dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_block(1, 32), nn.MaxPool2d(2), *_block(32, 64), nn.MaxPool2d(2),
            *_block(64, 128), *_block(128, 128),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(128 * 7 * 7, 2304),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(2304, 1024),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(1024, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(N, 1, 28, 28)` to logits `(N, 10)`."""
        features: Tensor = self.features(images)
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


def _block(channels_in: int, channels_out: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False)
    return conv, nn.BatchNorm2d(channels_out), nn.ReLU()


def model(seed: int = 0) -> FashionVGG:
    """The model trained from a seed, in eval mode; the first call trains it for three minutes.

    Raises:
        FileNotFoundError: It has to be trained and the data set is not there.
        ValueError: The cached checkpoint is corrupt.
    """
    with seeded(seed):
        untrained = FashionVGG()
    name = f"fashion_mnist_vgg_seed{seed}" if seed else "fashion_mnist_vgg"
    return trained(name, untrained, partial(_train, seed=seed))


def _train(model: nn.Module, seed: int) -> None:
    train(
        model,
        fashion_mnist.load().train,
        optimizer=partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=5e-4),
        max_lr=0.05,
        epochs=1,
        batch_size=128,
        seed=seed,
    )
