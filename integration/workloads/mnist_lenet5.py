"""LeNet-5 in Caffe's version on ten thousand digits of MNIST."""

from functools import partial

import torch
from torch import nn

from integration.workloads import mnist
from integration.workloads.fashion_mnist_lenet5 import LeNet5
from integration.workloads.mnist import calibration, evaluate, test
from vq_plugin.seeded import seeded
from vq_plugin.workloads.cache import trained
from vq_plugin.workloads.training import train

__all__ = ["calibration", "evaluate", "model", "test"]


def model() -> LeNet5:
    """The trained model in eval mode; the first call trains it for about half a minute.

    Raises:
        FileNotFoundError: It has to be trained and the data set is not there.
        ValueError: The cached checkpoint is corrupt.
    """
    with seeded(0):
        untrained = LeNet5()
    return trained("mnist_lenet5", untrained, _train)


def _train(model: nn.Module) -> None:
    train(
        model,
        mnist.load().train,
        optimizer=partial(torch.optim.AdamW, weight_decay=0.01),
        max_lr=2e-3,
        epochs=20,
    )
