"""What a search came to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from vq_plugin.checkpoint import Rest
from vq_plugin.left_float import FloatWeight
from vq_plugin.select import Form
from vq_plugin.tuning.budget import LossBudget
from vq_plugin.work import Work

Interval = tuple[float, float]

# What a run leaves in its folder.
MODEL_FILE, REPORT_FILE, PAGE_FILE = "model.vq", "report.json", "report.html"


@dataclass(frozen=True)
class Trial:
    """One setting that was evaluated.

    Attributes:
        schemes: The setting, layer by layer; ``None`` leaves a layer.
        nbytes: Bytes of the whole model in a file, without its header: codes, entropy-coded where
            that is smaller, codebooks and everything else; up to 8 a layer too many. Those of the
            float model where learning has failed.
        rate: Float32 bytes of the whole model over ``nbytes``.
        harm: Predicted harm, see :class:`LayerCandidate`; NaN for a learned model.
        score: The metric on the tuning split; NaN if the trial failed.
        loss: Its loss in the budget's unit; NaN if the trial failed.
        interval: Two-sided interval of the loss, or ``None`` where the metric is not given per
            sample.
        held: Whether it is within the budget; with a confidence, whether that is also confirmed,
            which is not tried of what a smaller model beats.
        phase: ``"frontier"`` while looking for the edge of the budget along the predicted
            frontier, ``"local"`` for the steps from there, ``"recovery"`` for what was trained.
        seconds: Time of the evaluation, and of the training if there was one.
        error: Why the trial failed, or ``None``.
        rate_weight: The price of a bit that the model was learned at, see :func:`vq_plugin.learn`;
            ``None`` for a setting.
    """

    schemes: Mapping[str, Form | None]
    nbytes: int
    rate: float
    harm: float
    score: float
    loss: float
    interval: Interval | None
    held: bool
    phase: str
    seconds: float
    error: str | None = None
    rate_weight: float | None = None


@dataclass(frozen=True)
class LayerCandidate:
    """One way to store one layer.

    Attributes:
        scheme: The scheme; ``None`` leaves the layer in float.
        nbytes: Bytes of the weight so stored in a file, see
            :func:`vq_plugin.sizes.file_nbytes`.
        error: Squared error of the weight over its squared size, weighted by calibration.
        harm: Predicted harm: how much the model's output on the calibration data changes when
            only this layer is compressed, see :mod:`vq_plugin.harm`; without calibration
            ``error``.
    """

    scheme: Form | None
    nbytes: int
    error: float
    harm: float


@dataclass(frozen=True)
class LayerLadder:
    """The candidates of one layer that the search asked for, from the largest to the smallest.

    Attributes:
        name: Name of the layer in the model.
        shape: Shape of its weight.
        float_nbytes: Bytes of the weight in float32.
        candidates: Those that were fitted, and float where the layer may stay so.
    """

    name: str
    shape: tuple[int, ...]
    float_nbytes: int
    candidates: tuple[LayerCandidate, ...]


@dataclass(frozen=True)
class FrontierPoint:
    """A setting of the predicted frontier.

    Attributes:
        nbytes: Bytes of the whole model in a file, without its header.
        harm: Predicted harm, see :class:`LayerCandidate`.
    """

    nbytes: int
    harm: float


@dataclass(frozen=True)
class Export:
    """The model as a file of another runtime, and how that was checked.

    Attributes:
        target: What it is for, such as ``"onnx"``.
        file: Its name in the folder of the run.
        nbytes: Its bytes, of all files where it is a folder.
        agreement: How far its outputs agree with those of the compressed model on calibration
            data, from 0 to 1; where it cannot be run here, the share of its coded weights that
            have the same bits; ``None`` for a model that returns no floats.
        error: The largest difference of an output, over the root mean square of that output;
            ``None`` where it cannot be run here.
        checked: How that was found.
    """

    target: str
    file: str
    nbytes: int
    agreement: float | None
    error: float | None
    checked: str


@dataclass(frozen=True)
class TuneResult:
    """What a search came to.

    Attributes:
        model: The compressed model; the float model itself if ``passed`` is false.
        schemes: Scheme of every layer of the search, ``None`` for those left; ``None`` if
            ``passed`` is false.
        passed: Whether a setting holds the budget, on the test split too where there is one.
        baseline: The float model's metric on the tuning split.
        score: The metric of ``model`` on the tuning split.
        loss: Its loss there, in the budget's unit.
        interval: Two-sided interval of that loss (at the budget's confidence, else 95 %), or
            ``None`` where the metric is not given per sample.
        rate: Float32 bytes of the whole model over its compressed bytes in a file, without header.
        trials: All settings that were evaluated, in order.
        layers: The candidates of every layer of the search.
        frontier: The predicted frontier, as fits have corrected it, and where the search looked for
            it before, from the largest to the smallest model.
        budget: The budget.
        test_baseline: The float model's metric on the untouched test split, if there is one.
        test_score: The metric there of the setting that held on the tuning split.
        test_loss: Its loss there.
        test_interval: Interval of that loss.
        agreement: How far the outputs of the setting that held agree with the float model's on the
            calibration data, or else on what ``evaluate`` gives the model, from 0 to 1; ``None``
            where it gives nothing that a second call can be made with.
        cut: What limits on trials or time cut off, or ``None``.
        stopped: Why the budget was not reached, or ``None``.
        search_seconds: Time of everything but the user's evaluations.
        resumed: How many evaluations came from the journal of an interrupted run.
        rest: How to :func:`vq_plugin.save` ``model`` so that it takes what was counted.
        left_float: Weights above 1 % of ``model`` that stayed float, and why; none if ``passed``
            is false.
        float_work: Weights and multiplications of the float model; ``None`` without batches of
            calibration data, without time left for two passes, or if they failed, which is logged.
        work: The same of ``model``.
        exports: ``model`` as files of other runtimes, in the order that they were asked for; none
            if ``passed`` is false.
    """

    model: nn.Module
    schemes: dict[str, Form | None] | None
    passed: bool
    baseline: float
    score: float
    loss: float
    interval: Interval | None
    rate: float
    trials: tuple[Trial, ...]
    layers: tuple[LayerLadder, ...]
    frontier: tuple[FrontierPoint, ...]
    budget: LossBudget
    test_baseline: float | None = None
    test_score: float | None = None
    test_loss: float | None = None
    test_interval: Interval | None = None
    agreement: float | None = None
    cut: str | None = None
    stopped: str | None = None
    search_seconds: float = 0.0
    resumed: int = 0
    rest: Rest | None = None
    left_float: tuple[FloatWeight, ...] = ()
    float_work: Work | None = None
    work: Work | None = None
    exports: tuple[Export, ...] = ()

    @property
    def chosen_trial(self) -> int | None:
        """Index of the chosen setting in ``trials``; ``None`` if ``passed`` is false."""
        # The same schemes may be those of a setting before it was trained, or of learned models.
        held = (i for i, trial in enumerate(self.trials) if trial.held)
        same = (i for i in held if self.schemes == dict(self.trials[i].schemes))
        return min(same, key=lambda i: self.trials[i].nbytes, default=None)


def kind_of(budget: LossBudget, trial: Trial) -> str:
    """What a trial is: ``"held"``, ``"over"``, ``"failed"``; ``"unsure"`` if not confirmed."""
    if not math.isfinite(trial.loss):
        return "failed"
    if trial.held:
        return "held"
    return "over" if trial.loss > budget.limit else "unsure"
