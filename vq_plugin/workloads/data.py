"""What a data set looks like to the workloads: labelled images in three disjoint splits."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Samples(NamedTuple):
    """Labelled images.

    Attributes:
        images: float32 `(N, C, H, W)`, normalized.
        labels: int64 `(N,)`.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits of one data set.

    Attributes:
        train: For training, fine-tuning and calibration.
        tuning: For every choice between compression settings.
        test: For the one final figure; nothing may be chosen by it.
    """

    train: Samples
    tuning: Samples
    test: Samples
