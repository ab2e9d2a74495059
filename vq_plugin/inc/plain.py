"""Configs as plain values, as they are in dicts and JSON files."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from neural_compressor.common.base_config import BaseConfig, config_registry
from neural_compressor.torch.quantization.config import FRAMEWORK_NAME

from vq_plugin.inc.base import CodebookConfig
from vq_plugin.schemes import Scheme


class Settings(dict[str, Any]):
    """Plain settings that also answer what INC asks of every config of a model.

    The table of operators that INC prints after each of its own algorithms has a column for every
    ``dtype``, ``bits`` and ``group_size``, codebook layers included. These are no settings of
    theirs, so that JSON files and comparisons do without them.
    """

    def __init__(self, settings: Mapping[str, Any], config: CodebookConfig) -> None:
        super().__init__(settings)
        self._config = config

    def __missing__(self, key: str) -> Any:
        scheme = self._config.layer_scheme
        match key:
            case "dtype":
                return "fp32" if scheme is None else scheme.method
            case "bits":
                # Text for the title of the column.
                return str(scheme)
            case "group_size":
                return getattr(scheme, "dim", None) or 1
        raise KeyError(key)


def plain(value: Any) -> Any:
    """A setting or key, or a list of them; schemes are texts, classes of layers their names."""
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    if isinstance(value, type):
        return value.__name__
    return str(value) if isinstance(value, Scheme) else value


def local_to_dict(config: BaseConfig, within: type[BaseConfig]) -> dict[str, Any]:
    """A local config; one of another class than the config it is in goes under its name."""
    settings: dict[str, Any] = config.to_dict()
    if not isinstance(config, CodebookConfig):
        # That adds what is no setting, and turns a white list into rules.
        names = [name for name in config.params_list if name != "white_list"]
        settings = {name: getattr(config, name, None) for name in names}
    return settings if config.name == within.name else {config.name: settings}


def local_from_dict(settings: Any, within: type[BaseConfig]) -> BaseConfig | None:
    """Reads what :func:`local_to_dict` gives, or ``None``."""
    if settings is None:
        return None
    algorithms = config_registry.get_cls_configs()[FRAMEWORK_NAME]
    if isinstance(settings, Mapping) and len(settings) == 1:
        ((algorithm, values),) = settings.items()
        if algorithm in algorithms:
            return algorithms[algorithm].from_dict(values)
    return within.from_dict(settings)


def known(given: Mapping[str, Any], names: Sequence[str], where: str) -> dict[str, Any]:
    """The settings as given; raises ``ValueError`` for an unknown one."""
    for key in given:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where}: {key!r} is unknown{hint} (known: {', '.join(names)})")
    return dict(given)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """What reads an object of a JSON file; raises ``ValueError`` for a key that is there twice."""
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key!r} is there twice")
    return dict(pairs)
