"""The settings of one layer as INC's statistics read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vq_plugin.inc.config import VQConfig


class Settings(dict[str, Any]):
    """Plain settings that also answer what INC asks of every config of a model.

    The table of operators that INC prints after each of its own algorithms reads ``dtype``,
    ``bits`` and ``group_size`` of all layers, codebook layers too. These are no settings of
    theirs, so that JSON files and comparisons do without them.
    """

    def __init__(self, settings: Mapping[str, Any], config: VQConfig) -> None:
        super().__init__(settings)
        self._config = config

    def __missing__(self, key: str) -> Any:
        scheme = self._config.layer_scheme
        match key:
            case "dtype":
                return "fp32" if scheme is None else scheme.method
            case "bits":
                return str(scheme)
            case "group_size":
                return getattr(scheme, "dim", None) or 1
        raise KeyError(key)
