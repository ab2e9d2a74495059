"""The training loop's determinism, and accuracy as a measurement that leaves no trace."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from vq_plugin.seeded import seeded
from vq_plugin.workloads.data import Samples
from vq_plugin.workloads.training import accuracy, correct, train


def separable() -> Samples:
    images = torch.randn(64, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return Samples(images, (images.sum((1, 2, 3)) > 0).long())


def network() -> nn.Sequential:
    with seeded(0):
        return nn.Sequential(
            nn.Flatten(), nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 2)
        )


def fit(model: nn.Module, seed: int = 0) -> None:
    train(
        model,
        separable(),
        optimizer=partial(torch.optim.SGD, momentum=0.9),
        max_lr=0.1,
        epochs=20,
        batch_size=10,
        augment=lambda images: images + 0.01 * torch.randn_like(images),
        seed=seed,
    )


def test_training_learns() -> None:
    model = network()
    fit(model)
    assert accuracy(model, *separable()) >= 0.95


@torch.no_grad()
def test_training_needs_no_gradients_of_its_caller() -> None:
    model = network()
    fit(model)
    assert accuracy(model, *separable()) >= 0.95


def test_the_seed_decides_every_byte() -> None:
    models = [network() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        torch.rand(1)
        fit(model, seed)
    first, again, other = (model.state_dict() for model in models)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["1.weight"], other["1.weight"])


def test_the_callers_random_state_is_untouched() -> None:
    before = torch.get_rng_state()
    fit(network())
    assert torch.equal(torch.get_rng_state(), before)


def test_no_progress_bar_outside_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    fit(network())
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_accuracy_is_the_mean_of_correct(batch_size: int) -> None:
    model = network().train()
    hits = correct(model, *separable(), batch_size)
    assert hits.dtype == torch.bool
    assert torch.equal(hits, correct(model.eval(), *separable()))
    assert accuracy(model, *separable(), batch_size) == pytest.approx(hits.float().mean().item())


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = network().train()
    model[2].eval()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    correct(model, *separable())
    assert [module.training for module in model] == [True, True, False, True, True]
    assert model.training
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_training_flags_return_when_the_model_fails() -> None:
    model = network()
    with pytest.raises(RuntimeError):
        correct(model, torch.zeros(2, 1, 3, 3), torch.zeros(2).long())
    assert all(module.training for module in model.modules())


def test_models_without_parameters_are_measured() -> None:
    class First(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)

    assert accuracy(First(), torch.eye(4).view(4, 1, 2, 2), torch.arange(4)) == 1.0


def test_exported_programs_are_measured() -> None:
    model = network().eval()
    example = separable().images[:8]
    dynamic = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(model, (example,), dynamic_shapes=dynamic).module()
    assert torch.equal(correct(exported, *separable()), correct(model, *separable()))
