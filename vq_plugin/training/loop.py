"""The training loop of `finetune`, `prune`, `learn`: a teacher or targets, seeds, checkpoints."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence
from torch.optim import Adam
from torch.utils._pytree import tree_map_only

from vq_plugin.atomic import check_target, remove, write_atomically
from vq_plugin.calibration import check_batches, unfit_batch
from vq_plugin.eval_mode import as_it_was, lent
from vq_plugin.progress import progress
from vq_plugin.seeded import seeded

# Of what a model gives and what it is to give, tensors or other objects.
Loss = Callable[[Any, Any], Tensor]
Stop = Callable[[nn.Module], bool]
#: Called with the number of an epoch that has ended, from 1, and the mean loss of its batches.
AfterEpoch = Callable[[int, float], object]


@dataclass
class Training:
    """Adam, whose learning rate falls to zero along a cosine (Loshchilov & Hutter 2017).

    Attributes:
        title: Name of the caller, for the progress bar, messages and the checkpoint.
        model: Trained in place.
        optimizer: Of the parameters that train.
        teacher: The float model; ``None`` where the loader gives targets.
        loss: Of the model's output and the teacher's, or the target; ``None`` for
            :func:`soft_cross_entropy` with a teacher.
        epochs: Passes over the loader.
        settings: What tells the runs of a checkpoint apart.
    """

    title: str
    model: nn.Module
    optimizer: Adam
    teacher: nn.Module | None
    loss: Loss | None
    epochs: int
    settings: Mapping[str, float | str]

    def __post_init__(self) -> None:
        if self.loss is None and self.teacher is None:
            raise ValueError(
                "give teacher=, the float model, or loss= for the targets of the loader"
            )
        if self.epochs < 0:
            raise ValueError(f"epochs must not be negative, got {self.epochs}")
        if any(p.dtype is torch.float16 for g in self.optimizer.param_groups for p in g["params"]):
            raise ValueError(
                "the model is float16, whose range the squares of Adam leave: train it in float32, "
                "with model.float() and float32 inputs and teacher, and make it .half() again"
            )

    def run(
        self,
        loader: Iterable[object],
        *,
        seed: int,
        stop: Stop | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        before_step: Callable[[float], None] = lambda _: None,
        after_step: Callable[[], None] = lambda: None,
        after_epoch: AfterEpoch | None = None,
    ) -> None:
        """Trains epoch by epoch, from where the checkpoint is.

        Arguments and errors are those of :func:`vq_plugin.finetune`; ``before_step`` is called with
        the share of the training that is done, ``after_epoch`` with the number of the epoch, from
        1, and its mean loss, when the checkpoint is written.
        """
        check_batches(loader, "loader")
        path = None if checkpoint is None else Path(checkpoint)
        if path is not None:
            check_target(path)
        done = 0 if path is None else self._load(path)
        with as_it_was(self.teacher) if self.teacher is not None else nullcontext():
            for epoch in range(done, self.epochs):
                # The caller may have gradients off.
                with seeded(seed + epoch), torch.inference_mode(False), torch.enable_grad():
                    loss = self._epoch(loader, epoch, before_step, after_step)
                if path is not None:
                    self._save(path, epoch + 1)
                if after_epoch is not None:
                    after_epoch(epoch + 1, loss)
                if stop is not None:
                    with lent(self.model):
                        if stop(self.model):
                            break
        if path is not None:
            remove(path)

    def _epoch(
        self,
        loader: Iterable[object],
        epoch: int,
        before_step: Callable[[float], None],
        after_step: Callable[[], None],
    ) -> float:
        """One pass; the mean loss of its batches."""
        total = len(loader) if isinstance(loader, Sized) else None
        device = next(self.model.parameters()).device
        steps, losses = 0, 0.0
        title = f"{self.title} {epoch + 1}/{self.epochs}"
        with progress(loader, desc=title, total=total, unit="batch", leave=False) as bar:
            for batch in bar:
                inputs, target = _pair(batch)
                if _is_empty(inputs):
                    continue
                # Without a length the rate falls from epoch to epoch.
                done = (epoch + (steps / total if total else 0.0)) / self.epochs
                self._set_rate((1 + math.cos(math.pi * done)) / 2)
                before_step(done)
                loss = self._loss(_to(inputs, device), _to(target, device))
                self._check(loss, f"batch {steps + 1} of epoch {epoch + 1}")
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                after_step()
                steps += 1
                value = loss.item()
                losses += value
                bar.set_postfix(loss=f"{value:.4g}", refresh=False)
        if steps == 0:
            raise ValueError("the loader gave no batches" + " a second time" * (epoch > 0))
        self._set_rate(1.0)
        return losses / steps

    def _check(self, loss: object, where: str) -> None:
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"loss= must return a tensor of one number, got {what} at {where}")
        if not bool(loss.isfinite()):
            raise ValueError(
                f"the loss is {loss.item()} at {where}: lower lr={self.settings['lr']}, or look "
                "for NaN in the inputs"
            )
        if not loss.requires_grad:
            raise ValueError(
                f"the loss has no gradient at {where}: the model's forward turns gradients off "
                "(torch.no_grad, inference_mode, detach, a checkpoint with use_reentrant=True), "
                "or loss= does"
            )

    def _set_rate(self, share: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = share * group.setdefault("initial_lr", group["lr"])

    def _loss(self, inputs: object, target: object) -> Tensor:
        if self.teacher is not None:
            with torch.no_grad():
                found = _run(self.teacher, inputs)
            # It may run in inference mode, whose tensors are no use on the way back.
            target = tree_map_only(Tensor, lambda each: _to(each, each.device), found)
        elif target is None:
            raise ValueError("without a teacher the loader has to give (inputs, targets)")
        output = _run(self.model, inputs)
        if self.loss is not None:
            if isinstance(target, Tensor) and isinstance(output, Tensor):
                target = target.to(output.device)
            return self.loss(output, target)
        if not isinstance(output, Tensor) or not isinstance(target, Tensor):
            raise ValueError(
                f"the model gives a {_shown(output)}, not one tensor: give loss=, a function of "
                "its output and of the teacher's, such as "
                "lambda ours, theirs: mse_loss(ours[0], theirs[0])"
            )
        return soft_cross_entropy(output, target.to(output.device))

    def _save(self, path: Path, epochs_done: int) -> None:
        """What a killed run needs to go on: parameters, buffers and Adam's moments."""
        tensors = {f"model.{name}": t for name, t in self.model.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{name}": value for name, value in state.items()}
        tensors = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        text = json.dumps(
            {"epochs_done": epochs_done, "settings": dict(self.settings)}, sort_keys=True
        )
        write_atomically(path, to_safetensors(tensors, {self.title: text}))

    def _load(self, path: Path) -> int:
        """Takes the state over; returns how many epochs are done."""
        if not path.exists():
            return 0
        try:
            with safe_open(path, "pt") as file:
                header = json.loads(file.metadata()[self.title])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no checkpoint of {self.title}: {error}") from error
        if header["settings"] != self.settings:
            raise ValueError(
                f"{path} is of a run with {header['settings']}, this one has {self.settings}; "
                "delete it to start again"
            )
        saved = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        now = self.model.state_dict()
        same = {n: t.shape for n, t in now.items()} == {n: t.shape for n, t in saved.items()}
        codes = {name for name in saved if name.endswith("codes")}
        if not same or any(not torch.equal(now[name].cpu(), saved[name]) for name in codes):
            raise ValueError(f"{path} is of another model; delete it to start again")
        self.model.load_state_dict(saved)
        state = self.optimizer.state_dict()
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".")
                state["state"].setdefault(int(index), {})[key] = tensor
        self.optimizer.load_state_dict(state)
        return int(header["epochs_done"])


def soft_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy between the softmax of both along the last dimension (Hinton et al. 2015).

    Args:
        output: Logits of the model, ``(..., classes)``.
        target: Logits of its teacher, of the same shape.

    Returns:
        The mean, a scalar.

    Example:
        >>> a, b = torch.tensor([[0.0, 0.0]]), torch.tensor([[9.0, -9.0]])
        >>> round(soft_cross_entropy(a, b).item(), 4) == round(math.log(2), 4)
        True
    """
    likely = functional.log_softmax(output, -1)
    return -(functional.softmax(target, -1) * likely).sum(-1).mean()


def run_batch(model: nn.Module, batch: object, device: torch.device) -> object:
    """What a model gives for the inputs of a batch of a loader."""
    return _run(model, _to(_pair(batch)[0], device))


def _pair(batch: object) -> tuple[object, object]:
    """Inputs and targets of a batch; ``None`` where it has no targets."""
    inputs, target = batch, None
    if _is_list(batch) and len(batch) in (1, 2):
        inputs, target = (*batch, None)[:2]
    if _is_list(inputs) or inputs is None:
        raise ValueError(
            "a batch is a tensor of inputs, or what else the model takes as one argument, a "
            "mapping of keyword arguments, or a pair (inputs, targets), got " + _shown(batch)
        )
    return inputs, target


def _is_list(value: object) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, list | tuple) and not isinstance(value, PackedSequence)


def _is_empty(inputs: object) -> bool:
    """Whether inputs are tensors without a sample."""
    parts = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    tensors = [part for part in parts if isinstance(part, Tensor)]
    return bool(tensors) and not any(tensor.numel() for tensor in tensors)


def _to(value: Any, device: torch.device) -> Any:
    match value:
        case PackedSequence():
            return value.to(device)  # type: ignore[arg-type]
        case Tensor():
            return (value.clone() if value.is_inference() else value).to(device)
        case Mapping():
            return {key: _to(each, device) for key, each in value.items()}
        case list():
            return [_to(each, device) for each in value]
        case tuple() if type(value) is tuple:
            return tuple(_to(each, device) for each in value)
    return value


def _run(model: nn.Module, inputs: object) -> object:
    if not isinstance(inputs, Mapping):
        try:
            return model(inputs)
        except (TypeError, AttributeError) as error:
            if remedy := unfit_batch(inputs):
                raise ValueError(f"the model does not take a batch: {error}; {remedy}") from error
            raise
    try:
        return model(**inputs)
    except TypeError as error:
        raise ValueError(
            f"the model does not take a batch as its keyword arguments: {error}; got "
            f"{_shown(inputs)}"
        ) from error


def _shown(value: object) -> str:
    """A value by its type and keys, or the types of its items."""
    name = type(value).__name__
    if isinstance(value, Mapping):
        return f"{name} of {', '.join(map(str, value))}"
    if isinstance(value, list | tuple):
        return f"{name} of {', '.join(type(each).__name__ for each in value) or 'nothing'}"
    return name
