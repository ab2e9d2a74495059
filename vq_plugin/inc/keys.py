"""What says which layers a config is for: names, regular expressions and layer classes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from torch import nn

Key: TypeAlias = str | type[nn.Module]
WhiteList: TypeAlias = str | Sequence[Key] | None


def checked_key(where: str, key: Any) -> Key:
    """The key as it is.

    Raises:
        TypeError: If it names no layers.
    """
    if isinstance(key, str) or (isinstance(key, type) and issubclass(key, nn.Module)):
        return key
    raise TypeError(f"{where}: expected a layer's name or class, got {key!r}")


def checked_keys(where: str, white_list: WhiteList) -> list[Key]:
    """The keys of a white list that is not ``"*"``.

    Raises:
        TypeError: If it is no list, or one of its entries names no layers.
        ValueError: If it is empty.
    """
    if isinstance(white_list, str) or not isinstance(white_list, Iterable):
        raise TypeError(
            f"{where}: white_list is a list of layer names and types, or '*' for all layers; got "
            f"{white_list!r}"
        )
    keys = [checked_key(where, key) for key in white_list]
    if not keys:
        raise ValueError(f"{where}: white_list is empty; name layers or leave it out")
    return keys


def key_text(key: Key) -> str:
    """A name as it is, a layer class by its name."""
    return key if isinstance(key, str) else key.__name__
