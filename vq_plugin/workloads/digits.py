"""Handwritten digits and a small CNN on them: the workload that needs no download.

1,797 grey 8x8 images, the test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin &
C. Kaynak 1998, UCI, CC BY 4.0), which scikit-learn ships too. `digits.npz` beside this file holds
them. The model trains in seconds, hence the tests and the examples use it.
"""

from functools import lru_cache, partial
from importlib import resources

import numpy as np
import torch
from torch import Tensor, nn

from vq_plugin.seeded import seeded
from vq_plugin.workloads.cache import trained
from vq_plugin.workloads.data import Batches, Dataset, Samples
from vq_plugin.workloads.training import accuracy, correct, single_threaded, train

# Images of the training, tuning and test splits, in the order of the file.
_COUNTS = [718, 539, 540]


class DigitsCNN(nn.Module):
    """Two convolutions with batch norm, two dense layers, which hold 133,898 of 138,794 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(32 * 4 * 4, 256),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(256, 10),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(N, 1, 8, 8)` to logits `(N, 10)`."""
        features: Tensor = self.features(images)
        logits: Tensor = self.classifier(features.flatten(1))
        return logits


@lru_cache(maxsize=1)
def load() -> Dataset:
    """The splits, 40 % to train, 30 % to tune, 30 % to test, alike in classes; not to be changed.

    Tuning and test are large because a budget of 1 % has to be seen: it is 5 of their images.
    Images are float32 `(N, 1, 8, 8)` from -1 to 1, labels int64 `(N,)`.
    """
    with resources.files(__package__).joinpath("digits.npz").open("rb") as file:
        arrays = np.load(file)
        images = torch.from_numpy(arrays["images"]).float().unsqueeze(1) / 8 - 1
        labels = torch.from_numpy(arrays["labels"]).long()
    splits = zip(torch.split(images, _COUNTS), torch.split(labels, _COUNTS), strict=True)
    return Dataset(*(Samples(*split) for split in splits))


def model() -> DigitsCNN:
    """The trained model in eval mode; the first call trains it for a few seconds."""
    with seeded(0):
        untrained = DigitsCNN()
    return trained("digits", untrained, _train)


def evaluate(model: nn.Module) -> float:
    """Accuracy of the model on the tuning split."""
    return accuracy(model, *load().tuning)


def test(model: nn.Module) -> float:
    """Accuracy of the model on the test split."""
    return accuracy(model, *load().test)


def evaluate_samples(model: nn.Module) -> Tensor:
    """Which images of the tuning split the model classifies correctly: bool `(N,)`."""
    return correct(model, *load().tuning)


def test_samples(model: nn.Module) -> Tensor:
    """Which images of the test split the model classifies correctly: bool `(N,)`."""
    return correct(model, *load().test)


def calibration() -> list[Tensor]:
    """256 unlabelled training images, float32, as four batches `(64, 1, 8, 8)`."""
    return list(torch.split(load().train.images[:256], 64))


def training_batches() -> Batches:
    """The training images in shuffled batches of 64, without labels."""
    return Batches(load().train)


def _train(model: nn.Module) -> None:
    # Steps this small gain nothing from more threads, and beside other busy processes they would
    # spend many times as long waiting for one another.
    with single_threaded():
        train(
            model,
            load().train,
            optimizer=partial(torch.optim.AdamW, weight_decay=0.01),
            max_lr=3e-3,
            epochs=30,
            batch_size=64,
        )
