"""The keys of a recipe; near those of Intel Neural Compressor 1.x and 2.x."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from torch import nn

from vq_plugin.nn import CODEBOOK_LAYERS
from vq_plugin.schemes import Scheme, parse_scheme
from vq_plugin.tuning import LossBudget


def _check_reference(text: str) -> str:
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise ValueError(f"{text!r} must have the form 'module:function'")
    return text


def _read_scheme(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"a scheme is a text such as 'pq(k=16,dim=4)', got {value!r}")
    return parse_scheme(value)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Reference = Annotated[str, AfterValidator(_check_reference)]
SchemeText = Annotated[Scheme, BeforeValidator(_read_scheme)]


class _Keys(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True
    )


class ModelWise(_Keys):
    """Candidates for all layers that no narrower key names."""

    scheme: Annotated[list[SchemeText], BeforeValidator(_as_list)] = Field(min_length=1)


class LayerWise(_Keys):
    """One scheme for the layers of a type or name; null leaves them."""

    scheme: SchemeText | None


class Quantization(_Keys):
    """What may be done to which layers."""

    approach: Literal["post_training_weight_only"] = "post_training_weight_only"
    calibration: Reference | None = None
    model_wise: ModelWise | None = None
    optype_wise: dict[str, LayerWise] = {}
    op_wise: dict[str, LayerWise] = {}

    @model_validator(mode="after")
    def _known_types(self) -> Quantization:
        known = {cls.__name__ for cls in CODEBOOK_LAYERS}
        for name in self.optype_wise:
            if name not in known:
                raise ValueError(f"optype_wise: {name!r} is none of {', '.join(sorted(known))}")
        return self


class Evaluation(_Keys):
    """The metric, on the split that tuning sees and on one that it does not."""

    tuning: Reference
    test: Reference | None = None


class AccuracyCriterion(_Keys):
    """The budget: exactly one of relative and absolute."""

    relative: float | None = None
    absolute: float | None = None
    higher_is_better: bool = True

    @model_validator(mode="after")
    def _is_budget(self) -> AccuracyCriterion:
        self.budget()
        return self

    def budget(self) -> LossBudget:
        """The criterion as a budget."""
        return LossBudget(self.relative, self.absolute, self.higher_is_better)


class ExitPolicy(_Keys):
    """Limits of the search."""

    max_trials: int | None = Field(default=None, gt=0)
    timeout: float | None = Field(default=None, gt=0)


class Tuning(_Keys):
    """How far the search may go."""

    accuracy_criterion: AccuracyCriterion = AccuracyCriterion(relative=0.01)
    exit_policy: ExitPolicy = ExitPolicy()
    random_seed: int = 0


class Recipe(_Keys):
    """A whole recipe."""

    version: Literal[1]
    model: Reference
    quantization: Quantization = Quantization()
    evaluation: Evaluation
    tuning: Tuning = Tuning()
    output: str

    def candidates(self) -> list[dict[str | type[nn.Module], Scheme | None]] | None:
        """The settings to try, or ``None`` for the built-in ladder on all layers."""
        quantization = self.quantization
        types = {cls.__name__: cls for cls in CODEBOOK_LAYERS}
        fixed: dict[str | type[nn.Module], Scheme | None] = {
            **{types[name]: layer.scheme for name, layer in quantization.optype_wise.items()},
            **{name: layer.scheme for name, layer in quantization.op_wise.items()},
        }
        if quantization.model_wise is not None:
            return [{**fixed, "*": scheme} for scheme in quantization.model_wise.scheme]
        if fixed:
            from vq_plugin.tuning import LADDER

            return [{**fixed, "*": scheme} for scheme in LADDER]
        return None
