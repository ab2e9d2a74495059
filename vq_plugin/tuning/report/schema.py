"""The keys of ``report.json``: these classes are the source of its published JSON Schema."""

from __future__ import annotations

import math
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

REPORT_VERSION: Final = 2


def _finite_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _finite_interval(value: Any) -> Any:
    return value if value is None or all(map(math.isfinite, value)) else None


Number = Annotated[float | None, BeforeValidator(_finite_number)]
Interval = Annotated[tuple[float, float] | None, BeforeValidator(_finite_interval)]
Count = Annotated[int, Field(ge=0)]


def _drop_titles(schema: dict[str, Any]) -> None:
    """Removes the titles that pydantic gives to keys: they only repeat the names."""
    for entry in schema.get("properties", {}).values():
        entry.pop("title", None)


class _Record(BaseModel):
    model_config = ConfigDict(
        frozen=True, use_attribute_docstrings=True, json_schema_extra=_drop_titles
    )


class Verdict(_Record):
    """Whether the budget was reached."""

    passed: bool
    """Whether a setting holds the budget, on the test split too where there is one."""
    stopped: str | None
    """Why the budget was not reached; null if it was."""
    cut: str | None
    """What limits on trials or time cut off the search; null if nothing."""
    chosen_trial: Count | None
    """Index of the chosen setting in `trials`, counted from 0; null if the budget was not
    reached."""


class Budget(_Record):
    """The largest acceptable loss: either `relative` or `absolute`."""

    relative: float | None
    """Limit as a part of the baseline; every loss of the report is then such a part."""
    absolute: float | None
    """Limit in the metric's own unit; every loss of the report is then in that unit."""
    higher_is_better: bool
    """Whether the metric grows as the model gets better."""
    confidence: float | None
    """Confidence that the bound of the loss had to have, or null if the loss alone decided."""
    interval_confidence: float
    """Confidence of all two-sided intervals of the report."""


class Split(_Record):
    """The metric on one split of the data."""

    baseline: Number
    """The float model's metric."""
    score: Number
    """The compressed model's metric; null if there is none."""
    loss: Number
    """Its loss in the unit of the budget; negative for a gain."""
    interval: Interval
    """Two-sided interval of the loss; null where the metric is not given per sample."""


class Sizes(_Record):
    """Bytes of the model."""

    float32: Count
    """The float32 `state_dict`."""
    model: Count | None
    """Codes, entropy-coded where that is smaller, codebooks and everything else of the compressed
    model: the file without its header."""
    other: Count | None
    """The part of `model` that belongs to none of `layers`: biases, norms, other layers."""
    file: Count | None
    """The compressed file; null if none was written."""


class Rates(_Record):
    """How many times smaller: float32 bytes over compressed bytes."""

    layers: Number
    """Of the compressed weights alone, in a file."""
    model: Number
    """Of the whole model, in a file but for its header."""
    file: Number
    """Of the float32 `state_dict` against the file."""


class Candidate(_Record):
    """One way to store one layer."""

    scheme: str | None
    """The scheme as text; null leaves the layer in float."""
    nbytes: Count
    """Bytes of the weight so stored in a file."""
    bits_per_weight: float
    """The same in bits, over the number of weights."""
    error: Number
    """Squared error of the weight over its squared size, weighted by calibration."""
    harm: Number
    """Predicted harm: how much the model's output on the calibration data changes when only
    this layer is compressed; without calibration `error`."""


class Choice(_Record):
    """How a layer of the chosen model is stored."""

    scheme: str | None
    """The scheme as text; null leaves the layer in float."""
    nbytes: Count
    """Bytes of codes, codebooks and scales in a file; 0 where they are counted in another
    layer."""
    bits_per_weight: float
    """The same in bits, over the number of weights."""
    share: float
    """`nbytes` over the bytes of the whole compressed model."""
    note: str
    """What is worth knowing, such as a reduced `k`; empty if nothing."""


class Layer(_Record):
    """One layer of the search."""

    name: str
    """Name in the model; empty if the model is a bare layer."""
    shape: tuple[int, ...]
    """Shape of the weight."""
    float_nbytes: Count
    """Bytes of the weight in float32; 0 where they are counted in another layer."""
    chosen: Choice | None
    """How the chosen model stores it; null if the budget was not reached."""
    candidates: tuple[Candidate, ...]
    """What the search chose from, from the largest to the smallest."""


class FrontierPoint(_Record):
    """One setting of the predicted frontier."""

    nbytes: Count
    """Bytes of the whole model in a file, without its header."""
    harm: Number
    """Predicted harm."""


class Trial(_Record):
    """One setting that was evaluated on the tuning split."""

    schemes: dict[str, str | None]
    """Scheme of every layer of the search as text; null leaves the layer in float."""
    nbytes: Count
    """Bytes of the whole model in a file, without its header."""
    rate: Number
    """Float32 bytes of the whole model over `nbytes`."""
    harm: Number
    """Predicted harm: the sum over its layers."""
    score: Number
    """The metric; null if the trial failed."""
    loss: Number
    """Its loss in the unit of the budget; null if the trial failed."""
    interval: Interval
    """Two-sided interval of the loss; null where the metric is not given per sample."""
    held: bool
    """Whether it is within the budget, with the confidence that the budget asks for."""
    phase: str
    """Part of the search: `frontier`, `local`, or `recovery` for settings that were trained."""
    seconds: Number
    """Time of the evaluation, and of the training if there was one."""
    error: str | None
    """Why the trial failed; null if it did not."""


class Recipe(_Record):
    """The recipe of the run."""

    name: str
    """Name of the file."""
    text: str
    """Its text, unchanged."""


class Seconds(_Record):
    """Where the time went."""

    search: Number
    """Everything but the evaluations."""
    evaluations: Number
    """The evaluations of all trials, with the training that some of them need."""


class Environment(_Record):
    """What the search ran on."""

    vq_plugin: str
    """Version of vq_plugin."""
    torch: str
    """Version of PyTorch."""
    python: str
    """Version of Python."""
    machine: str
    """Architecture of the processor."""
    threads: Count
    """Threads that PyTorch used."""


class Report(_Record):
    """The result of a search for a small model within a loss budget."""

    report_version: Literal[2]
    """Version of these keys. Keys may be added to a version, never removed or redefined."""
    verdict: Verdict
    """Whether the budget was reached."""
    budget: Budget
    """The largest acceptable loss."""
    tuning_split: Split
    """The metric on the data that the search used; of the chosen model."""
    test_split: Split | None
    """The metric on untouched data, of the setting that held on the tuning split; null if no
    test split was given."""
    schemes: dict[str, str | None] | None
    """Chosen scheme of every layer of the search; null if the budget was not reached."""
    bytes: Sizes
    """Bytes of the model."""
    rates: Rates
    """How many times smaller; all null if the budget was not reached."""
    layers: tuple[Layer, ...]
    """All layers of the search."""
    frontier: tuple[FrontierPoint, ...]
    """The predicted frontier, from the largest to the smallest model."""
    trials: tuple[Trial, ...]
    """All settings that were evaluated, in order."""
    resumed: Count
    """How many evaluations were read from the journal of an interrupted run."""
    recipe: Recipe | None
    """The recipe; null where the search was called from Python."""
    seconds: Seconds
    """Where the time went."""
    environment: Environment
    """What the search ran on."""


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``report.json``; ``docs/report.schema.json`` holds it.

    Example:
        >>> json_schema()["required"][:3]
        ['report_version', 'verdict', 'budget']
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Report.model_json_schema(mode="serialization"),
        "title": f"vq_plugin report, version {REPORT_VERSION}",
    }
