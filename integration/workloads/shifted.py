"""Images that are moved by whole pixels, at random."""

import torch
from torch import Tensor, nn


def offsets(images: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Rows `(N, H)` and columns `(N, W)` of images `(N, C, H, W)` with a border of ``most`` pixels.

    Every image has places of its own, in a row, from 0 to twice ``most`` pixels from the edge.
    """
    count, _, height, width = images.shape
    rows = torch.arange(height) + torch.randint(2 * most + 1, (count, 1))
    return rows, torch.arange(width) + torch.randint(2 * most + 1, (count, 1))


def taken(images: Tensor, most: int, rows: Tensor, columns: Tensor) -> Tensor:
    """What images show at places that :func:`offsets` draws, of their shape.

    Pixels of the border are black, the images' least value.
    """
    padded = nn.functional.pad(images, (most,) * 4, value=images.min().item())
    sample = torch.arange(len(images)).view(-1, 1, 1)
    # Indices around the slice put the channels last.
    return padded[sample, :, rows.unsqueeze(2), columns.unsqueeze(1)].permute(0, 3, 1, 2)
