"""Factorized models in everything that takes a float model."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import vq_plugin as vq
from vq_plugin.factorize import LowRank
from vq_plugin.workloads import digits

FACTORS: Any = {
    "classifier.0": vq.SVD(rate=4),
    "features.3": vq.Basis(5),
}


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return vq.factorize(digits.model(), FACTORS, digits.calibration())


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(digits.load().test.images[:64])
    return result


def test_a_quarter_of_the_weights_at_about_the_accuracy(small: nn.Module) -> None:
    assert digits.test(small) > digits.test(digits.model()) - 0.02
    sizes = [sum(p.numel() for p in model.parameters()) for model in (digits.model(), small)]
    assert sizes[1] < 0.3 * sizes[0]


def test_factors_of_eight_bits_compressed_trained_and_filed(
    small: nn.Module, tmp_path: Path
) -> None:
    """SVD with factors of 8 bits and fewer, as Gong et al.'s figures have it in float."""
    schemes: Any = {"re:classifier.0.*": vq.KM(k=16), "*": vq.KM(k=256)}
    coded = vq.compress(small, schemes, digits.calibration())
    assert {row.name for row in vq.summary(coded).rows} == {
        "features.0", "features.3.basis", "features.3.coefficients",
        "classifier.0.first", "classifier.0.second", "classifier.3",
    }  # fmt: skip
    vq.finetune(coded, digits.training_batches(), teacher=digits.model())
    assert digits.test(coded) > digits.test(digits.model()) - 0.02
    size = vq.save(coded, tmp_path / "model.vq")
    assert size < 27_000 < 138_794 * 4 / 20
    assert torch.equal(outputs(vq.load(tmp_path / "model.vq", digits.model())), outputs(coded))


def test_a_preset_makes_a_smaller_file_of_it(small: nn.Module, tmp_path: Path) -> None:
    sizes = []
    for model in (digits.model(), small):
        coded = vq.compress(model, "auto", digits.calibration())
        assert digits.test(coded) > digits.test(digits.model()) - 0.02
        sizes.append(vq.save(coded, tmp_path / "model.vq"))
    assert sizes[1] < 0.7 * sizes[0]


def test_pruned(small: nn.Module) -> None:
    sparse = vq.prune(small, digits.training_batches(), 0.5)
    assert str(sparse.classifier[0].factor) == str(small.classifier[0].factor)  # type: ignore[index, union-attr]
    assert digits.test(sparse) > digits.test(digits.model()) - 0.02


def test_tuned_against_the_whole_model(small: nn.Module, tmp_path: Path) -> None:
    model = digits.model()
    result = vq.tune(
        model, digits.evaluate, vq.LossBudget(absolute=0.02), digits.calibration(),
        max_trials=3, start=small, folder=tmp_path,
    )  # fmt: skip
    assert result.passed
    assert result.baseline == digits.evaluate(model)
    assert torch.equal(outputs(vq.load(tmp_path / "model.vq", model)), outputs(result.model))
    whole = vq.summary(vq.compress(model, vq.KM())).model_float_nbytes
    size = vq.summary(result.model).model_file_nbytes
    assert result.rate == pytest.approx(whole / size, rel=0.02)


def test_rates_count_against_the_whole_model() -> None:
    model = nn.Sequential(
        nn.Linear(40, 40), nn.Linear(40, 40), *(nn.Conv2d(8, 8, 3) for _ in range(3)), nn.ReLU()
    )
    model[1].weight = model[0].weight
    whole = sum(4 * p.numel() for p in model.parameters())
    factors: Any = {nn.Linear: vq.SVD(rank=3), "re:[23]": vq.Basis(5, shared=True), "4": None}
    small = vq.factorize(model, factors)
    assert sum(4 * p.numel() for p in small.parameters()) < 0.6 * whole
    settings: list[Any] = [{"*": vq.KM(4)}, {nn.Linear: vq.KM(4)}, {"2.basis": vq.KM(4)}]
    for schemes in settings:
        assert vq.summary(vq.compress(small, schemes)).model_float_nbytes == whole


def test_layers_are_traced_through_to_ordinary_ones(small: nn.Module) -> None:
    graph = fx.symbolic_trace(small)
    targets = {str(node.target) for node in graph.graph.nodes if node.op == "call_module"}
    assert {"classifier.0.first", "features.3.basis", "features.3.coefficients"} <= targets
    torch.testing.assert_close(outputs(graph), outputs(small))
    example = digits.load().test.images[:3]
    batch = torch.export.Dim("batch")
    program = torch.export.export(small, (example,), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(outputs(program.module()), outputs(small))


def test_torch_ao_converts_the_two_layers(small: nn.Module) -> None:
    from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

    from vq_plugin.torch_ao import check_converted, get_backend_config, get_qconfig_mapping

    schemes: Any = {"re:classifier.0.*": vq.KM(k=16), "features.3.basis": vq.KM(k=8)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = prepare_fx(
            copy.deepcopy(small), get_qconfig_mapping(schemes), (digits.load().test.images[:1],),
            backend_config=get_backend_config(),
        )  # fmt: skip
        converted = check_converted(
            convert_fx(prepared, backend_config=get_backend_config()), schemes
        )
    torch.testing.assert_close(outputs(converted), outputs(vq.compress(small, schemes)))


def test_a_name_of_before_is_told_the_two_of_now(small: nn.Module) -> None:
    with pytest.raises(ValueError, match=r"it is a LowRank.*classifier\.0\.first"):
        vq.compress(small, {"classifier.0": vq.KM()})


def test_copies_pickles_and_state_dicts(small: nn.Module, tmp_path: Path) -> None:
    torch.save(small, tmp_path / "small.pt")
    again = torch.load(tmp_path / "small.pt", weights_only=False)
    assert torch.equal(outputs(again), outputs(small))
    assert isinstance(copy.deepcopy(small).classifier[0], LowRank)  # type: ignore[index]
    fresh = vq.factorize(digits.DigitsCNN().eval(), {
        "classifier.0": vq.SVD(rank=small.classifier[0].factor.rank), "features.3": vq.Basis(5),  # type: ignore[index, union-attr]
    })  # fmt: skip
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(outputs(fresh), outputs(small))
