"""``vq.finetune``: codebooks learn, codes and zeros stay, runs repeat and resume."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_sequence

import vq_plugin as vq
from vq_plugin.nn import CodebookLayer
from vq_plugin.workloads import digits
from vq_plugin.workloads.data import Batches

SCHEMES: dict[str, vq.Scheme | None] = {
    "features.0": vq.KM(k=4),
    "*": vq.PQ(k=8, dim=8, codebooks="tensor"),
}


def batches(labels: bool = True) -> Batches:
    return Batches(digits.load().train, labels=labels)


def compressed() -> nn.Module:
    return vq.compress(digits.model(), SCHEMES)


def parts(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of what may change, and of what must not."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    norms = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    trains = {n for n in state if n.endswith(("codebooks", "bias")) or n in norms}
    return {n: state[n] for n in trains}, {n: state[n] for n in state.keys() - trains}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_distillation_brings_the_accuracy_back() -> None:
    teacher = digits.model()
    small = compressed()
    learned, fixed = parts(small)
    before = digits.test(small)
    state = torch.get_rng_state()
    assert vq.finetune(small, batches(labels=False), teacher=teacher, epochs=4) is small
    assert torch.equal(torch.get_rng_state(), state)
    after = digits.test(small)
    assert before < 0.97
    assert after > before + 0.01
    assert same(parts(small)[1], fixed)
    assert not any(torch.equal(a, learned[name]) for name, a in parts(small)[0].items())
    assert not any(p.grad is not None for p in teacher.parameters())


def test_without_a_teacher_the_targets_of_the_loader_are_learned() -> None:
    small = compressed()
    before = digits.test(small)
    vq.finetune(small, batches(), loss=functional.cross_entropy, epochs=4)
    assert digits.test(small) > before


def test_the_same_bytes_again_and_after_a_kill(tmp_path: Path) -> None:
    teacher = digits.model()
    whole = vq.finetune(compressed(), batches(), teacher=teacher, epochs=3)
    again = vq.finetune(compressed(), batches(), teacher=teacher, epochs=3)
    assert same(whole.state_dict(), again.state_dict())
    other = vq.finetune(compressed(), batches(), teacher=teacher, epochs=3, seed=1)
    assert not same(whole.state_dict(), other.state_dict())

    killed, file = compressed(), tmp_path / "run"
    epochs = 0

    def kill(_: nn.Module) -> bool:
        nonlocal epochs
        epochs += 1
        if epochs == 2:
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        vq.finetune(killed, batches(), teacher=teacher, epochs=3, stop=kill, checkpoint=file)
    assert file.exists()
    resumed = compressed()
    vq.finetune(resumed, batches(), teacher=teacher, epochs=3, checkpoint=file)
    assert same(whole.state_dict(), resumed.state_dict())
    assert not file.exists()


def test_it_stops_when_told_to_and_asks_in_eval_mode() -> None:
    asked: list[bool] = []

    def stop(model: nn.Module) -> bool:
        asked.append(model.training)
        return len(asked) == 2

    small = compressed().train()
    vq.finetune(small, batches(), teacher=digits.model(), epochs=5, stop=stop)
    assert asked == [False, False]
    assert small.training


def test_zeros_stay_zeros() -> None:
    torch.manual_seed(0)
    float_layer = nn.Linear(32, 16)
    with torch.no_grad():
        float_layer.weight[float_layer.weight.abs() < 0.1] = 0
    small = vq.compress(nn.Sequential(float_layer), vq.KM(k=5, keep_zeros=True))
    vq.finetune(
        small, [torch.randn(20, 32) for _ in range(10)], teacher=nn.Linear(32, 16), lr=0.1, epochs=3
    )
    weight = small.get_submodule("0").weight
    assert isinstance(weight, Tensor)
    assert bool((weight[float_layer.weight == 0] == 0).all())


@pytest.mark.parametrize("codebook_dtype", ["float16", "int8"])
def test_what_is_evaluated_is_what_a_file_holds(codebook_dtype: str, tmp_path: Path) -> None:
    scheme = vq.PQ(k=8, dim=8, codebook_dtype=codebook_dtype)  # type: ignore[arg-type]
    small = vq.compress(digits.model(), {"features.0": vq.KM(k=4), "*": scheme})
    vq.finetune(small, batches(), teacher=digits.model(), epochs=1)
    vq.save(small, tmp_path / "m.vq")
    again = vq.load(tmp_path / "m.vq", digits.model())
    x = digits.load().test.images
    with torch.no_grad():
        assert torch.equal(small.eval()(x), again(x))


def test_norms_train_and_frozen_parameters_do_not() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 4))
    small = vq.compress(model, {"0": vq.PQ(k=4, dim=4)})
    assert isinstance(small[0], CodebookLayer)  # type: ignore[index]
    small.get_submodule("0").bias.requires_grad_(False)  # type: ignore[union-attr,operator]
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    vq.finetune(small, [torch.randn(32, 16) for _ in range(5)], teacher=model)
    changed = {n for n, t in small.state_dict().items() if not torch.equal(t, before[n])}
    # The weight of the last layer was not compressed: it stays, its bias learns.
    assert changed == {"0.codebooks", "1.weight", "1.bias", "3.bias"}


def test_what_cannot_train_is_an_error(tmp_path: Path) -> None:
    teacher, batch = nn.Linear(8, 4), torch.randn(2, 8)
    small = vq.compress(teacher, vq.KM(k=4))
    with pytest.raises(ValueError, match="teacher="):
        vq.finetune(small, [batch])
    with pytest.raises(ValueError, match="no codebooks train"):
        vq.finetune(nn.Linear(8, 4), [batch], teacher=teacher)
    with pytest.raises(ValueError, match="no batches"):
        vq.finetune(small, [], teacher=teacher)
    with pytest.raises(ValueError, match="a second time"):
        vq.finetune(small, iter([batch]), teacher=teacher, epochs=2)
    with pytest.raises(ValueError, match="got dict"):
        vq.finetune(small, [{"x": batch}], teacher=teacher)
    with pytest.raises(ValueError, match="has to give"):
        vq.finetune(small, [batch], loss=functional.mse_loss)
    with pytest.raises(ValueError, match="loss is nan at batch 1 of epoch 1"):
        vq.finetune(small, [batch * float("nan")], teacher=teacher)
    (tmp_path / "run").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="no checkpoint of finetune"):
        vq.finetune(small, [batch], teacher=teacher, checkpoint=tmp_path / "run")
    with pytest.raises(ValueError, match=r"a pair \(inputs, targets\), got list of list, Tensor"):
        vq.finetune(small, [[[batch, batch], batch]], teacher=teacher)
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        vq.finetune(small, [batch], teacher=teacher, checkpoint=tmp_path)
    with pytest.raises(FileNotFoundError, match="gone"):
        vq.finetune(small, [batch], teacher=teacher, checkpoint=tmp_path / "gone" / "run")


def test_a_checkpoint_of_another_run_is_an_error(tmp_path: Path) -> None:
    teacher, batches = nn.Linear(8, 4), [torch.randn(2, 8)]

    def interrupted(_: nn.Module) -> bool:
        raise KeyboardInterrupt

    def run(k: int, lr: float = 0.03) -> None:
        small = vq.compress(teacher, vq.KM(k=k))
        vq.finetune(
            small, batches, teacher=teacher, lr=lr, stop=interrupted, checkpoint=tmp_path / "run"
        )

    with pytest.raises(KeyboardInterrupt):
        run(4)
    with pytest.raises(ValueError, match="this one has"):
        run(4, lr=0.02)
    with pytest.raises(ValueError, match="another model"):
        run(5)


@dataclass
class Heads:
    first: Tensor
    second: Tensor
    note: str = ""


class Structured(nn.Module):
    """Two outputs, as ``form`` makes one of them; inputs by position or by name."""

    def __init__(self, form: Callable[[Tensor, Tensor], object]) -> None:
        super().__init__()
        self.first, self.second, self.form = nn.Linear(8, 4), nn.Linear(8, 2), form

    def forward(self, value: Tensor) -> object:
        return self.form(self.first(value), self.second(value))


FORMS: dict[str, Callable[[Tensor, Tensor], object]] = {
    "tuple": lambda one, two: (one, two),
    "list": lambda one, two: [one, two],
    "dict": lambda one, two: {"first": one, "second": two},
    "dataclass": Heads,
    "nested": lambda one, two: {"all": (one, {"second": two})},
}


def parts_of(output: object) -> list[Tensor]:
    match output:
        case Tensor():
            return [output]
        case Heads():
            return [output.first, output.second]
        case dict():
            return [part for each in output.values() for part in parts_of(each)]
        case tuple() | list():
            return [part for each in output for part in parts_of(each)]
    raise AssertionError(output)


def total_error(ours: object, theirs: object) -> Tensor:
    pairs = zip(parts_of(ours), parts_of(theirs), strict=True)
    return torch.stack([functional.mse_loss(one, other) for one, other in pairs]).sum()


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize("batch", [lambda x: x, lambda x: [x], lambda x: {"value": x}])
def test_outputs_and_batches_of_other_forms(
    form: Callable[[Tensor, Tensor], object], batch: Callable[[Tensor], object]
) -> None:
    model = Structured(form).eval()
    data = [torch.randn(16, 8) for _ in range(8)]
    batches = [batch(x) for x in data]
    small = vq.compress(model, vq.KM(k=3))
    small.first.bias.data += 1  # type: ignore[union-attr, operator]

    def error() -> float:
        return sum(total_error(small(x), model(x)).item() for x in data)

    before = error()
    vq.finetune(small, batches, teacher=model, loss=total_error, epochs=4)
    assert error() < 0.95 * before
    pruned = vq.prune(model, batches, 0.5, teacher=model, loss=total_error)
    assert int((pruned.first.weight == 0).sum()) > 0  # type: ignore[union-attr, operator]
    vq.compensate(vq.compress(model, {"first": vq.KM(k=2)}), model, batches)
    with pytest.raises(ValueError, match=r"the model gives a \w+.*not one tensor: give loss="):
        vq.finetune(small, batches, teacher=model)


@dataclass
class Sample:
    value: Tensor


class Sequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.out = nn.GRU(8, 8), nn.Linear(8, 4)

    def forward(self, inputs: object, mask: Tensor | None = None) -> Tensor:
        inputs = inputs.value if isinstance(inputs, Sample) else inputs
        assert mask is None
        return self.out(self.recurrent(inputs)[1][-1])  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "batch",
    [
        lambda x: pack_sequence([x[:5], x[:3]]),
        lambda x: [pack_sequence([x[:5], x[:3]])],
        lambda x: (pack_sequence([x[:5], x[:3]]), torch.zeros(2)),
        lambda x: Sample(x),
        lambda x: [Sample(x)],
        lambda x: (x, None),
        lambda x: {"inputs": x, "mask": None},
    ],
)
def test_batches_of_what_the_model_takes(batch: Callable[[Tensor], object]) -> None:
    model = Sequences().eval()
    batches = [batch(torch.randn(6, 8)) for _ in range(3)]
    small = vq.compress(model, vq.KM(k=3))
    before = copy.deepcopy(small.state_dict())
    vq.finetune(small, batches, teacher=model)
    assert not torch.equal(small.state_dict()["out.codebooks"], before["out.codebooks"])


def test_batches_without_samples_are_passed_over() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)).train()
    x = torch.randn(16, 8)
    for empty in (x[:0], [x[:0]], (x[:0], torch.zeros(0)), {"input": x[:0]}):
        small = vq.compress(model, vq.KM(k=3))
        vq.finetune(small, [empty, x, empty, x], teacher=model)
        other = vq.compress(model, vq.KM(k=3))
        vq.finetune(other, [x, x], teacher=model)
        # The same but for the learning rate of the second step.
        assert all(parameter.isfinite().all() for parameter in small.parameters())
        assert small[1].num_batches_tracked == other[1].num_batches_tracked
        assert vq.prune(model, [empty, x], 0.5)[0].weight.isfinite().all()
        with pytest.raises(ValueError, match="no batches"):
            vq.finetune(small, [empty], teacher=model)


def test_targets_of_other_forms() -> None:
    model = Structured(FORMS["dict"])
    x = torch.randn(16, 8)
    targets = {"first": torch.randn(16, 4), "second": torch.randn(16, 2)}
    small = vq.compress(model, vq.KM(k=3))
    before = total_error(small(x), targets).item()
    vq.finetune(small, [(x, targets)] * 8, loss=total_error, epochs=4)
    assert total_error(small(x), targets).item() < before


def test_float16_is_refused_with_what_to_do_and_bfloat16_trains() -> None:
    # The squares of Adam's gradients leave float16, whatever the learning rate.
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    batches = [torch.randn(16, 8) for _ in range(4)]
    half, halves = copy.deepcopy(model).half(), [batch.half() for batch in batches]
    small = vq.compress(half, vq.KM(k=8))
    before = copy.deepcopy(small.state_dict())
    for train in (
        lambda: vq.finetune(small, halves, teacher=half),
        lambda: vq.prune(half, halves, 0.5),
    ):
        with pytest.raises(ValueError, match=r"float16.*model\.float\(\)"):
            train()
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())
    # The advice works.
    vq.finetune(small.float(), batches, teacher=half.float())
    assert small.half()(halves[0]).isfinite().all()
    brain = model.to(torch.bfloat16)
    small = vq.compress(brain, vq.KM(k=8))
    vq.finetune(small, [batch.to(torch.bfloat16) for batch in batches], teacher=brain)
    assert all(parameter.isfinite().all() for parameter in small.parameters())


class Without(nn.Module):
    """A model, or its teacher, whose forward has gradients off."""

    def __init__(self, context: Callable[[], Any], inner: nn.Module) -> None:
        super().__init__()
        self.context, self.inner = context, inner

    def forward(self, x: Tensor) -> Tensor:
        with self.context():
            output: Tensor = self.inner(x)
            return output


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_model_that_turns_gradients_off_is_told_so(context: Callable[[], Any]) -> None:
    model, data = Without(context, nn.Linear(8, 4)), [torch.randn(4, 8)]
    small = vq.compress(model, vq.KM(k=4))
    for train in (
        lambda: vq.finetune(small, data, teacher=model),
        lambda: vq.prune(model, data, 0.5),
        lambda: vq.learn(model, data, rate_weight=0.1, epochs=1),
    ):
        with pytest.raises(ValueError, match=r"no gradient at batch 1 .*turns gradients off"):
            train()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("loss", [None, lambda ours, theirs: (ours * theirs).mean()])
def test_a_teacher_may_run_without_gradients(
    context: Callable[[], Any], loss: Callable[[Tensor, Tensor], Tensor] | None
) -> None:
    teacher, data = nn.Linear(8, 4), [torch.randn(4, 8)]
    one, two = (vq.compress(teacher, vq.KM(k=4)) for _ in range(2))
    vq.finetune(one, data, teacher=teacher, loss=loss)
    vq.finetune(two, data, teacher=Without(context, teacher), loss=loss)
    assert same(one.state_dict(), two.state_dict())


@pytest.mark.parametrize(
    ("loss", "what"), [(lambda a, b: (a - b) ** 2, r"\(4, 4\)"), (lambda a, b: 1.0, "float")]
)
def test_a_loss_that_is_no_number_is_an_error(
    loss: Callable[[Tensor, Tensor], Any], what: str
) -> None:
    teacher = nn.Linear(8, 4)
    with pytest.raises(ValueError, match=f"must return a tensor of one number, got {what}"):
        vq.finetune(
            vq.compress(teacher, vq.KM(k=4)), [torch.randn(4, 8)], teacher=teacher, loss=loss
        )
