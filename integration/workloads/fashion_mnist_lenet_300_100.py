"""LeNet-300-100 on Fashion-MNIST: two hidden dense layers, the literature's measure of pruning.

The network of LeCun et al. 1998 that Deep Compression (Han et al. 2015, arXiv 1510.00149, table 2)
and its successors report: 0.27 M parameters, 1.07 MB in float32.
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
    "LeNet300100",
    "calibration",
    "evaluate",
    "evaluate_samples",
    "model",
    "test",
    "test_samples",
    "training_batches",
]


class LeNet300100(nn.Module):
    """Three dense layers (784-300-100-10)."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(28 * 28, 300),
            nn.ReLU(),
            nn.Linear(300, 100),
            nn.ReLU(),
            nn.Linear(100, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(N, 1, 28, 28)` to logits `(N, 10)`."""
        logits: Tensor = self.classifier(images)
        return logits


def model() -> LeNet300100:
    """The trained model in eval mode; the first call trains it for about half a minute.

    Raises:
        FileNotFoundError: It has to be trained and the data set is not there.
        ValueError: The cached checkpoint is corrupt.
    """
    return trained_lenet(
        "fashion_mnist_lenet_300_100", LeNet300100, lambda: fashion_mnist.load().train, epochs=12
    )
