"""Training of what compression leaves free: codebooks, biases and norms."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.hooks import RemovableHandle
from tqdm import tqdm

from vq_plugin.eval_mode import eval_mode
from vq_plugin.nn import CodebookLayer
from vq_plugin.schemes import KM
from vq_plugin.seeded import seeded

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
)
_STATE = "finetune"


def finetune(
    model: nn.Module,
    loader: Iterable[object],
    *,
    teacher: nn.Module | None = None,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    epochs: int = 1,
    lr: float = 0.03,
    seed: int = 0,
    stop: Callable[[nn.Module], bool] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Trains codebooks, row scales, biases and norms of a compressed model; codes stay.

    Centers are shared by many weights, so that their gradient is the sum of those of the weights
    (Han et al. 2015, arXiv 1510.00149, section 3.3). By default the model learns what the float
    model says (Hinton et al. 2015, arXiv 1503.02531), for which no labels are needed. Zeros of
    ``KM(keep_zeros=True)`` stay zeros. Adam, whose learning rate falls to zero along a cosine.
    Weights that were not compressed, and parameters that need no gradient, stay as they are.

    The same seed, loader and number of threads give the same bytes, also when a run is killed and
    resumed. The caller's random state is left as it was.

    Args:
        model: From :func:`vq_plugin.compress` or a host; trained in place, its modules in training
            mode where they are now.
        loader: Batches: inputs alone, or pairs of inputs and targets. Read once each epoch; what it
            draws from torch's generator is seeded.
        teacher: The float model; run in eval mode without gradients, then left as it was.
        loss: Of the model's output and the teacher's, or, without a teacher, the target. By
            default, with a teacher: the cross-entropy between the softmax of both along the last
            dimension; use ``torch.nn.functional.mse_loss`` where outputs are no logits.
        epochs: Passes over ``loader``.
        lr: Learning rate at the start. Codebooks and scales get it times the root mean square of
            their values, as weights are small; biases and norms get a tenth of it.
        seed: Of dropout and of a loader that shuffles.
        stop: Called with the model in eval mode after every epoch; ``True`` ends the training. For
            a budget: ``lambda small: budget.holds(baseline, evaluate(small))``.
        checkpoint: File that holds the state after every epoch, in safetensors. If it exists
            already, its run goes on; it is removed at the end.

    Returns:
        ``model``.

    Raises:
        ValueError: If nothing in the model trains, there is neither teacher nor loss, the loader is
            empty, a batch has another form, the loss becomes NaN or infinite, or the checkpoint is
            of another model or run.

    Example:
        >>> import vq_plugin as vq
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
        >>> small = vq.compress(model, vq.PQ(k=4, dim=4))
        >>> batches = [torch.randn(64, 8) for _ in range(20)]
        >>> def error():
        ...     return functional.mse_loss(small(batches[0]), model(batches[0])).item()
        >>> before = error()
        >>> small = vq.finetune(small, batches, teacher=model, epochs=2)
        >>> error() < before
        True
    """
    if teacher is None and loss is None:
        raise ValueError("give teacher=, the float model, or loss= for the targets of the loader")
    if epochs < 0:
        raise ValueError(f"epochs must not be negative, got {epochs}")
    tables, rest = _trained(model)
    groups = [{"params": [p], "lr": lr * _size(p)} for p in tables]
    groups += [{"params": rest, "lr": lr / 10}] * bool(rest)
    optimizer = Adam(groups)
    run = _Run(model, optimizer, {"epochs": epochs, "lr": lr, "seed": seed})
    done = run.load(Path(checkpoint)) if checkpoint is not None else 0
    compare = loss or _soft_cross_entropy
    with _zeros_kept(model), eval_mode(teacher) if teacher is not None else nullcontext():
        for epoch in range(done, epochs):
            with seeded(seed + epoch):
                _epoch(model, loader, teacher, compare, optimizer, epoch, epochs)
            if checkpoint is not None:
                run.save(Path(checkpoint), epoch + 1)
            if stop is not None:
                with eval_mode(model):
                    if stop(model):
                        break
    if checkpoint is not None:
        Path(checkpoint).unlink(missing_ok=True)
    return model


def _trained(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Codebooks and row scales; biases and norms."""
    tables: dict[int, nn.Parameter] = {}
    rest: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if isinstance(module, CodebookLayer) and name in ("codebooks", "scale"):
                tables[id(parameter)] = parameter
            elif name == "bias" or isinstance(module, _NORMS):
                rest[id(parameter)] = parameter
    if not tables:
        raise ValueError(
            "no codebooks train: compress the model first, or unfreeze it with requires_grad_(True)"
        )
    return list(tables.values()), list(rest.values())


def _size(parameter: Tensor) -> float:
    return max(float(parameter.detach().double().square().mean().sqrt()), 1e-8)


def _epoch(
    model: nn.Module,
    loader: Iterable[object],
    teacher: nn.Module | None,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: Adam,
    epoch: int,
    epochs: int,
) -> None:
    total = len(loader) if isinstance(loader, Sized) else None
    # Without a length the rate falls from epoch to epoch.
    schedule = LambdaLR(
        optimizer,
        lambda step: _cosine((epoch + (step / total if total else 0.0)) / epochs),
    )
    device = next(model.parameters()).device
    steps = 0
    title = f"finetune {epoch + 1}/{epochs}"
    with tqdm(loader, desc=title, total=total, unit="batch", leave=False, disable=None) as bar:
        for batch in bar:
            inputs, target = _pair(batch)
            inputs = inputs.to(device)
            if teacher is not None:
                with torch.no_grad():
                    target = teacher(inputs)
            elif target is None:
                raise ValueError("without a teacher the loader has to give (inputs, targets)")
            found = loss(model(inputs), target.to(device))
            if not bool(found.isfinite()):
                raise ValueError(
                    f"the loss is {found.item()} at batch {steps + 1} of epoch {epoch + 1}: lower "
                    f"lr={optimizer.defaults['lr']}, or look for NaN in the inputs"
                )
            optimizer.zero_grad()
            found.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            steps += 1
            bar.set_postfix(loss=f"{found.item():.4g}", refresh=False)
    if steps == 0:
        raise ValueError("the loader gave no batches" + " a second time" * (epoch > 0))
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"]


def _cosine(part: float) -> float:
    return float((1 + torch.cos(torch.tensor(part * torch.pi, dtype=torch.float64))) / 2)


def _pair(batch: object) -> tuple[Tensor, Tensor | None]:
    match batch:
        case Tensor():
            return batch, None
        case (Tensor() as inputs, Tensor() as target):
            return inputs, target
    raise ValueError(
        f"a batch is a tensor of inputs or a pair (inputs, targets) of tensors, got "
        f"{type(batch).__name__}"
    )


def _soft_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    likely = functional.log_softmax(output, -1)
    return -(functional.softmax(target, -1) * likely).sum(-1).mean()


@contextmanager
def _zeros_kept(model: nn.Module) -> Iterator[None]:
    """Centers that are exactly zero get no gradient, hence no step of Adam."""
    handles: list[RemovableHandle] = []
    for module in model.modules():
        if not (isinstance(module, CodebookLayer) and isinstance(module.scheme, KM)):
            continue
        if module.scheme.keep_zeros and module.codebooks.requires_grad:
            zeros = module.codebooks.detach() == 0
            handles.append(module.codebooks.register_hook(_without(zeros)))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _without(zeros: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda grad: grad.masked_fill(zeros, 0)


class _Run:
    """What a killed run needs to go on: parameters, buffers and Adam's moments."""

    def __init__(self, model: nn.Module, optimizer: Adam, settings: dict[str, float]) -> None:
        self._model, self._optimizer, self._settings = model, optimizer, settings

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": t for name, t in self._model.state_dict().items()}
        for i, state in self._optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{name}": value for name, value in state.items()}
        return tensors

    def save(self, path: Path, epochs_done: int) -> None:
        tensors = {
            name: t.detach().cpu().contiguous().clone() for name, t in self._tensors().items()
        }
        text = json.dumps({"epochs_done": epochs_done, "settings": self._settings}, sort_keys=True)
        fresh = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:
            fresh.write_bytes(to_safetensors(tensors, {_STATE: text}))
            os.replace(fresh, path)
        finally:
            fresh.unlink(missing_ok=True)

    def load(self, path: Path) -> int:
        """Takes the state over; returns how many epochs are done."""
        if not path.exists():
            return 0
        try:
            with safe_open(path, "pt") as file:
                header = json.loads(file.metadata()[_STATE])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no checkpoint of finetune: {error}") from error
        if header["settings"] != self._settings:
            raise ValueError(
                f"{path} is of a run with {header['settings']}, this one has {self._settings}; "
                "delete it to start again"
            )
        model = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        codes = {name for name in model if name.endswith("codes")}
        own = self._model.state_dict()
        if set(own) != set(model) or any(not torch.equal(own[n].cpu(), model[n]) for n in codes):
            raise ValueError(f"{path} is of another model; delete it to start again")
        self._model.load_state_dict(model)
        state = self._optimizer.state_dict()
        for name, tensor in tensors.items():
            if name.startswith("adam."):
                _, index, key = name.split(".")
                state["state"].setdefault(int(index), {})[key] = tensor
        self._optimizer.load_state_dict(state)
        return int(header["epochs_done"])
