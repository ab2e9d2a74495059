"""One search: what is evaluated, one setting after the other, until nothing is left to try."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

from torch import nn

from vq_plugin.checkpoint import round_rest
from vq_plugin.factorize.coded import assemble_factored
from vq_plugin.nn import coded_weights
from vq_plugin.replace import assemble
from vq_plugin.schemes import PRESETS
from vq_plugin.select import Form
from vq_plugin.sizes import account
from vq_plugin.summary import summary
from vq_plugin.ties import sharing
from vq_plugin.training.price import first_price, next_price
from vq_plugin.tuning.agreement import ALIKE, Agreement
from vq_plugin.tuning.allocation import Setting, frontier
from vq_plugin.tuning.candidates import Fits, Pair
from vq_plugin.tuning.confidence import Judge
from vq_plugin.tuning.deadline import Deadline
from vq_plugin.tuning.direction import Direction, DirectionError
from vq_plugin.tuning.identity import Identity, Tried
from vq_plugin.tuning.layers import Layer
from vq_plugin.tuning.metric import Metric, loss_interval, mismatch
from vq_plugin.tuning.probe import Probe
from vq_plugin.tuning.propose import Landscape, Outcome, Phase, Proposal, ahead, propose
from vq_plugin.tuning.recovery import Learning, Trainer, next_to_train
from vq_plugin.tuning.result import Trial
from vq_plugin.tuning.sight import Sight
from vq_plugin.tuning.trials import Evaluator
from vq_plugin.tuning.watch import Watch

# Parts of its baseline that a metric hardly gains by compression.
_MUCH_BETTER = 1 / 3


@dataclass
class Session:
    """One search.

    ``model`` is compressed, ``evaluator`` is that of the tuning split, ``max_trials`` are without
    training; ``watch`` is told of all. ``probe`` is of the metric, as are the ``direction``
    and ``sight`` that it shows; ``agreement`` is with the float model, where there is data for it.
    ``preset_harm`` is what a preset would allow, once that is known. ``landscape`` is what is known
    of the candidates that were asked for, and what is forecast of the others; ``cut`` says what a
    limit cut off; ``metrics`` has what could be evaluated, ``outcomes`` what the search knows of
    settings as they were fitted, ``trials`` all in order.
    """

    model: nn.Module
    identity: Identity
    judge: Judge
    evaluator: Evaluator
    probe: Probe
    max_trials: int
    deadline: Deadline
    watch: Watch
    trainer: Trainer | None = None
    agreement: Agreement | None = None
    preset_harm: float | None = None
    cut: str | None = None
    metrics: dict[Tried, Metric] = field(default_factory=dict)
    outcomes: dict[Setting, Outcome] = field(default_factory=dict)
    trials: dict[Tried, Trial] = field(default_factory=dict)
    asked: set[Pair] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.direction, self.sight = Direction(self.probe), Sight(self.probe)
        names, owners = [layer.name for layer in self.fits.layers], sharing(self.model)
        self.account = account(self.model, names, self.identity.rest)
        self.tied = {name: [slot.name for slot in owners[name]] for name in names}
        self._survey()

    @property
    def fits(self) -> Fits:
        """The candidates."""
        return self.identity.fits

    def _survey(self) -> None:
        layers = self.fits.candidates(self.asked)
        # The float model itself is no answer.
        settings = [s for s in frontier(layers) if any(self.fits.schemes(s).values())]
        self.landscape = Landscape(layers, settings, self.judge.budget.limit, self.preset_harm)

    def run(self) -> None:
        """Evaluates until nothing is left to try, or a limit is reached."""
        while self.cut is None and (proposal := self._next()) is not None:
            self._try(proposal)

    def _try(self, proposal: Proposal) -> None:
        setting, phase = proposal
        if not self._known(setting):
            self._evaluate(setting)
        self.outcomes[setting] = self._keep(Tried(setting), phase)

    def _next(self) -> Proposal | None:
        """The next setting, with its candidates fitted: what that shows may lead to another."""
        while (proposal := propose(self._open(), self.outcomes)) is not None:
            self.cut = self._limit_reached(self.deadline.passed)
            if self.cut:
                return None
            new = set(enumerate(proposal.setting)) - self.asked
            if not new:
                return proposal
            if not self.fits.fit([proposal.setting], self.deadline):
                self.cut = self._limit_reached(late=True)
                return None
            self.asked |= new
            self._survey()
        return None

    def _open(self) -> Landscape:
        """What is left of the landscape: steps from its edge do not lead back to it."""
        if any(trial.phase == "local" for trial in self.trials.values()):
            return replace(self.landscape, frontier=())
        return self.landscape

    def start(self) -> None:
        """Evaluates the gentlest setting; layers that there is no time for stay float if they may.

        What probably holds comes before what is small, and before all that takes time.
        """
        setting = self.fits.gentlest()
        self.fits.fit([setting], self.deadline)
        late = dict(self.fits.missing([setting]))
        for layer in late:
            schemes = self.fits.layers[layer].schemes
            late[layer] = schemes.index(None) if None in schemes else -1
        if late and (min(late.values()) < 0 or len(late) == len(setting)):
            self.cut = self._limit_reached(late=True)
            return
        setting = tuple(late.get(layer, choice) for layer, choice in enumerate(setting))
        self.asked.update(enumerate(setting))
        self._survey()
        self._try(Proposal(setting, "frontier"))

    def observe(self, layers: tuple[Layer, ...]) -> None:
        """Takes what is known of the layers by now, and begins where a preset would end."""
        self.fits.know(layers)
        self.asked |= self.fits.look(self.deadline)
        change = PRESETS["auto"].change
        self.preset_harm = change if self.agreement is None else self.agreement.harm_of(change)
        self._survey()
        for tried, trial in self.trials.items():
            harm = sum(each.harm for each in self.fits.measured(tried.setting))
            self.trials[tried] = replace(trial, harm=harm)

    def _evaluate(self, setting: Setting) -> None:
        wanted = [setting]
        count = self.evaluator.workers
        if count > 1 and (self.outcomes or not self.deadline.limited):
            # What will probably be asked next too, one for every worker.
            wanted += ahead(self._open(), self.outcomes, count, self._known)
            wanted = list(dict.fromkeys(wanted))[:count]
            self.fits.fit(wanted, self.deadline)
        new = [
            Tried(each)
            for each in wanted
            if not self.fits.missing([each]) and not self._known(each)
        ]
        self.evaluator.run({self.identity.key(tried): self.compressed(tried) for tried in new})

    def recover(self, trainer: Trainer) -> None:
        """Trains what may be smaller than all that holds, and evaluates it, one after the other."""
        most = trainer.recovery.max_trials
        if isinstance(trainer.recovery, Learning):
            self.watch.stage("learn models at prices of a bit", most)
            self._learn(most)
        else:
            self.watch.stage("train settings past the budget", most)
            self._train_settings(most)

    def _train_settings(self, most: int) -> None:
        held: dict[Setting, bool] = {}
        best = self._smallest()
        size = math.inf if best is None else self.landscape.nbytes(best)
        while (setting := next_to_train(self.landscape, size, held)) is not None:
            late = self.deadline.passed
            if not late and len(held) < most and not self.asked.issuperset(enumerate(setting)):
                late = not self.fits.fit([setting], self.deadline)
                if not late:
                    self.asked.update(enumerate(setting))
                    self._survey()
                    continue
            if late or len(held) >= most:
                limit = "timeout" if late else f"recovery's max_trials={most}"
                self._cut(f"{limit} reached after {len(held)} trained settings: others were left")
                return
            small = partial(self.compressed, Tried(setting))
            held[setting] = self._trained(Tried(setting, trained=True), small).held

    def _learn(self, most: int) -> None:
        """Asks for a price of a bit at which the budget is used up."""
        count = sum(layer.weight.numel() for layer in self.fits.layers if any(layer.schemes))
        lost: dict[float, float] = {}
        best = self._smallest()
        size = math.inf if best is None else self.nbytes(best)
        while len(lost) < most:
            if self.deadline.passed:
                self._cut(f"timeout reached after {len(lost)} learned models: others were left")
                return
            price = next_price(lost, self.judge.budget.limit) if lost else first_price(count)
            tried = Tried.at(price)
            outcome = self._trained(tried, partial(assemble, self.model, {}))
            lost[price] = outcome.level if math.isfinite(outcome.level) else math.inf
            if outcome.level > self.judge.budget.limit and self.trials[tried].nbytes >= size:
                # A lower price makes it larger still.
                return

    def _cut(self, limit: str) -> None:
        self.cut = "; ".join(filter(None, [self.cut, limit]))

    def _trained(self, tried: Tried, before: Callable[[], nn.Module]) -> Outcome:
        """Trains what ``before`` makes, and evaluates it."""
        key = self.identity.key(tried)
        if self.evaluator.known(key) is None:
            self.evaluator.run_after(partial(self._train, tried), key, before())
        return self._keep(tried, "recovery")

    def nbytes(self, setting: Setting) -> int:
        """Bytes of the whole model in a file, without its header."""
        weights = sum(each.nbytes for each in self.fits.measured(setting))
        return self.account.other_nbytes + weights

    def compressed(self, tried: Tried) -> nn.Module:
        """The model of a setting, or a learned one."""
        if tried.rate_weight is not None:
            return self._train(tried, assemble(self.model, {}))
        # The values of the file: what is evaluated is what is shipped.
        weights = self.identity.fits.chosen(tried.setting)
        small = round_rest(assemble_factored(self.model, weights), self.identity.rest)
        return self._train(tried, small) if tried.trained else small

    def _train(self, tried: Tried, small: nn.Module) -> nn.Module:
        assert self.trainer is not None
        trained = self.trainer(self.identity.key(tried), small, self.model, tried)
        return round_rest(trained, self.identity.rest)

    def _keep(self, tried: Tried, phase: Phase) -> Outcome:
        evaluation = self.evaluator.known(self.identity.key(tried))
        assert evaluation is not None
        metric, error = evaluation.metric, evaluation.error
        if metric is not None:
            error = mismatch(self.judge.baseline, metric, "evaluate")
            metric = None if error else metric
        outcome = self.judge.outcome(metric)
        budget, baseline = self.judge.budget, self.judge.baseline
        score, loss, interval = math.nan, math.nan, None
        if metric is not None:
            self.metrics[tried] = metric
            score, loss = metric.mean, budget.loss(baseline.mean, metric.mean)
            interval = loss_interval(budget, baseline, metric)
            if loss < -budget.limit:
                self._check_better(tried, loss)
        schemes, nbytes, harm = self._stored(tried)
        trial = Trial(
            schemes={
                other: scheme for name, scheme in schemes.items() for other in self.tied[name]
            },
            nbytes=nbytes,
            rate=self.account.float_nbytes / nbytes,
            harm=harm,
            score=score,
            loss=loss,
            interval=interval,
            held=outcome.held,
            phase=phase,
            seconds=evaluation.seconds,
            error=error,
            rate_weight=tried.rate_weight,
        )
        self.trials[tried] = trial
        self.watch.trial(trial, self.evaluator.resumed(self.identity.key(tried)))
        return outcome

    def _stored(self, tried: Tried) -> tuple[Mapping[str, Form | None], int, float]:
        """How the layers of a model are stored, the bytes of the model, its predicted harm."""
        setting = tried.setting
        if tried.rate_weight is None:
            harm = sum(each.harm for each in self.fits.measured(setting))
            return self.fits.schemes(setting), self.nbytes(setting), harm
        assert self.trainer is not None
        names = [layer.name for layer in self.fits.layers]
        if not self.trainer.has(self.identity.key(tried)):
            return dict.fromkeys(names), self.account.float_nbytes, math.nan
        small = self.compressed(tried)
        coded = coded_weights(small)
        schemes = {name: coded[name].scheme if name in coded else None for name in names}
        return schemes, summary(small, rest=self.identity.rest).model_file_nbytes, math.nan

    def _check_better(self, tried: Tried, loss: float) -> None:
        """Raises DirectionError where a model seems to be better that can hardly be.

        One that agrees with the float model, or was trained, may well be, and the verdict looks
        again at what is chosen; of others a metric that is read the wrong way round speaks best.
        """
        found = None if self.agreement is None else self.agreement(self.compressed(tried))
        floor = self.judge.budget.min_agreement
        size = abs(self.judge.baseline.mean) if self.judge.budget.relative is None else 1.0
        ruined = found is not None and floor is not None and found < floor
        unlike = found is None or (found < ALIKE and not tried.trained)
        if ruined or (unlike and loss < -_MUCH_BETTER * size):
            self.direction.check(-loss)
            if self.direction.better is None:
                agree = "" if found is None else f", while their outputs agree to {found:.2f} of 1"
                raise DirectionError(
                    self.judge.budget,
                    f"a compressed model is better than the float model by {-loss:.4g}{agree}",
                )

    def _known(self, setting: Setting) -> bool:
        if self.fits.missing([setting]):
            return False
        return self.evaluator.known(self.identity.key(Tried(setting))) is not None

    def _limit_reached(self, late: bool) -> str | None:
        left = "other settings were left untried"
        if self._smallest() is None:
            untrained = "" if self.trainer is None else " untrained"
            left = f"no setting that holds{untrained} had been found"
        if len(self.trials) >= self.max_trials:
            return f"max_trials={self.max_trials} reached: {left}"
        if late:
            total = sum(len(layer.schemes) - (None in layer.schemes) for layer in self.fits.layers)
            return (
                f"timeout reached after {len(self.trials)} trials: {left}; "
                f"{len(self.fits.fitted)} of {total} candidates were fitted"
            )
        return None

    def _smallest(self) -> Setting | None:
        held = [setting for setting, outcome in self.outcomes.items() if outcome.held]
        return min(held, key=lambda s: (self.nbytes(s), s), default=None)
