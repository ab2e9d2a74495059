"""Entropy-penalised training: accuracy against bits, and codes that find their own places."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Adam

from vq_plugin.arguments import check_at_least, check_whole
from vq_plugin.checkpoint import Rest, check_rest, file_bytes, is_numbers
from vq_plugin.eval_mode import lent
from vq_plugin.factorize.layers import whole_kernels
from vq_plugin.replace import assemble
from vq_plugin.seeded import seeded
from vq_plugin.select import Pattern, Schemes, check_model
from vq_plugin.sizes import codes_nbytes, float_nbytes
from vq_plugin.slot_fit import check_slot
from vq_plugin.training.chosen import chosen_weights
from vq_plugin.training.learner import Learner, Target
from vq_plugin.training.loop import AfterEpoch, Loss, Training, run_batch
from vq_plugin.training.norms import reestimate_norms
from vq_plugin.training.precision import Float32, float32_copy, is_half, restore_dtypes
from vq_plugin.training.price import first_price, next_price
from vq_plugin.training.settings import check_settings
from vq_plugin.training.vectors import chosen_vectors

_TRAININGS = 3
# Batches that norms learn their statistics from at the end.
_NORM_BATCHES = 100


@runtime_checkable
class Budget(Protocol):
    """What :class:`vq_plugin.LossBudget` says of a loss."""

    @property
    def confidence(self) -> float | None:
        """How sure it wants to be."""

    @property
    def limit(self) -> float:
        """The most that may be lost."""

    def loss(self, baseline: float, score: float) -> float:
        """What is lost, in the unit of the limit."""

    def holds(self, baseline: float, score: float) -> bool:
        """Whether that is within the limit."""


def learn(
    model: nn.Module,
    loader: Iterable[object],
    *,
    rate_weight: float | None = None,
    target_rate: float | None = None,
    target_bytes: int | None = None,
    budget: Budget | None = None,
    evaluate: Callable[[nn.Module], float | Tensor] | None = None,
    teacher: nn.Module | None = None,
    loss: Loss | None = None,
    layers: Sequence[Pattern] = ("*",),
    schemes: Schemes | None = None,
    epochs: int = 8,
    lr: float = 2e-3,
    seed: int = 0,
    rest: Rest | None = "float16",
    checkpoint: str | os.PathLike[str] | None = None,
    callback: AfterEpoch | None = None,
) -> nn.Module:
    """Trains a model whose loss counts the bits of its codes, and gives it compressed.

    Every weight is a whole number of steps, of a length that its layer learns, or, where
    ``schemes`` say ``PQ``, every sub-vector is a center of a codebook, which learns. What is
    lowered is the loss and ``rate_weight`` times the bits of all codes, each at its layer's
    entropy, which is what :func:`vq_plugin.save` spends on them (entropy-penalised, Oktay et al.
    2019, arXiv 1906.06624; entropy-constrained, Chou et al. 1989). The task's gradient passes
    straight through the rounding. Most weights end as zeros, none of them chosen beforehand. With
    ``rest="int8"`` biases and scales of norms pay alike. The price of a bit rises over the first
    half of the training; in the last part codes stay and their centers learn.

    Give one of ``rate_weight``, ``target_rate``, ``target_bytes`` and ``budget``. The same seed,
    loader and number of threads give the same bytes.

    Args:
        model: Float model; it is not changed. Modules train in the mode that they are in now: batch
            norms learn new statistics after ``model.train()``, and once more from the final weights
            at the end. One in half precision is trained in a float32 copy.
        loader: Batches, as for :func:`vq_plugin.finetune`; read once each epoch. Augmentation is
            its affair.
        rate_weight: What one bit costs, in units of the loss: about 0.1 to 5 over the number of
            weights.
        target_rate: The float32 ``state_dict`` over the file, at least 1. The price of a bit
            follows what is still too much, within one training.
        target_bytes: As ``target_rate``, for the bytes of the file.
        budget: A :class:`vq_plugin.LossBudget` without confidence. Three trainings, each at a price
            of a bit that those before it suggest; of those that hold the smallest.
        evaluate: With ``budget``: the metric of a model, or one result for each sample, on data
            that no training sees. What is chosen by it looks a little better there than elsewhere.
        teacher: A float model to learn from, run in eval mode; ``model`` itself if there is neither
            this nor ``loss``. A larger one of the same task teaches a small model better.
        loss: Of the model's output and the teacher's, or, without a teacher, the target; needed
            where outputs are not one tensor.
        layers: Which layers are coded: patterns as in :func:`vq_plugin.compress`. The others train,
            too.
        schemes: Which of these layers learn vectors: one :class:`vq_plugin.PQ` for all, or patterns
            to them, as in :func:`vq_plugin.compress`. One of its centers is zero, and those that no
            sub-vector has in the end are dropped. ``None``, and layers that no pattern matches:
            single numbers, ``KM(keep_zeros=True)``, with as many centers as training leaves.
        epochs: Passes over ``loader`` of each training, at least 1.
        lr: Learning rate at the start.
        seed: Of dropout and of a loader that shuffles.
        rest: What the file is to be saved with; targets count it. With ``"int8"`` parameters of one
            dimension are whole numbers of steps that they learn, and many become zero.
        checkpoint: File that holds the state after every epoch, in safetensors. If it exists
            already, its run goes on; it is removed at the end. Not with ``budget``.
        callback: Called as every epoch ends, with its number, from 1, and the mean loss of its
            batches, bits apart. With ``budget`` numbers begin anew in each training. What it raises
            ends the training; a later call goes on from the ``checkpoint``.

    Returns:
        A new compressed model, in the training mode of ``model``.

    Raises:
        TypeError: If the loader runs dry after one pass and several are wanted, or an argument is
            of the wrong type.
        ValueError: If not exactly one of the four is given, or it is out of range, or too few bytes
            for all that is no code; ``budget`` comes without ``evaluate`` or with a confidence;
            a chosen layer has NaN, keeps its weight in parts or frozen, or gets a scheme that does
            not learn; or :func:`vq_plugin.finetune` would raise it.

    Warns:
        UserWarning: If no training is within the budget (the most accurate one is returned), or the
            file is larger than its target.

    Example:
        >>> import vq_plugin as vq
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
        >>> batches = [torch.randn(64, 16) for _ in range(20)]
        >>> small = vq.learn(model, batches, rate_weight=1e-3, epochs=4)
        >>> bool((small[0].weight == 0).double().mean() > 0.5)
        True
    """
    check_model(model)
    given = {
        "rate_weight": rate_weight, "target_rate": target_rate, "target_bytes": target_bytes,
        "budget": budget,
    }  # fmt: skip
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise ValueError(
            f"give exactly one of {', '.join(f'{name}=' for name in given)}, got "
            f"{' and '.join(names) or 'none'}"
        )
    if (budget is None) != (evaluate is None):
        raise ValueError(
            "budget= needs evaluate=, the metric of a model on data that training does not see"
            if evaluate is None
            else "evaluate= is what budget= goes by, and there is no budget"
        )
    if budget is not None and not isinstance(budget, Budget):
        raise TypeError(
            f"budget must be one, such as vq.LossBudget(relative=0.01), got {type(budget).__name__}"
        )
    _check_functions(evaluate=evaluate, callback=callback)
    if budget is not None and checkpoint is not None:
        raise ValueError("checkpoint= is of one training, and budget= makes several")
    if budget is not None and budget.confidence is not None:
        raise ValueError(
            "learn chooses by the score itself: give a budget without confidence, and confirm the "
            "result on data that evaluate= does not use"
        )
    check_settings(epochs=epochs, lr=lr, seed=seed, teacher=teacher, loss=loss)
    check_rest(rest)
    if epochs < 1:
        raise ValueError(f"epochs must be at least 1, got {epochs}")
    if isinstance(loader, Iterator) and (epochs > 1 or budget is not None):
        raise TypeError(
            "the loader is read once each epoch: give a list of batches or a DataLoader, not a "
            f"{type(loader).__name__}"
        )
    run = _Run(model, loader, teacher, loss, layers, schemes, epochs, lr, seed, rest, callback)
    if budget is not None:
        assert evaluate is not None
        return _within(budget, evaluate, run)
    if rate_weight is not None:
        check_at_least("rate_weight", rate_weight, 0)
        return run.train(rate_weight, checkpoint=checkpoint)
    whole = float_nbytes(v for v in model.state_dict().values() if isinstance(v, Tensor))
    if target_bytes is None:
        assert target_rate is not None
        check_at_least("target_rate", target_rate, 1)
        target_bytes = int(whole / target_rate)
        if not target_bytes:
            raise ValueError(f"target_rate={target_rate} leaves no byte of {whole}")
    check_whole("target_bytes", target_bytes)
    check_at_least("target_bytes", target_bytes, 1)
    return run.to_size(target_bytes, whole, checkpoint)


def _check_functions(**functions: object) -> None:
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function, got {type(function).__name__}")


@dataclass(frozen=True)
class _Run:
    """What all trainings of one call have in common: the arguments of :func:`learn`."""

    model: nn.Module
    loader: Iterable[object]
    teacher: nn.Module | None
    loss: Loss | None
    layers: Sequence[Pattern]
    schemes: Schemes | None
    epochs: int
    lr: float
    seed: int
    rest: Rest | None
    callback: AfterEpoch | None

    @torch.inference_mode(False)
    def learner(self, rate_weight: float, target: Target | None = None) -> Learner:
        """A copy of the model that is about to train; errors name what cannot."""
        copy = float32_copy(self.model)
        weights = chosen_weights(copy, self.layers)
        for slot in weights:
            check_slot(slot)
        if not weights:
            raise ValueError("the model has no weight that can be coded")
        vectors = chosen_vectors(copy, weights, self.schemes)
        ours = {id(weight) for weight in weights.values()}
        biases = [each for each in self._biases(copy) if id(each) not in ours]
        return Learner(
            copy, weights, rate_weight, target, vectors=vectors, biases=biases, seed=self.seed
        )

    def _biases(self, copy: nn.Module) -> list[nn.Parameter]:
        """Parameters of a copy that train, and that a file of the model keeps as whole numbers."""
        names = {
            name
            for name, own in self.model.named_parameters()
            if is_numbers(own, self.rest)
            and own.requires_grad
            and own.numel()
            and own.detach().isfinite().all()
        }
        return [each for name, each in copy.named_parameters() if name in names]

    @torch.inference_mode(False)
    def train(
        self,
        rate_weight: float,
        target: Target | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
    ) -> nn.Module:
        """One training."""
        learner = self.learner(rate_weight, target)
        optimizer = Adam(learner.groups(self.lr))
        optimizer.register_step_pre_hook(learner.before_update)
        teacher = self.teacher
        if teacher is None and self.loss is None:
            teacher = self.model
        if teacher is not None and is_half(teacher):
            teacher = Float32(float32_copy(teacher))
        settings: dict[str, float | str] = {
            "rate_weight": rate_weight, "target_bytes": target.nbytes if target else 0,
            "epochs": self.epochs, "lr": self.lr, "seed": self.seed,
            "rest": str(self.rest), **learner.vectors,
        }  # fmt: skip
        training = Training("learn", learner, optimizer, teacher, self.loss, self.epochs, settings)
        with whole_kernels(learner.model):
            training.run(
                self.loader, seed=self.seed, checkpoint=checkpoint,
                before_step=learner.before_step, after_epoch=self.callback,
            )  # fmt: skip
        learner.fit_in(0.0)
        return self._finished(learner)

    def _finished(self, learner: Learner) -> nn.Module:
        restore_dtypes(learner.model, self.model)
        small = assemble(learner.model, learner.coded())
        norms = [m for m in small.modules() if isinstance(m, _BatchNorm) and m.training]
        if any(norm.running_mean is not None for norm in norms):
            device = next(small.parameters()).device

            def passes(each: nn.Module) -> None:
                for batch in islice(self.loader, _NORM_BATCHES):
                    run_batch(each, batch, device)

            with seeded(self.seed + self.epochs):
                reestimate_norms(small, passes)
        return small

    def to_size(
        self, nbytes: int, whole: int, checkpoint: str | os.PathLike[str] | None
    ) -> nn.Module:
        """One training that aims at the bytes of a file; ``whole`` are those of the float model."""
        learner = self.learner(0.0)
        first = assemble(learner.model, learner.coded())
        with torch.no_grad():
            # Biases that pay for their bits may all become zeros.
            for bias in self._biases(first):
                bias.zero_()
        others = len(file_bytes(first, self.rest)) - codes_nbytes(first)
        if others >= nbytes:
            raise ValueError(
                f"{nbytes} bytes are too few: what is no code (biases, norms, layers left in "
                f"float, tables, the header) takes {others}, codes apart"
            )

        def file_size(each: nn.Module) -> int:
            return len(file_bytes(each, self.rest))

        target = Target(nbytes, file_size)
        price = first_price(learner.weight_count, room=8 * (nbytes - others))
        small = self.train(price, target, checkpoint)
        found = file_size(small)
        if found > nbytes:
            warnings.warn(
                f"the file takes {found} bytes, more than {nbytes} ({whole / found:.1f} times "
                "smaller than float32): train for more epochs, or aim lower",
                stacklevel=3,
            )
        return small


def _within(
    budget: Budget, evaluate: Callable[[nn.Module], float | Tensor], run: _Run
) -> nn.Module:
    """The smallest of three trainings that holds."""

    def score(model: nn.Module) -> float:
        with lent(model):
            result = evaluate(model)
        if result is None:
            raise TypeError("evaluate= returned NoneType: it must return the metric")
        value = torch.as_tensor(result).double().mean()
        if not bool(value.isfinite()):
            raise ValueError(f"evaluate= returned {value.item()}")
        return float(value)

    baseline = score(run.model)
    weights = run.learner(0.0).weight_count
    lost: dict[float, float] = {}
    best: tuple[bool, float, nn.Module] | None = None
    for _ in range(_TRAININGS):
        price = next_price(lost, budget.limit) if lost else first_price(weights)
        small = run.train(price)
        now = score(small)
        lost[price] = budget.loss(baseline, now)
        holds = budget.holds(baseline, now)
        # Those that hold by their bytes, else by what they lose.
        cost = len(file_bytes(small, run.rest)) if holds else lost[price]
        if best is None or (not holds, cost) < best[:2]:
            best = not holds, cost, small
    assert best is not None
    failed, cost, small = best
    if failed:
        warnings.warn(
            f"no training is within the budget of {budget}: the best loses {cost:.4g}; train for "
            "more epochs, or leave more layers in float",
            stacklevel=3,
        )
    return small
