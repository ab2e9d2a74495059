"""The Fashion-MNIST loader, its splits, and the two models on it (untrained: training is long)."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import fx, nn

from integration.workloads import fashion_mnist, fashion_mnist_cnn, fashion_mnist_resnet20
from integration.workloads.fashion_mnist import read_idx
from integration.workloads.fashion_mnist_resnet20 import shift_and_flip

needs_data = pytest.mark.skipif(
    not (fashion_mnist.data_dir() / "train-images-idx3-ubyte.gz").exists(),
    reason="Fashion-MNIST is absent: apt install dataset-fashion-mnist",
)


def idx(array: np.ndarray) -> bytes:
    header = np.array([0x0800 | array.ndim, *array.shape], dtype=">u4")
    return gzip.compress(header.tobytes() + array.tobytes())


@pytest.mark.parametrize("shape", [(7,), (5, 3, 2)])
def test_idx_files_are_read(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    path = tmp_path / "x-ubyte.gz"
    path.write_bytes(idx(array))
    assert np.array_equal(read_idx(path, shape), array)


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: good[:-12],
        lambda good: good[:3],
        lambda good: b"",
        lambda good: b"no gzip at all",
        lambda good: good[:20] + bytes([good[20] ^ 255]) + good[21:],
        lambda good: gzip.compress(gzip.decompress(good)[:-1]),
        lambda good: gzip.compress(gzip.decompress(good) + b"\0"),
        lambda good: idx(np.zeros((3, 2, 5), np.uint8)),
    ],
)
def test_damaged_idx_files_are_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "x-ubyte.gz"
    path.write_bytes(damage(idx(np.arange(30, dtype=np.uint8).reshape(5, 3, 2))))
    with pytest.raises(ValueError, match="x-ubyte") as caught:
        read_idx(path, (5, 3, 2))
    assert str(path) in str(caught.value)


def test_missing_data_says_in_one_line_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VQ_PLUGIN_FASHION_MNIST", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        fashion_mnist.load()
    message = str(caught.value)
    assert "\n" not in message
    for hint in (str(tmp_path), "apt install dataset-fashion-mnist", "VQ_PLUGIN_FASHION_MNIST"):
        assert hint in message


@needs_data
def test_the_splits() -> None:
    data = fashion_mnist.load()
    for split, count in ((data.train, 50_000), (data.tuning, 10_000), (data.test, 10_000)):
        assert split.images.shape == (count, 1, 28, 28)
        assert split.images.dtype == torch.float32
        assert split.labels.shape == (count,)
        assert split.labels.dtype == torch.int64
        assert set(split.labels.tolist()) == set(range(10))
        assert abs(split.images.mean()) < 0.02
        assert abs(split.images.std() - 1) < 0.02


@needs_data
def test_training_and_tuning_are_the_two_ends_of_the_training_file() -> None:
    labels = read_idx(fashion_mnist.data_dir() / "train-labels-idx1-ubyte.gz", (60_000,))
    data = fashion_mnist.load()
    assert np.array_equal(torch.cat([data.train.labels, data.tuning.labels]).numpy(), labels)


@needs_data
def test_calibration_is_512_training_images() -> None:
    images = torch.cat(fashion_mnist.calibration())
    assert torch.equal(images, fashion_mnist.load().train.images[:512])


@pytest.mark.parametrize(
    "model", [fashion_mnist_cnn.FashionCNN(), fashion_mnist_resnet20.ResNet20()]
)
def test_the_models_can_be_traced(model: nn.Module) -> None:
    model.eval()
    images = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        assert model(images).shape == (3, 10)
        assert torch.equal(fx.symbolic_trace(model)(images), model(images))


def test_resnet20_has_the_layers_of_the_paper() -> None:
    layers = [
        module
        for name, module in fashion_mnist_resnet20.ResNet20().named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "shortcut" not in name
    ]
    assert len(layers) == 20


def test_dense_layers_hold_the_weights_of_the_cnn() -> None:
    model = fashion_mnist_cnn.FashionCNN()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    dense = sizes["classifier.0.weight"] + sizes["classifier.3.weight"]
    assert dense / sum(sizes.values()) > 0.99


def test_augmentation_shifts_and_mirrors_and_keeps_the_background() -> None:
    images = torch.full((2000, 1, 6, 6), -1.0)
    images[:, :, 3, 1] = 1
    moved = shift_and_flip(images)
    assert moved.shape == images.shape
    assert set(moved.flatten().tolist()) == {-1.0, 1.0}
    _, _, rows, columns = torch.nonzero(moved == 1, as_tuple=True)
    assert set(rows.tolist()) == {1, 2, 3, 4, 5}
    assert set(columns.tolist()) == {0, 1, 2, 3, 4, 5}


@pytest.mark.parametrize("module", [fashion_mnist_cnn, fashion_mnist_resnet20])
def test_both_workloads_offer_what_recipes_refer_to(module: object) -> None:
    functions = ("model", "evaluate", "test", "evaluate_samples", "test_samples", "calibration")
    for name in functions:
        assert callable(getattr(module, name))
