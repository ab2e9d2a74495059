"""The keys of a recipe that train: before the search, and after it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator
from torch import nn

from vq_plugin.factors import Factor
from vq_plugin.nn import layer_types
from vq_plugin.recipe.fields import (
    FactorChoice,
    Keys,
    LayerName,
    LayerType,
    Reference,
    VectorChoice,
)
from vq_plugin.schemes import Scheme

_Loader = Annotated[
    Reference,
    Field(
        description="Function without arguments: training batches, inputs or (inputs, targets).",
        examples=["my_package:training_batches"],
    ),
]


def _check_sparsity(value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError(f"a sparsity is at least 0 and below 1, got {value}; 97 % is 0.97")
    return value


class Pruning(Keys):
    """Zeros in the float model, before the search; see vq_plugin.prune."""

    loader: _Loader
    sparsity: Annotated[float, AfterValidator(_check_sparsity)] = Field(
        description="Share of the weights that become zero; 97 % is 0.97.",
        examples=[0.9],
        json_schema_extra={"minimum": 0, "exclusiveMaximum": 1},
    )
    epochs: int = Field(default=3, gt=0, description="Passes over the batches.")
    learning_rate: float = Field(default=2e-3, gt=0, description="Learning rate at the start.")


class Factors(Keys):
    """What becomes of the layers that a key stands for."""

    factor: FactorChoice = Field(description="null leaves them.", examples=["basis(d=5)"])


class Factorization(Keys):
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


class Vectors(Keys):
    """What the layers that a key stands for learn."""

    scheme: VectorChoice = Field(description="null learns single numbers.")


class Recovery(Keys):
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
        learns = {"finetune": False, "learn": True}[self.method]
        if self.schemes() is not None and not learns:
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
