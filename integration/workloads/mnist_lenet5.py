"""LeNet-5 in Caffe's version on ten thousand digits of MNIST."""

from integration.workloads import mnist
from integration.workloads.fashion_mnist_lenet5 import LeNet5
from integration.workloads.lenet import trained_lenet
from integration.workloads.mnist import calibration, evaluate, test

__all__ = ["calibration", "evaluate", "model", "test"]


def model() -> LeNet5:
    """The trained model in eval mode; the first call trains it for about half a minute.

    Raises:
        FileNotFoundError: It has to be trained and the data set is not there.
        ValueError: The cached checkpoint is corrupt.
    """
    return trained_lenet("mnist_lenet5", LeNet5, lambda: mnist.load().train, epochs=20)
