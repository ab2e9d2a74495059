"""ResNet-20 on Fashion-MNIST: a narrow network of convolutions and batch norm, for benchmarks.

The opposite of the CNN: 0.27 M parameters, nearly all in 3x3 convolutions with few channels, where
codebooks weigh most against the codes.
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
from integration.workloads.shifted import offsets, taken
from vq_plugin.seeded import seeded
from vq_plugin.workloads.cache import trained
from vq_plugin.workloads.training import train

__all__ = [
    "BasicBlock",
    "ResNet20",
    "calibration",
    "evaluate",
    "evaluate_samples",
    "model",
    "test",
    "test_samples",
    "training_batches",
]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut (He et al. 2015, arXiv 1512.03385)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, channels_in, H, W)` to `(N, channels_out, H / stride, W / stride)`."""
        y = self.relu1(self.bn1(self.conv1(x)))
        out: Tensor = self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))
        return out


class ResNet20(nn.Module):
    """The CIFAR shape: three stages of three blocks, 16, 32 and 64 channels wide."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Sequential(BasicBlock(16, 16, 1), BasicBlock(16, 16, 1), BasicBlock(16, 16, 1)),
            nn.Sequential(BasicBlock(16, 32, 2), BasicBlock(32, 32, 1), BasicBlock(32, 32, 1)),
            nn.Sequential(BasicBlock(32, 64, 2), BasicBlock(64, 64, 1), BasicBlock(64, 64, 1)),
            nn.AdaptiveAvgPool2d(1),
        )
        self.classifier = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(N, 1, 28, 28)` to logits `(N, 10)`."""
        features: Tensor = self.features(images)
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


def model(epochs: int = 12) -> ResNet20:
    """The trained model in eval mode; the first call trains it for 12 to 26 minutes.

    Args:
        epochs: Of the training; a third of them takes a third of the time, and costs a point.

    Raises:
        FileNotFoundError: It has to be trained and the data set is not there.
        ValueError: The cached checkpoint is corrupt.
    """
    with seeded(0):
        untrained = ResNet20()
    name = "fashion_mnist_resnet20" + (f"_{epochs}_epochs" if epochs != 12 else "")
    return trained(name, untrained, partial(_train, epochs=epochs))


def _train(model: nn.Module, epochs: int) -> None:
    train(
        model,
        fashion_mnist.load().train,
        optimizer=partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=5e-4),
        max_lr=0.2,
        epochs=epochs,
        batch_size=128,
        augment=shift_and_flip,
    )


def shift_and_flip(images: Tensor) -> Tensor:
    """Shifts every image by up to two pixels and mirrors half of them, at random.

    Args:
        images: float `(N, C, H, W)`.

    Returns:
        The same shape; pixels shifted in are black, the images' least value.
    """
    rows, columns = offsets(images, 2)
    mirrored = torch.rand(len(images), 1) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    return taken(images, 2, rows, columns)
