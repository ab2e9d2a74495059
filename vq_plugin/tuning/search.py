"""``tune``: the smallest model that holds the budget."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn
from torch.nn.parameter import is_lazy

from vq_plugin.arguments import brief, check_positive, check_whole
from vq_plugin.calibration import Calibration, check_batches
from vq_plugin.calibration.model_calls import pieces
from vq_plugin.checkpoint import Rest, check_rest, save
from vq_plugin.factorize.layers import whole_state
from vq_plugin.select import Form, check_model
from vq_plugin.tuning.agreement import Agreement
from vq_plugin.tuning.budget import LossBudget
from vq_plugin.tuning.candidates import Fits
from vq_plugin.tuning.cluster import check_backend
from vq_plugin.tuning.confidence import Judge
from vq_plugin.tuning.deadline import Deadline
from vq_plugin.tuning.exports import check_export, export_to, expressible, rehearse
from vq_plugin.tuning.hosts import AnyHost
from vq_plugin.tuning.identity import Identity, model_digest
from vq_plugin.tuning.journal import Journal
from vq_plugin.tuning.layers import layers_of, observed
from vq_plugin.tuning.probe import Probe
from vq_plugin.tuning.recovery import Learning, Recovery, Trainer
from vq_plugin.tuning.release import complete, release
from vq_plugin.tuning.result import MODEL_FILE, TuneResult
from vq_plugin.tuning.session import Session
from vq_plugin.tuning.shipped import Shipped
from vq_plugin.tuning.space import BUILT_IN, LADDER, Candidates, search_space
from vq_plugin.tuning.trials import Evaluate, Evaluator
from vq_plugin.tuning.verdict import verdict
from vq_plugin.tuning.watch import Callback, Watch
from vq_plugin.work import count_work

_log = logging.getLogger(__name__)

# Of the time that is left, what a second evaluation of the float model may take.
_REPEATED = 0.1


def tune(
    model: nn.Module,
    evaluate: Evaluate,
    budget: LossBudget | None = None,
    calibration: Calibration | None = None,
    *,
    candidates: Candidates | None = None,
    test: Evaluate | None = None,
    max_trials: int = 25,
    timeout: float | None = None,
    seed: int = 0,
    workers: int = 1,
    backend: str = "loky",
    start: nn.Module | None = None,
    recovery: Recovery | None = None,
    rest: Rest | None = None,
    host: AnyHost | None = None,
    folder: str | os.PathLike[str] | None = None,
    export: Sequence[str] = (),
    recipe: Path | None = None,
    callback: Callback | None = None,
) -> TuneResult:
    """Finds the smallest model whose loss stays within a budget, layer by layer.

    Gradients of the outputs on the calibration data predict the harm of every candidate, and the
    lower hull of harm against bytes gives a frontier of settings of the whole model. Candidates are
    fitted where the search asks for them. Evaluations find the most aggressive point of it that
    holds the budget, then try others nearby while trials are left. With ``recovery``,
    smaller ones that do not hold are then trained, or others learned from the float model, and the
    smallest that holds afterwards is taken.
    The model that is returned was evaluated itself.

    Args:
        model: Float model; it is not changed.
        evaluate: Gives the metric of a model on the tuning split: a finite number, or one result
            per sample as a bool or float vector, whose mean is the metric.
        budget: The largest acceptable loss; 1 % of the baseline if ``None``. If it asks for a
            confidence, ``evaluate`` must give one result per sample.
        calibration: Unlabelled data, see :func:`vq_plugin.compress`, for the fits and for the
            prediction of harm. The float model runs on it once for the fits of all candidates, and
            there and back on some of it.
            Without it the prediction is poor, and a warning says so.
        candidates: The schemes to choose from, see
            :func:`vq_plugin.tuning.space.search_space`: a sequence for all layers, or patterns to
            sequences; ``None`` in a sequence lets a layer stay in float. If ``None``,
            :data:`vq_plugin.tuning.LADDER` and :data:`vq_plugin.tuning.FACTORS` for all layers;
            without the latter, which no host takes, if there is a ``host``.
        test: As ``evaluate``, on an untouched split; it gives the verdict and chooses nothing.
        max_trials: The most settings to evaluate; ``recovery`` has a limit of its own.
        timeout: Seconds that the whole call may take, but for the evaluation or the training that
            is going on. A gentle setting is then evaluated first, and ``cut`` says what was left.
        seed: Seed of the fits, and of the training.
        workers: Fits and evaluations at a time, each in a process of its own; ``evaluate`` must
            then be picklable. The result does not depend on it. Evaluations that may turn out
            not to be needed are begun ahead; they count neither as trials nor for ``max_trials``.
        backend: What runs them if there are several: any joblib backend, such as ``"loky"``
            (processes on this machine) or ``"dask"`` (the current ``distributed.Client``).
        start: A float model of the same architecture to compress in the place of ``model``, such
            as ``vq.prune(model, ...)``, whose zeros take few bits with ``KM(keep_zeros=True)``
            among the candidates, or ``vq.factorize(model, ...)``. Losses and rates still count
            against ``model``.
        recovery: How settings past the budget are trained, with ``model`` as the teacher; or, a
            :class:`vq_plugin.Learning`, how models are learned from ``start``. One at a time and in
            this process, whatever ``workers`` says: each of its ``max_trials`` takes as long as
            :func:`vq_plugin.finetune`, or :func:`vq_plugin.learn`, and an evaluation.
        rest: ``"float16"`` rounds biases, norms and layers left as they are, as in
            :func:`vq_plugin.save`: in every model that is evaluated, in all sizes, and in
            ``model.vq``.
        host: ``"torchao"`` (``quantize_``), ``"pt2e"`` or ``"torch_ao"`` (FX): the library by whose
            calls the model is shipped. ``evaluate`` and ``test`` are then given what it makes of
            each setting, with the codes and all other values of that setting, and so is
            ``result.model``; batch norms are folded first, as the host folds them. ``"pt2e"``
            exports with a batch of ``calibration``, for batches of any size;
            ``vq_plugin.torchao.PT2E(dynamic_batch=False)`` in its place for those of that size.
        folder: Where ``model.vq``, ``report.json`` and ``report.html`` are written, and meanwhile
            a journal of the evaluations: a run that was killed goes on from there when it is
            started again. What an earlier run left there stays until all is written, and then in
            the folder ``previous``. ``None`` keeps everything in memory.
        export: Targets that the model is also written for, into ``folder``: ``"onnx"``
            (``model.onnx``), ``"onnx_native"`` (``model.native.onnx``), ``"coreml"``
            (``model.mlpackage``), ``"aoti"`` (``model.pt2``), ``"pte"`` (``model.pte``) and
            ``"pte_native"`` (``model.native.pte``). They need ``calibration``:
            its first batch is the example, and on 256 samples of it the files are compared with the
            model. Candidates that a target cannot hold are left out, and every target is tried with
            made-up codes before the search.
        recipe: The recipe that the run came from, to be quoted in the reports.
        callback: Called with every :class:`vq_plugin.tuning.Trial` as it ends, also with those that
            come from the journal of an interrupted run. What it raises ends the search; a later
            call goes on from there. The logger ``vq_plugin`` has a line for each at ``INFO``.

    Returns:
        The result. If nothing holds, the float model with ``passed=False``.

    Raises:
        TypeError: If a pattern or a candidate is of the wrong type.
        ValueError: If the float model's metric is not finite, is in another unit than the budget or
            changes from call to call, a compressed model seems to be better and so do shuffled
            outputs, a limit is not positive, a pattern
            of the candidates matches nothing, a layer cannot be compressed, a target of ``export``
            is unknown, lacks a package or cannot express a layer, ``start`` is of another
            architecture, ``rest`` or ``host`` is none of the above, the host cannot convert the
            model or a layer of the search, ``host`` stands beside ``export``, or another run is
            using the folder.
        ImportError: If the library of the host is missing, or too old.

    Example:
        >>> import torch, vq_plugin as vq
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Linear(64, 10), torch.randn(500, 64)
        >>> labels = model(x).argmax(1)
        >>> def correct(m):
        ...     return m(x).argmax(1) == labels
        >>> result = vq.tune(model, correct, vq.LossBudget(absolute=0.1), calibration=[x])
        >>> result.passed, result.loss <= 0.1, result.rate > 4
        (True, True, True)
    """
    seed = _checked_limits(max_trials, timeout, workers, backend, seed)
    began, deadline = time.monotonic(), Deadline.after(timeout)
    budget = LossBudget(relative=0.01) if budget is None else budget
    _check_arguments(model, evaluate, (test, callback), budget, calibration, recovery)
    _check_files(rest, export, calibration, folder, host)
    if isinstance(calibration, Iterable):
        # Read several times, in the same order: a loader may shuffle, a generator runs dry.
        calibration = list(calibration)
    start = model if start is None else start
    _check_alike(model, start)
    shipped = None if host is None else Shipped.by(host, start, calibration)
    start, space = _space(start, candidates, shipped)
    space = _exportable(start, space, export, calibration, recovery)
    # The user's functions may change the current folder.
    place = None if folder is None else Path(folder).absolute()
    recipe = None if recipe is None else recipe.absolute()
    watch = Watch(budget, deadline, callback)
    with Journal(place) as journal, watch:
        _begin(watch, journal, place)
        tuning = Evaluator(evaluate, "evaluate", journal, workers, backend, shipped)
        name = model_digest(model)
        judge = _judge(tuning, model, name, budget, deadline)
        testing = None if test is None else Evaluator(test, "test", journal, shipped=shipped)
        before = time.monotonic()
        test_baseline = None if testing is None else testing.baseline(model, name)
        # The verdict takes as long.
        deadline = deadline.earlier(time.monotonic() - before)
        if test_baseline is not None:
            # Fails at once, not after the search, if the budget is relative and this is 0.
            budget.loss(test_baseline.mean, test_baseline.mean)
        watch.stage(f"look at {len(space)} layers")
        layers = layers_of(start, space, rest)
        trainer = None
        if recovery is not None:
            coded = tuple(layer.name for layer in layers if any(layer.schemes))
            trainer = Trainer(recovery, model, name, coded, seed, journal.files)
        training = () if trainer is None else trainer.settings
        fits = Fits(layers, seed, workers, backend)
        identity = Identity(model_digest(start), fits, training, rest)
        agreement = None if calibration is None else Agreement(model, calibration)
        session = Session(
            start, identity, judge, tuning,
            Probe(model, budget, judge.baseline.mean, partial(tuning.float_score, name)),
            max_trials, deadline, watch, trainer, agreement,
        )  # fmt: skip
        cut = _search(session, start, calibration, seed)
        if trainer is not None:
            session.recover(trainer)
        session.cut = "; ".join(filter(None, [session.cut, cut])) or None
        watch.stage("verdict")
        result = verdict(session, testing, test_baseline)
        result = _returned(model, result, shipped, calibration, deadline)
        overhead = time.monotonic() - began - journal.spent
        result = replace(result, search_seconds=max(0.0, overhead), resumed=journal.resumed)
        if place is not None:
            result = _write(place, result, recipe, export, calibration)
        journal.finish()
    return result


def _space(
    start: nn.Module, candidates: Candidates | None, shipped: Shipped | None
) -> tuple[nn.Module, dict[str, tuple[Form | None, ...]]]:
    """What is compressed, as its host sees it, with the candidates of its layers."""
    if shipped is None:
        return start, search_space(start, BUILT_IN if candidates is None else candidates)
    space = search_space(shipped.model, LADDER if candidates is None else candidates)
    shipped.check(space)
    return shipped.model, space


def _exportable(
    start: nn.Module,
    space: Mapping[str, tuple[Form | None, ...]],
    export: Sequence[str],
    calibration: Calibration | None,
    recovery: Recovery | None,
) -> dict[str, tuple[Form | None, ...]]:
    """The candidates of every layer that exports can hold; they were tried."""
    possible = expressible(start, space, export)
    if isinstance(recovery, Learning):
        coded = [name for name, forms in possible.items() if any(forms)]
        learned = recovery.become(start, coded)
        expressible(start, {name: (scheme,) for name, scheme in learned.items()}, export)
    rehearse(export, start, possible, calibration)
    return possible


def _returned(
    model: nn.Module,
    result: TuneResult,
    shipped: Shipped | None,
    calibration: Calibration | None,
    deadline: Deadline,
) -> TuneResult:
    """The result with the model that is shipped, and what both multiply."""
    small = model
    if result.passed:
        small = result.model if shipped is None else shipped(result.model)
    if not isinstance(calibration, Iterable) or deadline.passed:
        return replace(result, model=small)
    try:
        batch = next(iter(calibration))
        if deadline.limited:
            batch = next(pieces(batch))[0]
        before, after = (count_work(each, [batch]) for each in (model, small))
    # What a search has found must not be lost for want of a count.
    except Exception as error:  # noqa: BLE001
        _log.warning("multiplications are not counted: %s", error)
        return replace(result, model=small)
    return replace(result, model=small, float_work=before, work=after)


def _begin(watch: Watch, journal: Journal, place: Path | None) -> None:
    """Takes what an earlier run left."""
    if place is not None:
        complete(place)
    if journal.found:
        watch.stage(f"resumed: {len(journal.found)} evaluations of an interrupted run")
    watch.stage("evaluate the float model")


def _search(
    session: Session, start: nn.Module, calibration: Calibration | None, seed: int
) -> str | None:
    """Runs a session; says what a deadline cut off before its trials."""
    if session.deadline.limited:
        session.watch.stage("evaluate a gentle setting")
        session.start()
        if not session.deadline.passed and session.judge.budget.min_agreement is not None:
            # The verdict may ask, when there is no time left for evaluations of ruined models.
            blind = session.sight.blind
            _log.debug("evaluate sees what ruins a model: %s", not blind)
    session.watch.stage("measure what each layer costs")
    layers, cut = observed(session.fits.layers, start, calibration, seed, session.deadline)
    session.observe(layers)
    trials = session.max_trials - len(session.trials)
    session.watch.stage(f"search, at most {trials} trials", trials)
    session.run()
    return cut


def _judge(
    tuning: Evaluator, model: nn.Module, name: str, budget: LossBudget, deadline: Deadline
) -> Judge:
    """The float model's metric, which a budget can be a part of and a second call repeats."""
    before = deadline.left
    judge = Judge(budget, tuning.baseline(model, name))
    budget.check_unit(judge.baseline.mean)
    if not deadline.limited or before - deadline.left < _REPEATED * deadline.left:
        tuning.check_repeats(model, name, budget)
    return judge


def _write(
    place: Path,
    result: TuneResult,
    recipe: Path | None,
    export: Sequence[str],
    calibration: Calibration | None,
) -> TuneResult:
    """Writes the files of a result, which has its exports then."""
    # The schemas of reports take longer to import than all else.
    from vq_plugin.tuning.report import write_report

    with release(place) as new:
        model_path = new / MODEL_FILE if result.passed else None
        if model_path is not None:
            save(result.model, model_path, rest=result.rest)
            result = replace(result, exports=export_to(export, result.model, new, calibration))
        write_report(new, result, model_path, recipe=recipe)
    return result


def _check_arguments(
    model: object,
    evaluate: object,
    others: tuple[object, object],
    budget: object,
    calibration: object,
    recovery: object,
) -> None:
    check_model(model)
    for name, function in zip(("evaluate", "test", "callback"), (evaluate, *others), strict=True):
        if not callable(function) and (function is not None or name == "evaluate"):
            raise TypeError(f"{name} is a function, got {brief(function)}")
    if not isinstance(budget, LossBudget):
        raise TypeError(
            f"the budget is a vq.LossBudget, such as relative=0.01, got {brief(budget)}"
        )
    if calibration is not None:
        check_batches(calibration)
    elif (budget.min_agreement or 0) > (LossBudget.min_agreement or 0):
        raise ValueError(f"min_agreement={budget.min_agreement:.4g} needs calibration data")
    if recovery is not None and not isinstance(recovery, Recovery):
        raise TypeError(
            f"recovery is a vq.Recovery, such as vq.Recovery(loader), got {brief(recovery)}"
        )


def _check_files(
    rest: Rest | None, export: Sequence[str], calibration: object, folder: object, host: object
) -> None:
    check_rest(rest)
    if export and host is not None:
        raise ValueError(
            "export writes what compress makes, and host ships what a library makes: give one"
        )
    check_export(export, calibration, folder)


def _check_alike(model: nn.Module, start: nn.Module) -> None:
    """Losses and bytes count against a model of the same architecture."""
    check_model(start, "start")
    expected, found = (
        {
            (name, tuple(value.shape))
            for name, value in whole_state(m).items()
            if not is_lazy(value)  # said of its layer, later
        }
        for m in (model, start)
    )
    for name, shape in sorted(expected ^ found):
        raise ValueError(
            f"start is not of the architecture of model: one has {name!r} of shape {shape}, the "
            "other has not; torch.nn.utils.prune.remove makes one weight of weight_orig and its "
            "mask"
        )


def _checked_limits(
    max_trials: int, timeout: float | None, workers: int, backend: object, seed: int
) -> int:
    """Checks them, and gives the seed as a number of Python's."""
    check_positive("max_trials", max_trials)
    check_positive("workers", workers)
    if timeout is not None:
        check_positive("timeout", timeout)
    for name, count in (("max_trials", max_trials), ("workers", workers)):
        check_whole(name, count)
    check_backend(backend)
    seed = check_whole("seed", seed)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed has 64 bits, got {seed}")
    return seed
