"""The search is for the smallest file, not for the fewest bytes of fixed length."""

import json
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq

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


def saved(model: nn.Module, path: Path, rest: Literal["float16"] | None = None) -> int:
    """Bytes of a file without its header."""
    vq.save(model, path, rest=rest)
    return path.stat().st_size - 8 - int.from_bytes(path.read_bytes()[:8], "little")


def test_bytes_of_trials_are_those_of_their_files(model: nn.Module, tmp_path: Path) -> None:
    batches = [torch.randn(64, 128)]
    budget = vq.LossBudget(relative=0.01, min_agreement=None)
    candidates = [PRUNED, SHARED, vq.KM(k=16), None]
    result = vq.tune(model, constant, budget, batches, candidates=candidates)
    assert result.passed
    for trial in result.trials:
        small = vq.compress(model, trial.schemes, batches)  # type: ignore[arg-type]
        # Compact files have the header inside: at most a few hundred bytes.
        assert -8 * len(trial.schemes) <= saved(small, tmp_path / "m.vq") - trial.nbytes < 500
        shown = vq.summary(small)
        assert trial.nbytes == shown.file_nbytes + shown.other_nbytes
    assert result.rate == max(trial.rate for trial in result.trials)


def test_rounded_biases_and_layers_count_half_and_are_what_was_evaluated(
    model: nn.Module, tmp_path: Path
) -> None:
    seen = []

    def evaluate(small: nn.Module) -> float:
        seen.append({key: value.clone() for key, value in small.state_dict().items()})
        return 1.0

    batches = [torch.randn(64, 128)]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = vq.tune(
        model, evaluate, calibration=batches, candidates={"0": [vq.KM(k=5), None], "2": None},
        rest="float16", folder=tmp_path / "run",
    )  # fmt: skip
    assert result.passed
    assert result.rest == "float16"
    assert result.layers[0].float_nbytes == 4 * 128 * 128
    assert result.layers[0].candidates[0].nbytes == 2 * 128 * 128
    for trial in result.trials:
        small = vq.compress(model, trial.schemes, batches)  # type: ignore[arg-type]
        assert -8 <= saved(small, tmp_path / "m.vq", "float16") - trial.nbytes < 500
        shown = vq.summary(small, rest="float16")
        assert trial.nbytes == shown.file_nbytes + shown.other_nbytes
        assert 2 * shown.other_nbytes == vq.summary(small).other_nbytes
    best = min(result.trials, key=lambda trial: trial.nbytes)
    assert result.rate == best.rate
    # The float model is not rounded, every other model that was seen is.
    baseline, _, *tried = seen
    assert all(torch.equal(baseline[key], value) for key, value in before.items())
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    assert not torch.equal(before["2.weight"], before["2.weight"].half().float())
    for state in tried:
        assert torch.equal(state["2.weight"], before["2.weight"].half().float())
    loaded = vq.load(tmp_path / "run" / "model.vq", model).state_dict()
    for key, value in result.model.state_dict().items():
        assert torch.equal(loaded[key], value), key
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["sizes"]["nbytes"] == best.nbytes
    assert report["sizes"]["other_nbytes"] == best.nbytes - sum(
        layer["file_nbytes"] for layer in report["layers"]
    )


def test_a_rest_that_does_not_exist_is_an_error(model: nn.Module) -> None:
    with pytest.raises(ValueError, match="rest='int4'"):
        vq.tune(model, constant, rest="int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rest='int4'"):
        vq.summary(model, rest="int4")  # type: ignore[arg-type]


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
    assert result.left_float == vq.summary(result.model).left
    assert [weight.name for weight in result.left_float] == ["2.weight"]
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
