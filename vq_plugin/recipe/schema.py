"""The keys of a recipe; near those of Intel Neural Compressor 1.x and 2.x."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema, model_validator
from torch import nn

from vq_plugin.export.targets import TARGETS
from vq_plugin.nn import layer_types
from vq_plugin.recipe.criterion import AccuracyCriterion
from vq_plugin.recipe.fields import (
    Choice,
    Keys,
    LayerName,
    LayerType,
    Reference,
    SchemeChoice,
    show,
)
from vq_plugin.recipe.training import Factorization, Pruning, Recovery
from vq_plugin.select import Form
from vq_plugin.tuning import LADDER
from vq_plugin.tuning.space import BUILT_IN


def _check_version(value: object) -> object:
    # Intel Neural Compressor's files say 1.0; in Python, True is 1 too.
    if isinstance(value, bool) or value != 1:
        raise ValueError(f"expected 1, got {show(value)}")
    return 1


def _check_target(value: str) -> str:
    if value not in TARGETS:
        raise ValueError(f"target {value!r}: it can be {', '.join(TARGETS)}")
    return value


_Target = Annotated[
    str,
    AfterValidator(_check_target),
    WithJsonSchema({"type": "string", "enum": [*TARGETS]}),
]


class Layers(Keys):
    """What may be done to the layers that a key stands for."""

    scheme: SchemeChoice = Field(
        description="A list is the search space of each layer; one scheme is fixed; null leaves.",
        examples=["km(k=16)"],
    )


class Quantization(Keys):
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


class Evaluation(Keys):
    """The metric, on the split that tuning sees and on one that it does not."""

    tuning: Reference = Field(
        description="Function of a model: its metric on the tuning split, or a result per sample.",
        examples=["my_package:evaluate"],
    )
    test: Reference | None = Field(
        default=None,
        description="The same on a split that the search never sees; it gives the verdict.",
    )


class ExitPolicy(Keys):
    """Limits of the search."""

    max_trials: int = Field(default=25, gt=0, description="The most settings to evaluate.")
    timeout: float | None = Field(
        default=None, gt=0, description="Seconds that the whole search may take."
    )


class Tuning(Keys):
    """How far the search may go."""

    strategy: Literal["frontier"] = Field(
        default="frontier", description="Along the frontier of predicted size and harm."
    )
    accuracy_criterion: AccuracyCriterion = Field(
        default=AccuracyCriterion(relative=0.01), description="The largest loss that is accepted."
    )
    objective: Literal["size"] = Field(default="size", description="The smallest model wins.")
    exit_policy: ExitPolicy = Field(default=ExitPolicy(), description="Limits of the search.")
    random_seed: int = Field(
        default=0,
        ge=-(2**63),
        lt=2**63,
        description="Seed of the fits and of the training, of 64 bits.",
    )


class Recipe(Keys):
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
        min_length=1,
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
