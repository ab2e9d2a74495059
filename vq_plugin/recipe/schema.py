"""The keys of a recipe; near those of Intel Neural Compressor 1.x and 2.x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)
from torch import nn

from vq_plugin.export.targets import TARGETS
from vq_plugin.factors import Factor
from vq_plugin.nn import layer_types
from vq_plugin.recipe.fields import (
    Choice,
    FactorChoice,
    LayerName,
    LayerType,
    Reference,
    SchemeChoice,
    VectorChoice,
    show,
)
from vq_plugin.schemes import Scheme
from vq_plugin.select import Form
from vq_plugin.tuning import LADDER, LossBudget
from vq_plugin.tuning.space import BUILT_IN


def _check_version(value: object) -> object:
    # Intel Neural Compressor's files say 1.0; in Python, True is 1 too.
    if isinstance(value, bool) or value != 1:
        raise ValueError(f"expected 1, got {show(value)}")
    return 1


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


def _check_target(value: str) -> str:
    if value not in TARGETS:
        raise ValueError(f"target {value!r}: it can be {', '.join(TARGETS)}")
    return value


def _check_sparsity(value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"a sparsity is at least 0 and below 1, got {value}; 97 % is 0.97")
    return value


_UNIT: dict[str, Any] = {"exclusiveMinimum": 0, "exclusiveMaximum": 1}
_ONE_LIMIT: dict[str, Any] = {
    "oneOf": [
        {"required": [name], "properties": {name: {"type": "number"}}}
        for name in ("relative", "absolute")
    ]
}


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Layers(_Keys):
    """What may be done to the layers that a key stands for."""

    scheme: SchemeChoice = Field(
        description="A list is the search space of each layer; one scheme is fixed; null leaves.",
        examples=["km(k=16)"],
    )


class Quantization(_Keys):
    """What may be done to which layers."""

    approach: Literal["post_training_weight_only"] = Field(
        default="post_training_weight_only",
        description="Codebooks replace weights, after training.",
    )
    calibration: Reference | None = Field(
        default=None, description="Function without arguments: unlabelled input batches, as a list."
    )
    model_wise: Layers | None = Field(
        default=None,
        description="All layers that no narrower key names; the built-in ladder if left out.",
    )
    optype_wise: dict[LayerType, Layers] = Field(
        default={}, description="All layers of a type that op_wise does not name."
    )
    op_wise: dict[LayerName, Layers] = Field(
        default={}, description="Layers by name, or by 're:…', which must match the whole name."
    )


class Evaluation(_Keys):
    """The metric, on the split that tuning sees and on one that it does not."""

    tuning: Reference = Field(
        description="Function of a model: its metric on the tuning split, or a result per sample.",
        examples=["my_package:evaluate"],
    )
    test: Reference | None = Field(
        default=None,
        description="The same on a split that the search never sees; it gives the verdict.",
    )


class AccuracyCriterion(_Keys):
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


_Loader = Annotated[
    Reference,
    Field(
        description="Function without arguments: training batches, inputs or (inputs, targets).",
        examples=["my_package:training_batches"],
    ),
]


_Target = Annotated[
    str,
    AfterValidator(_check_target),
    WithJsonSchema({"type": "string", "enum": [*TARGETS]}),
]


class Pruning(_Keys):
    """Zeros in the float model, before the search; see vq_plugin.prune."""

    loader: _Loader
    sparsity: Annotated[float, AfterValidator(_check_sparsity)] = Field(
        description="Share of the weights that become zero; 97 % is 0.97.",
        examples=[0.9],
        json_schema_extra={"minimum": 0, "exclusiveMaximum": 1},
    )
    epochs: int = Field(default=3, gt=0, description="Passes over the batches.")
    learning_rate: float = Field(default=2e-3, gt=0, description="Learning rate at the start.")


class Factors(_Keys):
    """What becomes of the layers that a key stands for."""

    factor: FactorChoice = Field(description="null leaves them.", examples=["basis(d=5)"])


class Factorization(_Keys):
    """Products with sparse coefficients, before the search; see vq_plugin.prune_factors."""

    loader: _Loader
    optype_wise: dict[LayerType, Factors] = Field(
        default={}, description="All layers of a type that op_wise does not name."
    )
    op_wise: dict[LayerName, Factors] = Field(
        default={}, description="Layers by name, or by 're:…', which must match the whole name."
    )
    penalty: float = Field(
        default=1e-4, ge=0, description="What a coefficient's magnitude adds to the loss."
    )
    deviations: float = Field(
        default=1.0, ge=0, description="Coefficients of less than so many become zero."
    )
    epochs: int = Field(default=4, ge=2, description="Passes over the batches.")
    learning_rate: float = Field(default=2e-3, gt=0, description="Learning rate at the start.")

    def factors(self) -> dict[str | type[nn.Module], Factor | None]:
        """The factors, for :func:`vq_plugin.factorize`."""
        types = layer_types()
        return {
            **{name: layer.factor for name, layer in self.op_wise.items()},
            **{types[name]: layer.factor for name, layer in self.optype_wise.items()},
        }


class Vectors(_Keys):
    """What the layers that a key stands for learn."""

    scheme: VectorChoice = Field(description="null learns single numbers.")


class Recovery(_Keys):
    """Training of what is past the budget; see vq_plugin.Recovery and vq_plugin.Learning."""

    method: Literal["finetune", "learn"] = Field(
        default="finetune",
        description="finetune: codebooks, biases and norms of settings past the budget; learn: "
        "models from float, at a price of a bit that the budget finds.",
    )
    loader: _Loader
    epochs: int | None = Field(
        default=None, gt=0, description="Passes over the batches for each trial; 1, to learn 8."
    )
    learning_rate: float | None = Field(
        default=None, gt=0, description="Learning rate at the start; 0.03, to learn 0.002."
    )
    max_trials: int | None = Field(
        default=None, gt=0, description="The most models to train; 4, to learn 3."
    )
    model_wise: Vectors | None = Field(
        default=None, description="learn: all layers that no narrower key names; single numbers."
    )
    optype_wise: dict[LayerType, Vectors] = Field(
        default={}, description="learn: all layers of a type that op_wise does not name."
    )
    op_wise: dict[LayerName, Vectors] = Field(
        default={}, description="learn: layers by name, or by 're:…', of which the whole matches."
    )

    @model_validator(mode="after")
    def _learns(self) -> Recovery:
        if self.method != "learn" and self.schemes() is not None:
            raise ValueError(
                "model_wise, optype_wise and op_wise say what is learned: add 'method: learn'"
            )
        return self

    def schemes(self) -> dict[str | type[nn.Module], Scheme | None] | None:
        """Which layers learn vectors, for :class:`vq_plugin.Learning`."""
        types = layer_types()
        schemes: dict[str | type[nn.Module], Scheme | None] = {
            **{name: layer.scheme for name, layer in self.op_wise.items()},
            **{types[name]: layer.scheme for name, layer in self.optype_wise.items()},
        }
        if self.model_wise is not None:
            schemes["*"] = self.model_wise.scheme
        return schemes or None


class ExitPolicy(_Keys):
    """Limits of the search."""

    max_trials: int = Field(default=25, gt=0, description="The most settings to evaluate.")
    timeout: float | None = Field(
        default=None, gt=0, description="Seconds that the whole search may take."
    )


class Tuning(_Keys):
    """How far the search may go."""

    strategy: Literal["frontier"] = Field(
        default="frontier", description="Along the frontier of predicted size and harm."
    )
    accuracy_criterion: AccuracyCriterion = Field(
        default=AccuracyCriterion(relative=0.01), description="The largest loss that is accepted."
    )
    objective: Literal["size"] = Field(default="size", description="The smallest model wins.")
    exit_policy: ExitPolicy = Field(default=ExitPolicy(), description="Limits of the search.")
    random_seed: int = Field(default=0, description="Seed of the fits and of the training.")


class Recipe(_Keys):
    """What to compress, on which data, within which budget."""

    version: Annotated[Literal[1], BeforeValidator(_check_version)] = Field(
        description="Version of these keys.", examples=[1]
    )
    model: Reference = Field(
        description="Function without arguments: the trained float model.",
        examples=["my_package:model"],
    )
    quantization: Quantization = Field(
        default=Quantization(), description="What may be done to which layers."
    )
    pruning: Pruning | None = Field(
        default=None, description="Zeros in the float model, before the search."
    )
    factorization: Factorization | None = Field(
        default=None, description="Products with sparse coefficients, before the search."
    )
    recovery: Recovery | None = Field(
        default=None, description="Training of what is past the budget, after the search."
    )
    evaluation: Evaluation = Field(
        description="The metric.", examples=[{"tuning": "my_package:evaluate"}]
    )
    tuning: Tuning = Field(default=Tuning(), description="Budget and limits of the search.")
    rest: Literal["float16", "int8"] | None = Field(
        default=None, description="Dtype in the file of biases, norms and layers left as they are."
    )
    export: list[_Target] = Field(
        default=[],
        description="Other runtimes that the model is written for; needs quantization.calibration.",
        examples=["[onnx]"],
    )
    host: Literal["pt2e", "torch_ao", "torchao"] | None = Field(
        default=None,
        description="Library that ships the model: evaluated is what it makes of each setting.",
    )
    output: str = Field(
        description="Folder of the results, relative to the current folder.",
        examples=["runs/my_model"],
    )

    @model_validator(mode="after")
    def _starts_from_one_model(self) -> Recipe:
        if self.pruning is not None and self.factorization is not None:
            raise ValueError(
                "give one of pruning, which makes weights zero, and factorization, which makes "
                "coefficients of products zero"
            )
        return self

    @model_validator(mode="after")
    def _ships_one_model(self) -> Recipe:
        if self.export and self.host is not None:
            raise ValueError(
                "give one of export, which writes what compress makes, and host, which ships what "
                "a library makes"
            )
        return self

    def candidates(
        self, built_in: Sequence[Form | None] | None = None
    ) -> dict[str | type[nn.Module], Choice]:
        """What may become of which layers, for :func:`vq_plugin.tune`; of others what is built in.

        Hosts take no factors, and :data:`vq_plugin.tuning.LADDER`.
        """
        quantization = self.quantization
        if built_in is None:
            built_in = BUILT_IN if self.host is None else LADDER
        rest = list(built_in) if quantization.model_wise is None else quantization.model_wise.scheme
        types = layer_types()
        return {
            **{name: layer.scheme for name, layer in quantization.op_wise.items()},
            **{types[name]: layer.scheme for name, layer in quantization.optype_wise.items()},
            "*": rest,
        }


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe, for editors; ``docs/recipe.schema.json`` holds it.

    What :func:`vq_plugin.recipe.read_recipe` takes, it takes too. It cannot see what is wrong
    inside a scheme, nor what the model lacks.

    Example:
        >>> json_schema()["required"]
        ['version', 'model', 'evaluation', 'output']
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Recipe.model_json_schema(),
        "title": "vq_plugin recipe",
    }
