"""Fashion-MNIST (Xiao et al. 2017, arXiv 1708.07747), and the metrics of the models trained on it.

70,000 grey 28x28 images of ten kinds of clothing, read from the four original files.
"""

import gzip
import os
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from vq_plugin.workloads.data import Batches, Dataset, Samples
from vq_plugin.workloads.training import accuracy, correct

_TUNING = 10_000
_MEAN, _STD = 0.2860, 0.3530


def data_dir() -> Path:
    """The folder of the data: `$VQ_PLUGIN_FASHION_MNIST`, or where the Debian package puts it."""
    return Path(
        os.environ.get("VQ_PLUGIN_FASHION_MNIST") or "/usr/share/datasets/fashion-mnist"
    ).expanduser()


def load() -> Dataset:
    """The three splits: 50,000 images to train, 10,000 to tune and the official 10,000 to test.

    The model must not have seen the images that compression is tuned on: it is surer about images
    that it was trained on, and the tuned loss would come out too small. Hence training leaves out
    the last 10,000 of the official training images (which are in random order), and the official
    test images stay for the final figure alone.

    Returns:
        Images float32 `(N, 1, 28, 28)` with mean 0 and deviation 1, labels int64 `(N,)`. Loaded
        once per process; not to be changed in place.

    Raises:
        FileNotFoundError: The data set is not there.
        ValueError: A file is truncated or corrupt.
    """
    return _load(data_dir())


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
    """512 unlabelled training images, float32, as four batches `(128, 1, 28, 28)`."""
    return list(torch.split(load().train.images[:512], 128))


def training_batches() -> Batches:
    """The training images in shuffled batches of 64, without labels."""
    return Batches(load().train)


@lru_cache(maxsize=1)
def _load(folder: Path) -> Dataset:
    rest = _samples(folder, "train", 60_000)
    return Dataset(
        train=Samples(rest.images[:-_TUNING], rest.labels[:-_TUNING]),
        tuning=Samples(rest.images[-_TUNING:], rest.labels[-_TUNING:]),
        test=_samples(folder, "t10k", 10_000),
    )


def _samples(folder: Path, prefix: str, count: int) -> Samples:
    pixels = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", (count, 28, 28))
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", (count,))
    images = torch.from_numpy(pixels).unsqueeze(1).float()
    return Samples(images.div_(255).sub_(_MEAN).div_(_STD), torch.from_numpy(labels).long())


def read_idx(path: Path, shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Reads a gzipped idx file of unsigned bytes (format: yann.lecun.com/exdb/mnist).

    Args:
        path: The file.
        shape: The shape that the array must have.

    Returns:
        A writable uint8 array.

    Raises:
        FileNotFoundError: The file is not there; the message says how to get the data set.
        ValueError: The file is truncated, corrupt, or holds something else.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"Fashion-MNIST: {path} is missing; run `apt install dataset-fashion-mnist`, or set "
            "VQ_PLUGIN_FASHION_MNIST to a folder with the four *-ubyte.gz files"
        ) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is truncated or corrupt ({error}); get it again") from error
    unsigned_bytes = 0x08
    header = np.array([unsigned_bytes << 8 | len(shape), *shape], dtype=">u4").tobytes()
    size = int(np.prod(shape))
    if not content.startswith(header) or len(content) != len(header) + size:
        raise ValueError(f"{path} is not an idx file of {'x'.join(map(str, shape))} bytes")
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape).copy()
