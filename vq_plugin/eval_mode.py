"""Models that run in eval mode for a while."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn


@dataclass
class _Use:
    """Calls that have a model in eval mode now, and the modules that were training before."""

    training: list[nn.Module]
    calls: int = 0


_uses: WeakKeyDictionary[nn.Module, _Use] = WeakKeyDictionary()
_turns: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_lock = threading.Lock()


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside the block, and as it was after it.

    Of blocks that overlap on several threads the last gives the modes back.
    """
    with _lock:
        use = _uses.setdefault(model, _Use([m for m in model.modules() if m.training]))
        use.calls += 1
        # Not model.eval(): the graph modules of torch.export refuse it.
        for module in use.training:
            module.training = False
    try:
        yield
    finally:
        with _lock:
            use.calls -= 1
            if not use.calls:
                del _uses[model]
                for module in use.training:
                    module.training = True


@contextmanager
def lent(model: nn.Module) -> Iterator[None]:
    """As :func:`eval_mode`, for functions of the user's: many end with ``model.train()``."""
    with eval_mode(model):
        try:
            yield
        finally:
            for module in model.modules():
                module.training = False


def paused(model: nn.Module) -> list[nn.Module]:
    """The modules that :func:`eval_mode` has in eval mode now, and that are training else."""
    with _lock:
        use = _uses.get(model)
        return [] if use is None else use.training


@contextmanager
def alone(model: nn.Module) -> Iterator[None]:
    """One thread at a time is inside, for each model."""
    with _lock:
        turn = _turns.setdefault(model, threading.RLock())
    with turn:
        yield


@dataclass
class _State:
    """What a module holds beside its parameters, before it runs."""

    module: nn.Module
    attributes: dict[str, Any]
    lists: list[tuple[list[Any], list[Any]]]
    parts: list[tuple[dict[str, Any], dict[str, Any]]]
    buffers: dict[str, Tensor | None] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, module: nn.Module) -> _State:
        attributes = {name: value for name, value in vars(module).items() if name != "training"}
        lists = [(each, list(each)) for each in attributes.values() if isinstance(each, list)]
        values = {name: b.clone() for name, b in module._buffers.items() if b is not None}
        parts = [(each, dict(each)) for each in (module._modules, module._parameters)]
        return cls(module, attributes, lists, parts, dict(module._buffers), values)

    def restore(self) -> None:
        held = vars(self.module)
        for name in held.keys() - self.attributes.keys() - {"training"}:
            del held[name]
        held.update(self.attributes)
        for each, items in self.lists:
            each[:] = items
        for own, before in self.parts:
            for name in own.keys() - before.keys():
                del own[name]
        self.module._buffers = self.buffers
        for name, value in self.values.items():
            buffer = self.buffers[name]
            if buffer is not None and not buffer.is_meta and not torch.equal(buffer, value):
                buffer.copy_(value)


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """As :func:`eval_mode`; whatever the passes inside leave in the model is gone after it, too.

    Buffers, attributes and lists of activations of its modules, and the random state of torch.
    """
    states = [_State.of(module) for module in model.modules()]
    devices = {p.device.index for p in model.parameters() if p.is_cuda}
    try:
        with torch.random.fork_rng(devices=sorted(devices)), lent(model):
            yield
    finally:
        with torch.no_grad():
            for state in states:
                state.restore()
