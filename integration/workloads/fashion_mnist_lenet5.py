"""LeNet-5 in Caffe's version on Fashion-MNIST: two convolutions, two dense layers.

The network that Deep Compression (Han et al. 2015, arXiv 1510.00149, table 3) and its successors
report: 0.43 M parameters, 1.72 MB in float32. As in Caffe, only the first dense layer has a ReLU.
"""

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
from integration.workloads.lenet import trained_lenet

__all__ = [
    "LeNet5",
    "calibration",
    "evaluate",
    "evaluate_samples",
    "model",
    "test",
    "test_samples",
    "training_batches",
]


class LeNet5(nn.Module):
    """Two 5x5 convolutions (20, 50) and two dense layers (800-500-10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 20, 5),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 50, 5),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(50 * 4 * 4, 500),
            nn.ReLU(),
            nn.Linear(500, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(N, 1, 28, 28)` to logits `(N, 10)`."""
        features: Tensor = self.features(images)
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


def model() -> LeNet5:
    """The trained model in eval mode; the first call trains it for about two minutes.

    Raises:
        FileNotFoundError: It has to be trained and the data set is not there.
        ValueError: The cached checkpoint is corrupt.
    """
    return trained_lenet(
        "fashion_mnist_lenet5", LeNet5, lambda: fashion_mnist.load().train, epochs=12
    )
