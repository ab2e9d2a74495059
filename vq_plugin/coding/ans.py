"""Streams of symbols by their frequencies: the usual ANS coder, see ``docs/format.md``.

It has 64 bits of state, words of 32, and frequencies of 24. Symbols come back in the order in which
they are read only if they were written backwards.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vq_plugin.coding import plain
from vq_plugin.extension import extension

_MASK = 0xFFFFFFFF
# So many symbols are written at a time, and may take a word each.
_RUN = 1 << 20


def coder() -> ModuleType:
    """What packs bits and codes symbols: the extension, or the same in Python."""
    return extension() or plain


class Writer:
    """Makes a stream, from its last symbol to its first.

    Example:
        >>> frequencies = np.array([1, (1 << 24) - 1], np.uint32)
        >>> writer = Writer()
        >>> writer.push(np.array([1, 0, 1], np.uint8), frequencies)
        >>> words, symbols = writer.words(), np.empty(3, np.uint8)
        >>> reader = Reader(words)
        >>> reader.pop(symbols, frequencies)
        >>> words.tolist(), symbols.tolist(), reader.finished
        ([16777218], [1, 0, 1], True)
    """

    def __init__(self) -> None:
        self._state = 0
        self._parts: list[NDArray[np.uint32]] = []

    def push(self, symbols: NDArray[Any], frequencies: NDArray[np.uint32]) -> None:
        """Puts symbols, integers of 1, 2 or 4 bytes, before those that are there.

        The frequencies, ``(k,)``, are positive and sum to 2^24; ``ValueError`` otherwise, and for a
        symbol that is not below ``k``.
        """
        words = np.empty(min(len(symbols), _RUN) + 1, np.uint32)
        for start in reversed(range(0, len(symbols), _RUN)):
            part = np.ascontiguousarray(symbols[start : start + _RUN])
            self._state, written = coder().ans_push(frequencies, part, words, self._state)
            self._parts.append(words[:written].copy())

    def words(self) -> NDArray[np.uint32]:
        """The stream so far, uint32; the last word is not 0."""
        rest = [self._state & _MASK, self._state >> 32]
        while rest and rest[-1] == 0:
            rest.pop()
        return np.concatenate([*self._parts, np.array(rest, np.uint32)])


class Reader:
    """Reads the words, uint32, that a :class:`Writer` made, from the first symbol to the last.

    No stream ends in a word of 0: that is a ``ValueError``.
    """

    def __init__(self, words: NDArray[np.uint32]) -> None:
        self._words, self._state = words, 0
        for word in words[:-3:-1].tolist():
            self._state = self._state << 32 | word
        self._left = max(0, len(words) - 2)
        if len(words) and not words[-1]:
            raise ValueError("the stream ends in a word of 0")

    def pop(self, symbols: NDArray[Any], frequencies: NDArray[np.uint32]) -> None:
        """Fills ``symbols``, contiguous integers of 1, 2 or 4 bytes, with the next ones.

        Any stream gives some; one that has ended gives the first symbols for ever.
        ``ValueError`` if the frequencies are none.
        """
        self._state, self._left = coder().ans_pop(
            frequencies, self._words, self._state, self._left, symbols
        )

    @property
    def finished(self) -> bool:
        """Whether nothing is left."""
        return self._state == 0 and self._left == 0
