"""``vq.learn``: bits are paid for, zeros come by themselves, targets and budgets are kept."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from tests.training.learning import Everything, Killed, inputs, network, saved
from tests.training.test_finetune import batches, same
from vq_plugin.factorize import KernelBasis
from vq_plugin.nn import coded_weights
from vq_plugin.training.latent import REACH, LatentWeight
from vq_plugin.training.loop import soft_cross_entropy
from vq_plugin.workloads import digits

WEIGHTS = 139_000  # of the digits model, about


def test_the_digits_are_kept_in_a_small_part_of_the_bytes(tmp_path: Path) -> None:
    model = digits.model()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = torch.get_rng_state()
    small = vq.learn(model, batches(labels=False), rate_weight=1 / WEIGHTS, epochs=10)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(dict(model.state_dict()), before)
    nbytes = saved(small, tmp_path)
    assert 557_000 / nbytes > 40
    assert digits.test(small) > digits.test(model) - 0.02
    again = vq.load(tmp_path / "model.vq", digits.model())
    assert abs(digits.test(again) - digits.test(small)) < 0.005


def test_a_higher_price_gives_fewer_bits_and_more_zeros() -> None:
    def zeros(price: float) -> float:
        small = vq.learn(network(), inputs(), rate_weight=price, epochs=4)
        weights = [each.codebook_weight.decode() for each in coded_weights(small).values()]
        return float(torch.cat([w.flatten() for w in weights]).eq(0).double().mean())

    free, cheap, dear = map(zeros, (0.0, 1e-4, 1e-2))
    assert free < cheap < dear


def test_the_pull_is_the_slope_of_the_bits_under_uniform_noise() -> None:
    weight = nn.Parameter(torch.randn(400, generator=torch.Generator().manual_seed(2)))
    latent = LatentWeight(weight, 1.0)
    latent.count()
    step, numbers = float(latent.log_step.detach().exp()), latent.codes().flatten().int()
    # Of codes of both signs and at least one observation in two, as the class says.
    size = numbers.abs()
    counts = [(size == c).sum().item() / (1 if c == 0 else 2) for c in range(REACH + 1)]
    total = 400 + 0.5 * (2 * REACH + 1)
    lengths, longest = [], 0.0
    for count in counts:
        longest = max(longest, -math.log2((count + 0.5) / total))
        lengths.append(longest)

    def mean_bits(value: float) -> float:
        """Over 2,000 offsets of the rounding."""
        offsets = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000 - 0.5
        codes = (value / step + offsets).round().abs().long()
        return float(torch.tensor(lengths, dtype=torch.float64)[codes].mean())

    weight.grad = torch.zeros_like(weight)
    latent.pull(3.0, settled=False)
    assert latent.latent.grad is not None
    for i in range(0, 400, 25):
        value, gap = float(latent.latent[i].detach()), 0.05 * step
        if abs(abs(value / step) % 1 - 0.5) > 0.44:
            continue  # across a kink
        slope = (mean_bits(value + gap) - mean_bits(value - gap)) / (2 * gap)
        assert float(latent.latent.grad[i]) == pytest.approx(3 * slope, rel=0.03, abs=0.05)


def test_bits_that_are_counted_are_bits_of_the_file() -> None:
    weight = nn.Parameter(torch.randn(256, 256).pow(3))
    latent = LatentWeight(weight, 1.0)
    latent.count()
    numbers = (latent.codes() + REACH).byte().numpy()[None]
    used = sorted(set(numbers.flatten().tolist()))
    codes = torch.tensor([used.index(n) for n in numbers.flatten().tolist()]).byte()
    from vq_plugin.coding.entropy import coded_size

    size = coded_size(codes.reshape(1, 256, 256).numpy(), len(used))
    assert float(latent.bits) / 8 == pytest.approx(size, rel=0.02)


def test_every_kind_of_layer_learns(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Everything().train()
    tokens = [torch.randint(20, (8, 5)) for _ in range(6)]
    small = vq.learn(model, tokens, rate_weight=1e-4, epochs=2, lr=1e-2)
    assert small.training
    names = set(coded_weights(small))
    assert {"table", "up", "conv", "head"} <= names
    assert any(name.startswith("lstm") for name in names)
    assert any(name.startswith("attention") for name in names)
    assert torch.equal(small.head.weight, small.table.weight)  # type: ignore[union-attr]
    assert not bool(small.table.weight[0].any())  # type: ignore[union-attr, index]
    saved(small, tmp_path)
    again = vq.load(tmp_path / "model.vq", Everything())
    with torch.no_grad():
        assert torch.allclose(again.eval()(tokens[0]), small.eval()(tokens[0]), atol=1e-2)


def test_mixes_of_kernels_train_as_one_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)).eval()
    data = [torch.randn(32, 4, 6, 6) for _ in range(4)]
    mixed = vq.factorize(model, {"0": vq.Basis(d=4)})

    def never(*_: object) -> None:
        raise AssertionError("two convolutions, the first of which makes d images of every channel")

    with monkeypatch.context() as patch:
        patch.setattr(KernelBasis, "forward", never)
        small: Any = vq.learn(mixed, data, rate_weight=1e-3, epochs=2, teacher=model)
    trained = small[0].basis.weight - mixed[0].basis.weight  # type: ignore[index]
    assert trained.abs().max() > 0
    assert small(data[0]).shape == (32, 4)
    assert "forward" not in vars(mixed[0]) | vars(small[0])  # type: ignore[index]


def test_the_same_bytes_again_and_after_a_kill(tmp_path: Path) -> None:
    def run(loader: list[Tensor], target: int | None, **more: Any) -> dict[str, Tensor]:
        price = None if target else 1e-3
        settings: dict[str, Any] = {"rate_weight": price, "target_bytes": target, "epochs": 4}
        return dict(vq.learn(network(), loader, **settings, **more).state_dict())

    for target in (None, 3000):
        whole = run(inputs(), target)
        assert same(whole, run(inputs(), target))
        file = tmp_path / "run"
        with pytest.raises(KeyboardInterrupt):
            run(Killed(inputs()), target, checkpoint=file)
        assert file.exists()
        assert same(whole, run(inputs(), target, checkpoint=file))
        assert not file.exists()


def test_a_callback_sees_every_epoch_and_may_end_the_training(tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []

    def note(epoch: int, loss: float) -> None:
        seen.append((epoch, loss))

    def end(epoch: int, loss: float) -> None:
        note(epoch, loss)
        if epoch == 2:
            raise KeyboardInterrupt

    settings: dict[str, Any] = {"rate_weight": 0.0, "epochs": 3}
    whole = vq.learn(network(), inputs(), callback=note, **settings)
    assert [epoch for epoch, _ in seen] == [1, 2, 3]
    # The first model is its own teacher: what is lost is the entropy of its answers, and more.
    answers = network()(torch.cat(inputs())).detach()
    least = float(soft_cross_entropy(answers, answers))
    assert all(least - 1e-4 < loss < least + 1 for _, loss in seen)
    expected = list(seen)
    seen.clear()
    file = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        vq.learn(network(), inputs(), callback=end, checkpoint=file, **settings)
    again = vq.learn(network(), inputs(), callback=note, checkpoint=file, **settings)
    assert seen == expected
    assert same(dict(whole.state_dict()), dict(again.state_dict()))
    seen.clear()
    budget = vq.LossBudget(absolute=0.5)
    vq.learn(network(), inputs(), budget=budget, evaluate=lambda _: 1.0, epochs=1, callback=note)
    assert [epoch for epoch, _ in seen] == [1, 1, 1]
    with pytest.raises(TypeError, match="callback must be a function, got int"):
        vq.learn(network(), inputs(), rate_weight=0.0, callback=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [{"target_bytes": 16_000}, {"target_rate": 557_000 / 16_000}])
def test_a_file_of_the_size_that_was_asked_for(target: dict[str, Any], tmp_path: Path) -> None:
    small = vq.learn(digits.model(), batches(labels=False), epochs=10, **target)
    assert 0.93 * 16_000 < saved(small, tmp_path) <= 16_000
    assert digits.test(small) > 0.9


def test_a_target_that_takes_much_is_reached_within_three_percent(tmp_path: Path) -> None:
    batch = batches(labels=False)
    small = vq.learn(digits.model(), batch, target_bytes=7_000, epochs=6, rest="int8")
    assert 0.97 * 7_000 < vq.save(small, tmp_path / "model.vq", rest="int8") <= 7_000


def test_a_target_costs_little_accuracy_where_it_takes_much() -> None:
    score, lost = digits.test(digits.model()), []
    for seed in range(3):
        small = vq.learn(
            digits.model(), batches(labels=False), target_bytes=7_000, epochs=6, rest="int8",
            seed=seed,
        )  # fmt: skip
        lost.append(score - digits.test(small))
    assert sum(lost) / 3 < 0.04


def test_a_target_is_kept_where_the_training_is_too_short(tmp_path: Path) -> None:
    small = vq.learn(digits.model(), batches(labels=False), target_bytes=7_000, epochs=1)
    assert 0.97 * 7_000 < saved(small, tmp_path) <= 7_000


def test_a_budget_chooses_the_price_in_three_trainings() -> None:
    model = digits.model()
    scores: list[float] = []

    def evaluate(each: nn.Module) -> float:
        scores.append(digits.evaluate(each))
        return scores[-1]

    budget = vq.LossBudget(absolute=0.015)
    small = vq.learn(model, batches(labels=False), budget=budget, evaluate=evaluate, epochs=6)
    assert len(scores) == 4  # one of the float model
    assert budget.holds(scores[0], digits.evaluate(small))


def test_a_budget_that_nothing_keeps_is_no_silent_failure() -> None:
    scores = iter([1.0, 0.2, 0.4, 0.3])
    with pytest.warns(UserWarning, match="no training is within the budget"):
        vq.learn(
            network(), inputs(2), budget=vq.LossBudget(absolute=0.01),
            evaluate=lambda _: next(scores), epochs=1,
        )  # fmt: skip


def test_labels_teach_without_a_teacher() -> None:
    small = vq.learn(
        digits.model(), batches(), rate_weight=1 / WEIGHTS, loss=functional.cross_entropy, epochs=8
    )
    assert digits.test(small) > digits.test(digits.model()) - 0.03


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_trains_in_float32(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    batch = [x.to(dtype) for x in inputs()]
    small = vq.learn(model, batch, rate_weight=1e-4, epochs=3)
    assert {p.dtype for p in small.parameters()} == {dtype}
    with torch.no_grad():
        assert small(batch[0]).dtype is dtype
        error = (small(batch[0]).float() - model(batch[0]).float()).std()
        assert error < 0.5 * model(batch[0]).float().std()


def test_norms_know_the_final_weights() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32, bias=False), nn.BatchNorm1d(32), nn.Linear(32, 4))
    for x in inputs():
        model(x)
    small = vq.learn(model.train(), inputs(), rate_weight=1e-3, epochs=2)
    with torch.no_grad():
        values = torch.cat([small[0](x) for x in inputs()])  # type: ignore[index]
    assert torch.allclose(small[1].running_mean, values.mean(0), atol=1e-5)  # type: ignore[index]
    kept = vq.learn(model.eval(), inputs(), rate_weight=1e-3, epochs=2)
    assert torch.equal(kept[1].running_mean, model[1].running_mean)  # type: ignore[index]


def test_layers_that_are_not_chosen_stay_float_and_train() -> None:
    model = network()
    small = vq.learn(model, inputs(), rate_weight=1e-4, layers=["0"], epochs=2)
    assert list(coded_weights(small)) == ["0"]
    assert not torch.equal(small[2].weight, model[2].weight)  # type: ignore[index]


def frozen() -> nn.Module:
    model = network()
    model[0].weight.requires_grad_(False)
    return model


def broken() -> nn.Module:
    model = network()
    with torch.no_grad():
        model[2].weight[0, 0] = math.nan
    return model


BUDGET = vq.LossBudget(absolute=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate_weight": None}, "exactly one of rate_weight=.* got none"),
        ({"target_rate": 3.0}, "got rate_weight and target_rate"),
        ({"rate_weight": -1.0}, "rate_weight must be .* at least 0, got -1"),
        ({"rate_weight": math.nan}, "rate_weight must be"),
        ({"rate_weight": None, "target_rate": 0.5}, "target_rate must be .* at least 1"),
        ({"rate_weight": None, "target_bytes": 100}, "100 bytes are too few"),
        ({"rate_weight": None, "budget": BUDGET}, "budget= needs evaluate="),
        ({"evaluate": digits.evaluate}, "there is no budget"),
        (
            {
                "rate_weight": None, "evaluate": lambda _: 1.0,
                "budget": vq.LossBudget(absolute=0.1, confidence=0.95),
            },
            "without confidence",
        ),
        (
            {"rate_weight": None, "evaluate": lambda _: math.nan, "budget": BUDGET},
            "evaluate= returned nan",
        ),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": -1.0}, "lr must be a finite number of at least 0, got -1"),
        ({"lr": math.nan}, "lr must be a finite number"),
        ({"rate_weight": None, "target_rate": 1e6}, "target_rate=1000000.0 leaves no byte of 5392"),
        ({"rest": "f16"}, "rest"),
        ({"model": frozen()}, "layer '0' is frozen"),
        ({"model": broken()}, "layer '2': the weight holds 1 NaN"),
        ({"model": nn.BatchNorm1d(16)}, "matches"),
        ({"loader": []}, "the loader gave no batches"),
        ({"loader": [torch.full((4, 16), math.nan)]}, "the loss is nan.*lower lr="),
    ],
)  # fmt: skip
def test_bad_input_is_named(changes: dict[str, Any], message: str) -> None:
    settings: dict[str, Any] = {"rate_weight": 1e-4, "epochs": 2, **changes}
    model, loader = settings.pop("model", network()), settings.pop("loader", inputs(2))
    with pytest.raises(ValueError, match=message):
        vq.learn(copy.deepcopy(model), loader, **settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 1.5}, "epochs must be a whole number, got 1.5"),
        ({"epochs": "2"}, "epochs must be a whole number, got '2'"),
        ({"seed": "a"}, "seed must be a whole number"),
        ({"lr": "fast"}, "lr must be a number"),
        ({"teacher": 5}, "teacher is a int, no torch.nn.Module"),
        ({"loss": 5}, "loss must be a function"),
        ({"rate_weight": None, "target_bytes": 1000.5}, "target_bytes must be a whole number"),
        ({"rate_weight": None, "budget": 0.01, "evaluate": digits.evaluate}, "vq.LossBudget"),
        ({"rate_weight": None, "budget": BUDGET, "evaluate": 5}, "evaluate must be a function"),
        (
            {"rate_weight": None, "budget": BUDGET, "evaluate": lambda _: None},
            "evaluate= returned NoneType",
        ),
    ],
)  # fmt: skip
def test_what_is_of_the_wrong_type_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        vq.learn(network(), inputs(2), **{"rate_weight": 1e-4, "epochs": 2, **changes})


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"epochs": 2.5}, TypeError, "epochs must be a whole number"),
        ({"seed": None}, TypeError, "seed must be a whole number"),
        ({"lr": math.inf}, ValueError, "lr must be a finite number"),
        ({"teacher": "network"}, TypeError, "teacher is a str, no torch.nn.Module"),
        ({"loss": 5}, TypeError, "loss must be a function"),
    ],
)
def test_other_trainings_name_it_too(
    changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    float_model = network()
    settings = {"teacher": float_model, **changes}
    with pytest.raises(kind, match=message):
        vq.finetune(vq.compress(float_model, "km(k=4)"), inputs(2), **settings)
    with pytest.raises(kind, match=message):
        vq.prune(float_model, inputs(2), 0.5, **settings)
    with pytest.raises(kind, match=message):
        vq.prune_factors(vq.factorize(float_model, vq.SVD(rate=2)), inputs(2), **settings)


def test_a_loader_that_runs_dry_is_refused_before_the_first_epoch() -> None:
    with pytest.raises(TypeError, match="read once each epoch"):
        vq.learn(network(), iter(inputs(2)), rate_weight=1e-4, epochs=2)
