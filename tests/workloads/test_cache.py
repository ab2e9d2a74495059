"""Trained checkpoints: trained once, whole or absent, and a bad file says what to do."""

from pathlib import Path

import pytest
import torch
from torch import nn

from vq_plugin.user_cache import cache_dir
from vq_plugin.workloads.cache import trained


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "not" / "yet"
    monkeypatch.setenv("VQ_PLUGIN_CACHE", str(folder))
    return folder


def fill(model: nn.Linear) -> None:
    nn.init.constant_(model.weight, 3.0)


def refuse(model: nn.Module) -> None:
    raise AssertionError("a cached model was trained again")


def test_the_cache_is_in_the_home_folder_unless_told_otherwise(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cache_dir() == cache
    monkeypatch.delenv("VQ_PLUGIN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "vq_plugin"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_dir() == Path.home() / ".cache" / "vq_plugin"


def test_a_model_is_trained_once_and_then_read(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = trained("linear", nn.Linear(2, 3), fill)
    path = cache / "linear.safetensors"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert str(path) in captured.err

    second = trained("linear", nn.Linear(2, 3), refuse)
    assert capsys.readouterr().err == ""
    assert not first.training
    assert not second.training
    assert first is not second
    assert torch.equal(second.weight, torch.full((3, 2), 3.0))
    assert torch.equal(second.bias, first.bias)


def test_models_in_channels_last_format_are_kept(cache: Path) -> None:
    conv = nn.Conv2d(4, 4, 3)
    conv.weight.data = conv.weight.data.contiguous(memory_format=torch.channels_last)
    expected = conv.weight.detach().clone()
    trained("conv", conv, lambda model: None)
    assert torch.equal(trained("conv", nn.Conv2d(4, 4, 3), refuse).weight, expected)


def test_nothing_is_left_behind_when_training_fails(cache: Path) -> None:
    with pytest.raises(AssertionError):
        trained("linear", nn.Linear(2, 3), refuse)
    assert not cache.exists()


def test_nothing_is_left_behind_when_writing_fails(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*names: object, **settings: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        trained("linear", nn.Linear(2, 3), fill)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("home", ["cannot be written to", "is not known"])
def test_without_a_place_a_model_is_trained_once_in_a_process(
    home: str, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if home == "is not known":
        monkeypatch.setattr("vq_plugin.workloads.cache.cache_dir", _no_home)
    else:
        # Whoever runs the tests may be allowed everything.
        monkeypatch.setattr("os.access", lambda path, mode: False)
    first = trained(home, nn.Linear(2, 3), fill)
    assert "VQ_PLUGIN_CACHE names a folder" in capsys.readouterr().err
    second = trained(home, nn.Linear(2, 3), refuse)
    assert capsys.readouterr().err == ""
    assert torch.equal(second.bias, first.bias)
    assert not first.training
    assert not second.training
    assert not cache.exists()


def test_a_cache_that_can_be_read_alone_is_read(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained("linear", nn.Linear(2, 3), fill)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert torch.equal(trained("linear", nn.Linear(2, 3), refuse).bias, first.bias)


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("keep", [0, 5, 60])
def test_a_truncated_file_is_named_and_kept(cache: Path, keep: int) -> None:
    trained("linear", nn.Linear(2, 3), fill)
    path = cache / "linear.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="Delete the file") as caught:
        trained("linear", nn.Linear(2, 3), refuse)
    assert str(path) in str(caught.value)
    assert path.stat().st_size == keep


def test_a_checkpoint_of_another_architecture_is_refused(cache: Path) -> None:
    trained("linear", nn.Linear(2, 3), fill)
    with pytest.raises(ValueError, match="Delete the file"):
        trained("linear", nn.Linear(2, 4), refuse)
