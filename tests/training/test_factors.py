"""``vq.prune_factors``: coefficients that go, bases that learn to do without, runs that resume."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from tests.training.test_finetune import batches, same
from vq_plugin.workloads import digits


def factorized() -> nn.Module:
    return vq.factorize(digits.model(), {"features.3": vq.Basis(d=5)})


def coefficients(model: nn.Module) -> Tensor:
    weight = model.get_submodule("features.3.coefficients").weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def test_most_coefficients_go_and_the_accuracy_stays(tmp_path: Path) -> None:
    model, whole = digits.model(), factorized()
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    sparse = vq.prune_factors(whole, batches(labels=False), teacher=model, epochs=4)
    assert same(whole.state_dict(), before)
    zeros = coefficients(sparse) == 0
    assert 0.5 < zeros.float().mean() < 0.95
    assert digits.test(sparse) > digits.test(model) - 0.02
    assert all(parameter.requires_grad for parameter in sparse.parameters())

    # They stay zeros as codes, in the file and in a model that was never pruned.
    vq.save(vq.compress(sparse, vq.KM(k=9, keep_zeros=True)), tmp_path / "sparse.vq")
    again = vq.load(tmp_path / "sparse.vq", digits.model())
    assert bool((coefficients(again)[zeros] == 0).all())


def test_without_training_those_below_so_many_deviations_go() -> None:
    whole = factorized()
    before = coefficients(whole)
    sparse = vq.prune_factors(
        whole, batches(labels=False), teacher=digits.model(), deviations=1.5, epochs=2, lr=0.0
    )
    expected = before * (before.abs() >= 1.5 * before.double().var(correction=0).sqrt())
    assert torch.equal(coefficients(sparse), expected)


def test_a_penalty_makes_more_of_them_small() -> None:
    shares = []
    for penalty in (0.0, 0.1):
        sparse = vq.prune_factors(
            factorized(), batches(labels=False), teacher=digits.model(), penalty=penalty,
            deviations=0.0, epochs=4,
        )  # fmt: skip
        shares.append(float(coefficients(sparse).abs().median()))
    assert shares[1] < 0.7 * shares[0]


@pytest.mark.parametrize("kill", [2, 4])
def test_a_run_that_was_killed_goes_on(kill: int, tmp_path: Path) -> None:
    class Killed:
        """Batches of which one epoch is killed."""

        epochs = 0

        def __len__(self) -> int:
            return len(batches())

        def __iter__(self) -> Iterator[object]:
            self.epochs += 1
            if self.epochs == kill:
                raise KeyboardInterrupt
            return iter(batches(labels=False))

    model, loader, path = digits.model(), Killed(), tmp_path / "run"
    expected = vq.prune_factors(factorized(), batches(labels=False), teacher=model)
    with pytest.raises(KeyboardInterrupt):
        vq.prune_factors(factorized(), loader, teacher=model, checkpoint=path)
    sparse = vq.prune_factors(factorized(), loader, teacher=model, checkpoint=path)
    assert same(sparse.state_dict(), expected.state_dict())
    assert not path.exists()


def test_what_cannot_be() -> None:
    model, inputs = digits.model(), batches(labels=False)
    with pytest.raises(ValueError, match="nothing in the model is factorized"):
        vq.prune_factors(model, inputs, teacher=model)
    with pytest.raises(ValueError, match="give teacher="):
        vq.prune_factors(factorized(), inputs)
    with pytest.raises(ValueError, match="2 at least, got 1"):
        vq.prune_factors(factorized(), inputs, teacher=model, epochs=1)
    with pytest.raises(ValueError, match="penalty must not be negative"):
        vq.prune_factors(factorized(), inputs, teacher=model, penalty=-1.0)
    with pytest.raises(ValueError, match="are frozen"):
        vq.prune_factors(factorized().requires_grad_(False), inputs, teacher=model)
