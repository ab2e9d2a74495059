"""INC's own algorithms, where they share a model with codebooks."""

from __future__ import annotations

import difflib
import re
import warnings

from neural_compressor.common.base_config import BaseConfig
from neural_compressor.torch.quantization import (
    AWQConfig,
    GPTQConfig,
    HQQConfig,
    RTNConfig,
    TEQConfig,
)
from neural_compressor.torch.utils.constants import LM_HEAD_NAMES

from vq_plugin.inc.base import CodebookConfig

# All others take the whole model, AutoRound too.
_WEIGHT_ONLY = (RTNConfig, GPTQConfig, AWQConfig, TEQConfig, HQQConfig)


def check_partner(config: BaseConfig) -> None:
    """Raises ``ValueError`` for an algorithm that cannot share a model with codebooks."""
    if not isinstance(config, (CodebookConfig, *_WEIGHT_ONLY)):
        known = ", ".join(kind.__name__ for kind in _WEIGHT_ONLY)
        raise ValueError(
            f"{type(config).__name__} cannot share a model with codebooks, as it takes all of it; "
            f"those that can are {known}"
        )


def names_layer(config: BaseConfig, rule: BaseConfig, name: str, kind: str) -> bool:
    """Whether it has a rule for a layer, by its type or, unlike INC's ``re.match``, whole name."""
    return any(
        _matches(key, name, kind)
        for key, local in config.local_config.items()
        if local is rule and key not in LM_HEAD_NAMES
    )


def is_exception(config: BaseConfig, rule: BaseConfig) -> bool:
    """Whether a rule is what INC itself adds to "all layers": not the heads of language models."""
    return any(config.local_config.get(key) is rule for key in LM_HEAD_NAMES)


def warn_of_unmatched(config: BaseConfig, layers: list[tuple[str, str]]) -> None:
    """Warns of names in a config of INC that are those of no layer which it can take."""
    names = [name for name, _ in layers]
    for key in config.local_config:
        # Those of language models are added by INC itself.
        if key not in LM_HEAD_NAMES and not any(_matches(key, *layer) for layer in layers):
            near = difflib.get_close_matches(str(key), names, n=3, cutoff=0.4) or names[:3]
            hint = f"the nearest names are {', '.join(near)}" if near else "the model has none"
            text = f"{type(config).__name__}: {key!r} matches no layer that it takes; {hint}"
            warnings.warn(text, stacklevel=4)


def _matches(key: object, name: str, kind: str) -> bool:
    if isinstance(key, str):
        return key == name or re.fullmatch(key, name) is not None
    return getattr(key, "__name__", None) == kind
