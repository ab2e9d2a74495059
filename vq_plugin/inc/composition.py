"""Codebooks on some layers, algorithms of INC on others."""

from __future__ import annotations

from collections import OrderedDict
from itertools import product
from typing import Any

from neural_compressor.common.base_config import BaseConfig, ComposableConfig
from torch import nn

from vq_plugin.inc.layers import ModelInfo, codebooks_first


class Composition(ComposableConfig):  # type: ignore[misc]
    """``PQConfig(…) + RTNConfig(…)``.

    INC's own composition reads the names in white lists and nothing else. This one also takes
    types and what a config says of all layers: that counts where no other names the layer, and of
    two that speak of a layer alike the later decides.
    """

    def get_model_info(self, model: nn.Module, *args: Any, **kwargs: Any) -> list[Any]:
        """The layers of each config, in their order."""
        return [config.get_model_info(model, *args, **kwargs) for config in self.config_list]

    def to_config_mapping(
        self, config_list: None = None, model_info: list[Any] | None = None
    ) -> OrderedDict[tuple[str, str], BaseConfig]:
        """The config of every layer.

        Args:
            config_list: Of INC; not used.
            model_info: From :meth:`get_model_info`.

        Returns:
            Configs by ``(name, type)``.
        """
        assert model_info is not None
        everywhere: OrderedDict[tuple[str, str], BaseConfig] = OrderedDict()
        named: OrderedDict[tuple[str, str], BaseConfig] = OrderedDict()
        for config, info in zip(self.config_list, model_info, strict=True):
            for key, rule in config.to_config_mapping(model_info=info).items():
                if isinstance(info, ModelInfo):
                    broad = key in info.everywhere
                else:
                    broad = rule is getattr(config, "_global_config", None)
                (everywhere if broad else named)[key] = rule
        return codebooks_first({**everywhere, **named})

    def expand(self) -> list[Composition]:
        """One composition for each combination of what ``autotune`` would try of its parts."""
        parts = [config.expand() for config in self.config_list]
        if all(len(configs) == 1 for configs in parts):
            return [self]
        return [Composition(list(configs)) for configs in product(*parts)]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Composition) and self.config_list == other.config_list

    __hash__ = None  # type: ignore[assignment]
