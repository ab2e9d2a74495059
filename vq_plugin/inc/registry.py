"""Where INC looks for algorithms and for the configs that ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from neural_compressor.common.base_config import register_config
from neural_compressor.torch.quantization.config import FRAMEWORK_NAME
from neural_compressor.torch.utils.utility import register_algo
from torch import nn


def register(configs: Iterable[type[Any]], algorithm: Callable[..., nn.Module]) -> None:
    """Makes INC know config classes and the one algorithm that they all ask for.

    INC calls an algorithm once for every name that occurs among the configs of a model. The first
    call does the work of all, so calibration runs once; the others find nothing left to do.

    Args:
        configs: Config classes, each with a ``name``.
        algorithm: What INC calls with the model and the config of every layer.
    """
    for config in configs:
        register_config(FRAMEWORK_NAME, config.name)(config)
        register_algo(config.name)(algorithm)
