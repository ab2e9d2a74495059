"""LeNet-300-100 on ten thousand digits of MNIST."""

from integration.workloads import mnist
from integration.workloads.fashion_mnist_lenet_300_100 import LeNet300100
from integration.workloads.lenet import trained_lenet
from integration.workloads.mnist import calibration, evaluate, test

__all__ = ["calibration", "evaluate", "model", "test"]


def model() -> LeNet300100:
    """The trained model in eval mode; the first call trains it for about half a minute.

    Raises:
        FileNotFoundError: It has to be trained and the data set is not there.
        ValueError: The cached checkpoint is corrupt.
    """
    return trained_lenet("mnist_lenet_300_100", LeNet300100, lambda: mnist.load().train, epochs=20)
