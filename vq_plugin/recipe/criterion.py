"""The key of a recipe that says what may be lost."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from vq_plugin.recipe.fields import Keys
from vq_plugin.tuning import LossBudget


# The budget itself checks its numbers; key by key, so that the error has the key's own line.
def _check_relative(value: float) -> float:
    return LossBudget(relative=value).limit


def _check_absolute(value: float) -> float:
    return LossBudget(absolute=value).limit


def _check_confidence(value: float) -> float:
    try:
        LossBudget(relative=0.5, confidence=value)
    except ValueError as error:
        raise ValueError(f"{error}; 95 % is 0.95") from None
    return value


def _check_margin(value: float) -> float:
    return LossBudget(relative=0.5, margin=value).margin


def _check_min_agreement(value: float) -> float:
    LossBudget(relative=0.5, min_agreement=value)
    return value


_UNIT: dict[str, Any] = {"exclusiveMinimum": 0, "exclusiveMaximum": 1}
_ONE_LIMIT: dict[str, Any] = {
    "oneOf": [
        {"required": [name], "properties": {name: {"type": "number"}}}
        for name in ("relative", "absolute")
    ]
}


class AccuracyCriterion(Keys):
    """The budget: exactly one of relative and absolute."""

    model_config = ConfigDict(json_schema_extra=_ONE_LIMIT)

    relative: Annotated[float, AfterValidator(_check_relative)] | None = Field(
        default=None,
        description="Largest loss as a part of the baseline; 1 % is 0.01.",
        json_schema_extra=_UNIT,
    )
    absolute: Annotated[float, AfterValidator(_check_absolute)] | None = Field(
        default=None,
        description="Largest loss in the metric's own unit: 0.01 of a fraction, 1 of percents.",
        json_schema_extra={"exclusiveMinimum": 0},
    )
    higher_is_better: bool = Field(
        default=True, description="Whether the metric grows as the model gets better."
    )
    confidence: Annotated[float, AfterValidator(_check_confidence)] | None = Field(
        default=None,
        description="How sure the loss must be within the limit, such as 0.95; the evaluation "
        "must return one result per sample.",
        json_schema_extra={"exclusiveMinimum": 0.5, "exclusiveMaximum": 1},
    )
    min_agreement: Annotated[float, AfterValidator(_check_min_agreement)] | None = Field(
        default=0.2,
        description="How far outputs must agree with the float model's on the calibration data, or "
        "else on what the evaluation gives the model, "
        "from 0 to 1, whatever the metric says; null for no such floor.",
        json_schema_extra={"minimum": 0, "maximum": 1},
    )

    margin: Annotated[float, AfterValidator(_check_margin)] = Field(
        default=0.0,
        description="Part of the limit that the search leaves unused on the tuning split, from 0 "
        "and below 1, for metrics that have no confidence; all of it decides on the test split.",
        json_schema_extra={"minimum": 0, "exclusiveMaximum": 1},
    )

    @model_validator(mode="after")
    def _one_limit(self) -> AccuracyCriterion:
        if (self.relative is None) == (self.absolute is None):
            raise ValueError("give exactly one of relative and absolute, such as 'relative: 0.01'")
        if self.margin and self.confidence is not None:
            raise ValueError("give confidence or margin: a confidence finds its margin by itself")
        return self

    def budget(self) -> LossBudget:
        """The criterion as a budget."""
        return LossBudget(
            self.relative,
            self.absolute,
            self.higher_is_better,
            self.confidence,
            self.min_agreement,
            self.margin,
        )
