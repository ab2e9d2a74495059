"""Which layer of a model gets which config."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from typing import TypeAlias

from neural_compressor.common.base_config import BaseConfig
from torch import nn

from vq_plugin.inc.base import CodebookConfig
from vq_plugin.nn import layer_types
from vq_plugin.select import NoMatchError, Pattern, match, slots_by_name
from vq_plugin.slot_fit import check_slot
from vq_plugin.ties import tied_weights

Configs: TypeAlias = OrderedDict[tuple[str, str], BaseConfig]


class ModelInfo(list[tuple[str, str]]):
    """``(name, type)`` of layers and their configs; ``everywhere`` a rule for all decides."""

    def __init__(
        self,
        model: nn.Module,
        configs: Mapping[tuple[str, str], BaseConfig],
        everywhere: set[tuple[str, str]],
    ) -> None:
        super().__init__(configs)
        self.model = model
        self.configs = dict(configs)
        self.everywhere = everywhere


def model_info(config: CodebookConfig, model: nn.Module) -> ModelInfo:
    """The layers that a config or a local one of it is for, in the order of the model.

    A key that matches nothing is warned about, with the nearest names: INC's users share configs
    among models. ValueError if a named layer cannot be compressed, an algorithm of INC does not
    take a layer, no layer at all is to be changed, or the model is compiled.
    """
    _check_model(model)
    names = {name for name, _ in model.named_modules(remove_duplicate=False)}
    # Of several rules of one kind INC takes the last, and the selection the first.
    latest = reversed(config.local_config.items())
    rules = {_as_pattern(key, names): local for key, local in latest}
    if config.global_config is not None:
        rules.setdefault("*", config.global_config)
    configs: dict[tuple[str, str], BaseConfig] = {}
    everywhere: set[tuple[str, str]] = set()
    owners = _owners(config, model, rules)
    for name, slot in slots_by_name(model, owners).items():
        key = (name, type(slot.module).__name__)
        configs[key] = rules[owners[name]]
        if configs[key] is config.global_config:
            everywhere.add(key)
    _check_partners(model, configs)
    return ModelInfo(model, configs, everywhere)


def checked(model: nn.Module, configs: Mapping[tuple[str, str], BaseConfig]) -> Configs:
    """The configs of a model, before any algorithm is at work.

    Those of INC come last: its algorithms read some settings off the last one, whosesoever it is.
    ValueError if a layer cannot be compressed, or layers share a weight but no scheme.
    """
    check_codebooks(model, {name: config for (name, _), config in configs.items()})
    return OrderedDict(
        sorted(configs.items(), key=lambda item: not isinstance(item[1], CodebookConfig))
    )


def check_codebooks(model: nn.Module, configs: Mapping[str, BaseConfig]) -> dict[str, str]:
    """As :func:`checked`, for configs by name; returns ties as :func:`tied_weights` does."""
    schemes = {
        name: scheme
        for name, config in configs.items()
        if isinstance(config, CodebookConfig) and (scheme := config.layer_scheme) is not None
    }
    for slot in slots_by_name(model, schemes).values():
        check_slot(slot)
    return tied_weights(model, schemes)


def _owners(
    config: CodebookConfig, model: nn.Module, rules: Mapping[Pattern, BaseConfig]
) -> dict[str, Pattern]:
    """Which rule decides about which layer."""
    kept = dict(rules)
    unmatched = []
    while kept:
        # What leaves layers as they are may name any module.
        floating = [
            pattern
            for pattern, rule in kept.items()
            if isinstance(rule, CodebookConfig) and rule.layer_scheme is None
        ]
        try:
            return match(model, kept, floating)
        except NoMatchError as error:
            if kept[error.pattern] is config.global_config:
                raise
            # As it was written, not as the selection reads it.
            text = str(error).replace("'re:", "'", 1)
            warnings.warn(f"{type(config).__name__}: {text}", stacklevel=5)
            unmatched.append(text)
            del kept[error.pattern]
    raise ValueError(
        f"{type(config).__name__} is for no layer of the model: "
        f"{'; '.join(unmatched) or 'its white_list is None'}"
    )


def _check_model(model: nn.Module) -> None:
    if type(model).__name__ == "OptimizedModule":
        raise ValueError(
            "the model is compiled: its graph would pass by the observers, and its layers have "
            "other names; give model._orig_mod and compile the result"
        )
    for name in ("save", "qconfig"):
        if isinstance(getattr(model, name, None), nn.Module):
            raise ValueError(f"the model has a module {name!r}, a name that INC needs: rename it")


def _check_partners(model: nn.Module, configs: Mapping[tuple[str, str], BaseConfig]) -> None:
    hosts = {id(rule): rule for rule in configs.values() if not isinstance(rule, CodebookConfig)}
    taken = {key: set(rule.get_model_info(model=model)) for key, rule in hosts.items()}
    for key, rule in configs.items():
        if id(rule) in taken and key not in taken[id(rule)]:
            raise ValueError(
                f"layer {key[0]!r}: {type(rule).__name__} does not take a {key[1]}, and would "
                "leave it in float; give it codebooks, or None to leave it"
            )


def _as_pattern(key: Pattern, names: set[str]) -> Pattern:
    if not isinstance(key, str) or key in names or key == "*" or key.startswith("re:"):
        return key
    return layer_types().get(key, f"re:{key}")
