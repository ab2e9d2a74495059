"""``vq.prune``: zeros where they cost least, weights that learn to do without, runs that resume."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.nn.utils import prune as torch_prune

import vq_plugin as vq
from tests.training.test_finetune import batches, same
from vq_plugin.workloads import digits
from vq_plugin.workloads.data import Batches


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters() if p.dim() > 1}


def zeros(model: nn.Module) -> float:
    every = torch.cat([w.flatten() for w in weights(model).values()])
    return float((every == 0).double().mean())


def test_most_weights_go_and_the_accuracy_stays() -> None:
    model = digits.model()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    sparse = vq.prune(model, batches(labels=False), 0.9, epochs=12)
    assert zeros(sparse) == pytest.approx(0.9, abs=1e-4)
    assert digits.test(sparse) > digits.test(model) - 0.02
    assert same(model.state_dict(), before)

    at_once = digits.model()
    for layer in at_once.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            torch_prune.l1_unstructured(layer, "weight", 0.9)
    assert digits.test(at_once) < digits.test(sparse)

    # The zeros outlive compression, training and the file.
    small = vq.compress(sparse, vq.KM(k=5, keep_zeros=True))
    vq.finetune(small, batches(), teacher=model)
    for name, weight in weights(sparse).items():
        decoded = small.get_submodule(name.removesuffix(".weight")).weight
        assert isinstance(decoded, Tensor)
        assert bool((decoded[weight == 0] == 0).all())


def test_weights_without_training_are_those_of_the_largest_scores() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20))
    with torch.no_grad():
        model[1].weight *= 100
    sparse = vq.prune(model, [torch.randn(4, 40)] * 400, 0.8, lr=0.0)
    scores = []
    for weight in weights(model).values():
        squares = sorted((float(w) ** 2 for w in weight.flatten()), reverse=True)
        sums = dict(zip(squares, torch.tensor(squares).double().cumsum(0).tolist(), strict=True))
        scores.append(torch.tensor([float(w) ** 2 / sums[float(w) ** 2] for w in weight.flatten()]))
    count = 1800 - round(0.8 * 1800)
    limit = torch.cat(scores).sort(descending=True).values[count - 1]
    for score, weight, before in zip(
        scores, weights(sparse).values(), weights(model).values(), strict=True
    ):
        kept = (score >= limit).view_as(weight)
        assert torch.equal(weight, before * kept)


def test_layers_that_are_not_chosen_keep_their_weights_and_train() -> None:
    model = digits.model()
    sparse = vq.prune(model, batches(), 0.5, layers=["re:classifier.*"], epochs=2)
    kept = [name for name, weight in weights(sparse).items() if not bool((weight == 0).any())]
    assert kept
    assert all(name.startswith("features") for name in kept)
    assert not any(torch.equal(weights(sparse)[n], weights(model)[n]) for n in kept)


def test_zeros_that_were_there_stay_and_count() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 20))
    with torch.no_grad():
        model[0].weight[:15] = 0
    sparse = vq.prune(model, [torch.randn(8, 30)] * 20, 0.5)
    assert torch.equal(sparse[0].weight == 0, model[0].weight == 0)  # type: ignore[index,union-attr]


def test_a_weight_that_layers_share_counts_once() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16, bias=False) for _ in range(2)]
    layers[1].weight = layers[0].weight
    sparse = vq.prune(nn.Sequential(*layers), [torch.randn(8, 16)] * 20, 0.75)
    assert isinstance(sparse, nn.Sequential)
    assert sparse[0].weight is sparse[1].weight
    assert int((sparse[0].weight == 0).sum()) == 192


def test_equal_weights_go_until_there_are_enough() -> None:
    model = nn.Sequential(nn.Linear(10, 10))
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    sparse = vq.prune(model, [torch.ones(1, 10)] * 4, 0.3, lr=0.0, epochs=2)
    assert int((sparse[0].weight == 0).sum()) == 30  # type: ignore[index]


def test_the_sparsity_is_reached_however_few_the_steps() -> None:
    torch.manual_seed(0)
    model, batches = nn.Sequential(nn.Linear(20, 10)), [torch.randn(8, 20)]
    for epochs in (1, 2):
        assert zeros(vq.prune(model, batches, 0.9, epochs=epochs)) == 0.9


def test_a_loader_without_a_length_takes_several_epochs() -> None:
    class Stream:
        def __iter__(self) -> Iterator[Tensor]:
            yield from [torch.ones(8, 20)] * 5

    model = nn.Sequential(nn.Linear(20, 10))
    assert zeros(vq.prune(model, Stream(), 0.9)) == 0.9
    with pytest.raises(ValueError, match="3 epochs at least, got 2"):
        vq.prune(model, Stream(), 0.9, epochs=2)


def test_the_same_bytes_again_and_after_a_kill(tmp_path: Path) -> None:
    model, file = digits.model(), tmp_path / "run"
    whole = vq.prune(model, batches(), 0.9, epochs=3)
    assert same(whole.state_dict(), vq.prune(model, batches(), 0.9, epochs=3).state_dict())

    epochs = []

    class Killed(Batches):
        def __iter__(self):  # type: ignore[no-untyped-def]
            epochs.append(1)
            if len(epochs) == 3:
                raise KeyboardInterrupt
            return super().__iter__()

    with pytest.raises(KeyboardInterrupt):
        vq.prune(model, Killed(digits.load().train), 0.9, epochs=3, checkpoint=file)
    assert file.exists()
    resumed = vq.prune(model, batches(), 0.9, epochs=3, checkpoint=file)
    assert same(whole.state_dict(), resumed.state_dict())
    assert not file.exists()


def test_targets_instead_of_a_teacher() -> None:
    model = digits.model()
    sparse = vq.prune(model, batches(), 0.9, loss=functional.cross_entropy, epochs=12)
    assert digits.test(sparse) > digits.test(model) - 0.03


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
def test_what_cannot_be_pruned_is_an_error() -> None:
    batches = [torch.randn(2, 8)]
    for sparsity in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="sparsity must be"):
            vq.prune(nn.Linear(8, 4), batches, sparsity)
    with pytest.raises(ValueError, match="nothing"):
        vq.prune(nn.Sequential(nn.Linear(8, 4)), batches, 0.5, layers=["gone"])
    with pytest.raises(TypeError, match=r"\['\*'\]"):
        vq.prune(nn.Sequential(nn.Linear(8, 4)), batches, 0.5, layers="*")
    in_parts = nn.Sequential(torch_prune.l1_unstructured(nn.Linear(8, 4), "weight", 0.5))
    with pytest.raises(ValueError, match="layer '0' keeps its weight in parts"):
        vq.prune(in_parts, batches, 0.5)
    for norm, remedy in (
        (weight_norm, "utils.remove_weight_norm"),
        (spectral_norm, "utils.remove_spectral_norm"),
        (parametrizations.weight_norm, "parametrize.remove_parametrizations"),
    ):
        with pytest.raises(ValueError, match=rf"in parts: .*{remedy}\(layer, 'weight'\)"):
            vq.prune(nn.Sequential(norm(nn.Linear(8, 4))), batches, 0.5)
    frozen = nn.Sequential(nn.Linear(8, 4))
    frozen[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match="layer '0' is frozen"):
        vq.prune(frozen, batches, 0.5)
    with pytest.raises(ValueError, match="loss is nan"):
        vq.prune(nn.Sequential(nn.Linear(8, 4)), [batches[0] * float("nan")], 0.5)
