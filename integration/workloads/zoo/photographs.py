"""Photographs that packages ship, as three sets without a common source, and seeded views of them.

Half are ImageNet photographs of foolbox, the rest come from scikit-image, scikit-learn and
Matplotlib.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

from integration.workloads.zoo.network import Split, package_file

Picture = npt.NDArray[np.uint8]

Source = tuple[str, str]
SOURCES: dict[Split, tuple[Source, ...]] = {
    "calibration": (
        ("foolbox", "data/imagenet_00_243.jpg"),
        ("foolbox", "data/imagenet_02_438.jpg"),
        ("foolbox", "data/imagenet_05_853.jpg"),
        ("foolbox", "data/imagenet_08_915.jpg"),
        ("foolbox", "data/imagenet_11_630.jpg"),
        ("foolbox", "data/imagenet_14_129.jpg"),
        ("foolbox", "data/imagenet_17_22.jpg"),
        ("skimage", "data/coffee.png"),
        ("skimage", "data/grass.png"),
        ("skimage", "data/ihc.png"),
        ("skimage", "data/motorcycle_left.png"),
        ("sklearn", "datasets/images/china.jpg"),
    ),
    "selection": (
        ("foolbox", "data/imagenet_03_990.jpg"),
        ("foolbox", "data/imagenet_07_609.jpg"),
        ("foolbox", "data/imagenet_10_541.jpg"),
        ("foolbox", "data/imagenet_13_471.jpg"),
        ("foolbox", "data/imagenet_16_251.jpg"),
        ("foolbox", "data/imagenet_19_305.jpg"),
        ("skimage", "data/rocket.jpg"),
        ("skimage", "data/coins.png"),
        ("matplotlib", "mpl-data/sample_data/grace_hopper.jpg"),
    ),
    "untouched": (
        ("foolbox", "data/imagenet_01_559.jpg"),
        ("foolbox", "data/imagenet_04_949.jpg"),
        ("foolbox", "data/imagenet_06_609.jpg"),
        ("foolbox", "data/imagenet_09_455.jpg"),
        ("foolbox", "data/imagenet_12_741.jpg"),
        ("foolbox", "data/imagenet_15_99.jpg"),
        ("foolbox", "data/imagenet_18_317.jpg"),
        ("skimage", "data/astronaut.png"),
        ("skimage", "data/camera.png"),
        ("skimage", "data/chelsea.png"),
        ("sklearn", "datasets/images/flower.jpg"),
    ),
}


@lru_cache(maxsize=64)
def photograph(package: str, path: str) -> Picture:
    """A photograph, uint8 `(height, width, 3)`.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    with Image.open(package_file(package, path)) as image:
        return np.asarray(image.convert("RGB"))


def views(
    sources: Sequence[Source], count: int, size: int, seed: int, least: float = 0.35
) -> Picture:
    """Square crops at random places and of random sizes, half of them mirrored, scaled to ``size``.

    Args:
        sources: Package and path of the photographs, taken in turn.
        count: How many views.
        size: Side of a view in pixels.
        seed: Of places, sizes and mirrors.
        least: The smallest crop's side as a part of the photograph's shorter side.

    Returns:
        uint8 `(count, size, size, 3)`.
    """
    draw = np.random.default_rng(seed)
    found = []
    for number in range(count):
        picture = photograph(*sources[number % len(sources)])
        height, width = picture.shape[:2]
        side = int(min(height, width) * draw.uniform(least, 1))
        top, left = draw.integers(height - side + 1), draw.integers(width - side + 1)
        crop = Image.fromarray(picture[top : top + side, left : left + side])
        view = np.asarray(crop.resize((size, size), Image.Resampling.BICUBIC))
        found.append(view[:, ::-1] if draw.random() < 0.5 else view)
    return np.stack(found)
