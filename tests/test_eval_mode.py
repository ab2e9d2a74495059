"""Models that run for a while, and are then as they were."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.eval_mode import as_it_was, eval_mode

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


class Lively(nn.Module):
    """Counts its passes, keeps activations, draws random numbers: in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.head = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(8))
        self.calls, self.kept = 0, list[Tensor]()

    def forward(self, value: Tensor) -> Tensor:
        self.calls += 1
        self.passes += 1
        self.mean = self.mean + value.mean(0)
        hidden = self.norm(self.fc(value))
        self.kept.append(hidden)
        self.last = hidden
        return self.head(functional.dropout(hidden, 0.1, training=True))


def by_compress(model: nn.Module) -> None:
    vq.compress(model, vq.KM(k=4), [X, X])


def by_finetune(model: nn.Module) -> None:
    vq.finetune(vq.compress(model, vq.KM(k=4)), [X], teacher=model)


def by_prune(model: nn.Module) -> None:
    vq.prune(model, [X] * 3, 0.5)


def by_compensate(model: nn.Module) -> None:
    vq.compensate(vq.compress(model, {"fc": vq.KM(k=2)}), model, [X])


@pytest.mark.parametrize("way", [by_compress, by_finetune, by_prune, by_compensate])
@pytest.mark.parametrize("training", [True, False])
def test_the_float_model_is_as_it_was(way: Any, training: bool) -> None:
    model = Lively().train(training)
    model.norm.eval()
    model.head.bias.requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    way(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert (model.calls, model.kept, hasattr(model, "last")) == (0, [], False)
    assert [m.training for m in (model, model.fc, model.norm)] == [training, training, False]
    assert [p.requires_grad for p in model.parameters()] == [True] * 5 + [False]
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_a_pass_that_fails_leaves_it_as_it_was() -> None:
    model = Lively().train()

    def fail() -> None:
        with as_it_was(model):
            model(X)
            model(torch.ones(2, 3))

    with pytest.raises(RuntimeError):
        fail()
    assert (model.calls, int(model.passes), model.training) == (0, 0, True)


def test_blocks_that_overlap_give_the_modes_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with eval_mode(model):
            entered.set()
            leave.wait(10)
        assert not model.training

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(10)
    with eval_mode(model):
        leave.set()
        thread.join()
        assert not any(module.training for module in model.modules())
    assert all(module.training for module in model.modules())


def test_calls_that_overlap_on_one_model() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8)).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = vq.compress(model, vq.KM(k=4), [X] * 3)
    fast = torch.backends.mha.get_fastpath_enabled()
    results: list[nn.Module] = []
    threads = [
        threading.Thread(target=lambda: results.append(vq.compress(model, vq.KM(k=4), [X] * 3)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 6
    for small in results:
        assert all(module.training for module in small.modules())
        for key, value in small.state_dict().items():
            assert torch.equal(value, wanted.state_dict()[key])
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert torch.backends.mha.get_fastpath_enabled() == fast


def _ends_in_training(model: nn.Module) -> float:
    """As many functions that evaluate a model in the middle of its training."""
    model.eval()
    model(X)
    model.train()
    return 1.0


def _by_stop(model: nn.Module, function: Any) -> nn.Module:
    small = vq.compress(model, vq.KM(k=4))

    def stop(each: nn.Module) -> bool:
        function(each)
        return True

    return vq.finetune(small, [X], teacher=model, stop=stop)


def _by_evaluate(model: nn.Module, function: Any) -> nn.Module:
    budget = vq.LossBudget(absolute=0.5)
    return vq.learn(model, [X], teacher=model, budget=budget, evaluate=function, epochs=1)


@pytest.mark.filterwarnings("ignore:no gradient reaches")
@pytest.mark.parametrize(
    "way",
    [
        lambda model, function: vq.compress(model, vq.KM(k=4), function),
        lambda model, function: vq.compress(model, "auto", function),
        lambda model, function: vq.factorize(model, vq.SVD(rate=2), function),
        _by_stop,
        _by_evaluate,
    ],
    ids=["compress", "preset", "factorize", "stop", "evaluate"],
)
def test_functions_that_end_in_training_mode_leave_the_modes(way: Any) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    small = way(model, _ends_in_training)
    assert [module.training for module in model.modules()] == modes
    assert not small[1].training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("schemes", [vq.KM(k=4), "auto"], ids=str)
def test_a_function_that_runs_the_model_leaves_nothing_in_it(schemes: Any) -> None:
    model = Lively().eval()
    vq.compress(model, schemes, lambda each: each(X))
    assert model.calls == 0
    assert int(model.passes) == 0
    assert model.kept == []


def test_layers_that_a_pass_has_made_are_gone_after_it() -> None:
    class Late(nn.Module):
        """Makes its head when it knows the size, as lazy layers do."""

        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, value: Tensor) -> Tensor:
            if not hasattr(self, "head"):
                self.head = nn.Linear(8, 4)
                self.gain = nn.Parameter(torch.ones(4))
            output: Tensor = self.head(self.fc(value)) * self.gain
            return output

    model = Late()
    small = vq.compress(model, vq.KM(k=4), [X])
    for each in (model, small):
        assert list(each._modules) == ["fc"]
        assert not each._parameters
