"""What a data set looks like to the workloads: labelled images in three disjoint splits."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class Samples(NamedTuple):
    """Labelled images: normalized float32 `(N, C, H, W)`, and labels, int64 `(N,)`."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Dataset:
    """Three disjoint splits of one data set; nothing may be chosen by ``test``."""

    train: Samples
    tuning: Samples
    test: Samples


@dataclass(frozen=True)
class Batches:
    """Batches of a split, in an order that torch's generator draws anew every time.

    The rest of an epoch that fills no batch is dropped: one image would upset batch norm.
    ``augment`` maps a batch of images to one of the same shape, at random.
    """

    samples: Samples
    size: int = 64
    labels: bool = False
    augment: Callable[[Tensor], Tensor] | None = None

    def __len__(self) -> int:
        return len(self.samples.labels) // self.size

    def __iter__(self) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
        images, labels = self.samples
        for batch in torch.split(torch.randperm(len(labels)), self.size)[: len(self)]:
            inputs = images[batch] if self.augment is None else self.augment(images[batch])
            yield (inputs, labels[batch]) if self.labels else inputs
