"""The digits workload: a fair split, and a model that is good and the same every time."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import fx

from vq_plugin.workloads import digits


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VQ_PLUGIN_CACHE", str(tmp_path))
    return tmp_path / "digits.safetensors"


def test_the_splits_are_60_20_20_and_stratified() -> None:
    data = digits.load()
    splits = (data.train, data.tuning, data.test)
    assert [len(split.labels) for split in splits] == [718, 539, 540]
    for split in splits:
        assert split.images.shape == (len(split.labels), 1, 8, 8)
        assert split.images.dtype == torch.float32
        assert split.labels.dtype == torch.int64
        share = split.labels.bincount() / len(split.labels)
        assert ((share - 0.1).abs() < 0.01).all()
    assert data.train.images.min() == -1
    assert data.train.images.max() == 1


def test_the_splits_are_disjoint() -> None:
    data = digits.load()
    # Every one of the 1,797 scans differs from all others.
    images = torch.cat([data.train.images, data.tuning.images, data.test.images])
    assert len(np.unique(images.flatten(1).numpy(), axis=0)) == 1797


def test_the_file_holds_the_images_of_scikit_learn_split_as_it_splits_them() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    from sklearn.model_selection import train_test_split

    pixels, labels = datasets.load_digits(return_X_y=True)
    train, rest = train_test_split(np.arange(1797), test_size=0.6, stratify=labels, random_state=0)
    tuning, test = train_test_split(rest, test_size=0.5, stratify=labels[rest], random_state=0)
    data = digits.load()
    for split, index in ((data.train, train), (data.tuning, tuning), (data.test, test)):
        assert np.array_equal((split.images.flatten(1).numpy() + 1) * 8, pixels[index])
        assert np.array_equal(split.labels.numpy(), labels[index])


def test_no_other_library_is_needed_to_load_them() -> None:
    program = (
        "import sys; sys.modules['sklearn'] = sys.modules['scipy'] = None\n"
        "from vq_plugin.workloads import digits; print(len(digits.load().test.labels))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout == "540\n", run.stderr


def test_training_repeats_to_the_byte_on_any_number_of_threads(cache: Path) -> None:
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()
    checkpoints = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            digits.model()
            checkpoints.append(cache.read_bytes())
            cache.unlink()
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert checkpoints[0] == checkpoints[1]
    assert torch.equal(torch.get_rng_state(), random_state)


def test_the_model_is_good(cache: Path) -> None:
    model = digits.model()
    assert not model.training
    assert digits.test(model) >= 0.97
    assert digits.evaluate(model) >= 0.97


def test_a_corrupt_checkpoint_is_an_error_that_names_it(cache: Path) -> None:
    cache.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"digits\.safetensors.*Delete the file"):
        digits.model()


def test_the_model_can_be_traced() -> None:
    model = digits.DigitsCNN().eval()
    batch = digits.calibration()[0]
    assert model(batch).shape == (64, 10)
    assert torch.equal(fx.symbolic_trace(model)(batch), model(batch))


def test_calibration_is_256_training_images() -> None:
    images = torch.cat(digits.calibration())
    assert torch.equal(images, digits.load().train.images[:256])


def test_results_per_image_have_the_accuracy_as_their_mean() -> None:
    model, data = digits.model(), digits.load()
    for samples, metric, split in (
        (digits.evaluate_samples, digits.evaluate, data.tuning),
        (digits.test_samples, digits.test, data.test),
    ):
        hits = samples(model)
        assert hits.dtype == torch.bool
        assert hits.shape == split.labels.shape
        assert hits.double().mean().item() == metric(model)
