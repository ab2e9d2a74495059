"""What PT2E folds, and what follows: files that load, and budgets that hold for what is shipped."""

import pytest
import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.torchao import fused_float
from vq_plugin.tuning import LADDER
from vq_plugin.workloads import digits


def test_it_computes_what_the_model_computes(words, tokens):
    fused = fused_float(words, (tokens[0],))
    assert isinstance(fused.norm, nn.Identity)
    assert torch.equal(fused.mix.weight, words.folded().mix.weight)
    assert torch.allclose(fused(tokens[0]), words(tokens[0]), atol=1e-5)
    assert fused.head.weight is fused.words.weight
    assert isinstance(words.norm, nn.BatchNorm1d)


def test_norms_that_the_host_leaves():
    class Later(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.norm = nn.Linear(4, 6), nn.BatchNorm1d(5)

        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return self.norm(self.wide(value))

    fused = fused_float(Later().eval(), (torch.zeros(2, 5, 4),))
    assert isinstance(fused.norm, nn.BatchNorm1d)


def test_training_mode():
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        fused_float(nn.Linear(2, 2), (torch.zeros(1, 2),))


def test_files_of_converted_programs_load(words, tokens, convert, tmp_path):
    small = convert(words, vq.KM(k=8), tokens[0])
    vq.save(small, tmp_path / "small.vq")
    again = vq.load(tmp_path / "small.vq", fused_float(words, (tokens[0],)))
    assert torch.allclose(again(tokens[0]), small(tokens[0]), atol=1e-6)


def test_a_budget_is_decided_on_what_is_shipped(convert, assert_same):
    model, batches = digits.model().eval(), digits.calibration()
    fused = fused_float(model, (batches[0],))
    ladder = [scheme for scheme in LADDER if scheme is None or not scheme.feels]
    result = vq.tune(fused, digits.evaluate, calibration=batches, candidates=ladder, max_trials=3)
    shipped = convert(model, result.schemes, batches[0], calibration=batches)
    assert_same(shipped, result.model, batches[0])


def test_steps_by_gradients_are_said_to_be_unknown_here(convert):
    model, batches = digits.model().eval(), digits.calibration()
    with pytest.warns(UserWarning, match="here rows count by their size"):
        convert(model, vq.Uniform(0.5, scale="row"), batches[0], calibration=batches)
