"""Codebooks on some layers, algorithms of INC on others."""

from __future__ import annotations

from itertools import product

from neural_compressor.common.base_config import BaseConfig, ComposableConfig
from torch import nn

from vq_plugin.inc.layers import Configs, ModelInfo, checked
from vq_plugin.inc.partners import check_partner, is_exception, names_layer, warn_of_unmatched


class Composition(ComposableConfig):  # type: ignore[misc]
    """``PQConfig(…) + RTNConfig(…)``.

    INC's own composition reads the names in white lists and nothing else. This one also takes
    types and what a config says of all layers: that counts where no other names the layer, and of
    two that speak of a layer alike the later decides.
    """

    def __init__(self, configs: list[BaseConfig]) -> None:
        for config in configs:
            check_partner(config)
        super().__init__(configs)

    def __add__(self, other: BaseConfig) -> Composition:
        others = other.config_list if isinstance(other, Composition) else [other]
        return Composition([*self.config_list, *others])

    def get_model_info(self, model: nn.Module) -> list[ModelInfo]:
        """The layers of each config, in their order."""
        return [self._info(config, model) for config in self.config_list]

    @staticmethod
    def _info(config: BaseConfig, model: nn.Module) -> ModelInfo:
        info = config.get_model_info(model=model)
        if isinstance(info, ModelInfo):
            return info
        warn_of_unmatched(config, info)
        mapping = config.to_config_mapping(model_info=info)
        named = {key: rule for key, rule in mapping.items() if names_layer(config, rule, *key)}
        broad = {
            key: mapping[key] if is_exception(config, mapping[key]) else config.global_config
            for key in info
            if config.global_config is not None and key not in named
        }
        return ModelInfo(model, {**broad, **named}, set(broad))

    def to_config_mapping(
        self, config_list: None = None, model_info: list[ModelInfo] | None = None
    ) -> Configs:
        """What INC asks next: the config of every layer, checked."""
        assert model_info
        broad: dict[tuple[str, str], BaseConfig] = {}
        named: dict[tuple[str, str], BaseConfig] = {}
        for info in model_info:
            for key, rule in info.configs.items():
                (broad if key in info.everywhere else named)[key] = rule
        return checked(model_info[0].model, {**broad, **named})

    def expand(self) -> list[Composition]:
        """One composition for each combination of what ``autotune`` would try of its parts."""
        expanded = [config.expand() for config in self.config_list]
        if all(len(configs) == 1 for configs in expanded):
            return [self]
        return [Composition(list(configs)) for configs in product(*expanded)]

    def to_json_file(self, filename: str) -> None:
        """Not there, a ValueError: INC reads a file of two algorithms as two of the first."""
        raise ValueError(
            f"{filename}: a sum of configs has no JSON form that INC could read back; put the "
            "others into the first by set_local, which has one"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Composition) and self.config_list == other.config_list

    __hash__ = None  # type: ignore[assignment]
