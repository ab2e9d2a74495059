"""Which layer of a model gets which config."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

from neural_compressor.common.base_config import BaseConfig
from torch import nn

from vq_plugin.nn import LAYER_TYPES
from vq_plugin.select import NoMatchError, Pattern, match

if TYPE_CHECKING:
    from vq_plugin.inc.config import VQConfig

Key: TypeAlias = str | type[nn.Module]


class ModelInfo(list[tuple[str, str]]):
    """``(name, type)`` of layers, as INC hands it on, with the config of each.

    Attributes:
        configs: Config by ``(name, type)``; the keys are the entries of the list.
        everywhere: The entries that only a rule for all layers speaks of.
    """

    def __init__(
        self, configs: Mapping[tuple[str, str], BaseConfig], everywhere: set[tuple[str, str]]
    ) -> None:
        super().__init__(configs)
        self.configs = dict(configs)
        self.everywhere = everywhere


def model_info(config: VQConfig, model: nn.Module) -> ModelInfo:
    """Resolves the names, regular expressions and types of a config.

    Args:
        config: Config with or without local ones.
        model: The float model.

    Returns:
        The layers that it is for, in the order of the model. A key that matches nothing is
        warned about, with the nearest names: INC's users share configs among models.

    Raises:
        ValueError: If a named layer cannot be compressed, or no layer at all is to be changed.
    """
    names = {name for name, _ in model.named_modules(remove_duplicate=False)}
    rules = {_as_pattern(key, names): local for key, local in config.local_config.items()}
    if config.global_config is not None:
        rules.setdefault("*", config.global_config)
    types = {name: type(module).__name__ for name, module in model.named_modules()}
    configs: dict[tuple[str, str], BaseConfig] = {}
    everywhere: set[tuple[str, str]] = set()
    for name, pattern in _owners(config, model, rules).items():
        key = (name, types[name])
        configs[key] = rules[pattern]
        if rules[pattern] is config.global_config:
            everywhere.add(key)
    return ModelInfo(configs, everywhere)


def _owners(
    config: VQConfig, model: nn.Module, rules: Mapping[Pattern, BaseConfig]
) -> dict[str, Pattern]:
    """Which rule decides about which layer."""
    left = dict(rules)
    unmatched = []
    while left:
        leaving = [pattern for pattern, rule in left.items() if _leaves(rule)]
        try:
            return match(model, left, leaving)
        except NoMatchError as error:
            if left[error.pattern] is config.global_config:
                raise
            warnings.warn(f"{type(config).__name__}: {error}", stacklevel=5)
            unmatched.append(str(error))
            del left[error.pattern]
    raise ValueError(
        f"{type(config).__name__} is for no layer of the model: "
        f"{'; '.join(unmatched) or 'its white_list is None'}"
    )


def _as_pattern(key: Key, names: set[str]) -> Pattern:
    if not isinstance(key, str) or key in names or key == "*" or key.startswith("re:"):
        return key
    return LAYER_TYPES.get(key, f"re:{key}")


def _leaves(config: BaseConfig) -> bool:
    """Whether a config leaves layers in float, and hence may name any module."""
    return is_codebooks(config) and config.layer_scheme is None


def is_codebooks(config: BaseConfig) -> bool:
    """Whether a config is one of this package, not of INC."""
    return hasattr(type(config), "layer_scheme")


def codebooks_first(
    configs: Mapping[tuple[str, str], BaseConfig],
) -> OrderedDict[tuple[str, str], BaseConfig]:
    """The configs of a model in an order that INC can work with.

    Its algorithms read some settings off the last config, whosesoever it is.
    """
    return OrderedDict(sorted(configs.items(), key=lambda item: not is_codebooks(item[1])))
