"""The search is for the smallest file, not for the fewest bytes of fixed length."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq

pytest.importorskip("constriction")

PRUNED, SHARED = vq.KM(k=5, keep_zeros=True), vq.PQ(k=16, dim=4, codebooks="tensor")


@pytest.fixture
def model() -> nn.Module:
    """One layer of two is pruned."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 16))
    with torch.no_grad():
        layers[0].weight *= torch.rand(128, 128) < 0.03
    return layers


def constant(_: nn.Module) -> float:
    return 1.0


def saved(model: nn.Module, path: Path) -> int:
    """Bytes of a file without its header."""
    vq.save(model, path)
    return path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")


def test_bytes_of_trials_are_those_of_their_files(model: nn.Module, tmp_path: Path) -> None:
    batches = [torch.randn(64, 128)]
    result = vq.tune(
        model, constant, calibration=batches, candidates=[PRUNED, SHARED, vq.KM(k=16), None]
    )
    assert result.passed
    for trial in result.trials:
        small = vq.compress(model, trial.schemes, batches)  # type: ignore[arg-type]
        # Compact files have the header inside: at most a few hundred bytes.
        assert -8 * len(trial.schemes) <= saved(small, tmp_path / "m.vq") - trial.nbytes < 500
        shown = vq.summary(small)
        assert trial.nbytes == shown.file_nbytes + shown.other_nbytes
    assert result.rate == max(trial.rate for trial in result.trials)


def test_what_is_larger_when_packed_wins_where_its_file_is_smaller(
    model: nn.Module, tmp_path: Path
) -> None:
    result = vq.tune(
        model,
        constant,
        calibration=[torch.randn(64, 128)],
        candidates={"0": [PRUNED, SHARED], "2": None},
        folder=tmp_path / "run",
    )
    assert result.schemes == {"0": PRUNED, "2": None}
    packed = {str(s): vq.quantize_weight(weight_of(model), s).nbytes for s in (PRUNED, SHARED)}
    assert packed[str(PRUNED)] > packed[str(SHARED)]
    float_nbytes = 4 * sum(p.numel() for p in model.parameters())
    assert result.rate == float_nbytes / result.trials[-1].nbytes
    size = (tmp_path / "run" / "model.vq").stat().st_size
    assert 0 < size - float_nbytes / result.rate < 1000


def weight_of(model: nn.Module) -> Tensor:
    weight = model.get_submodule("0").weight
    assert isinstance(weight, Tensor)
    return weight
