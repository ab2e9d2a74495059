"""Streams: the extension, plain Python and constriction write and read the same ones."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import constriction
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vq_plugin.coding.ans import Reader, Writer, coder
from vq_plugin.extension import extension

Group = tuple[NDArray[Any], NDArray[np.uint32]]

WHOLE = 1 << 24
# Around the widths of symbols, and of the extension's buckets.
CENTERS = [2, 3, 5, 16, 255, 256, 257, 4097, 32768, 32769, 65536]
both = pytest.mark.parametrize("native", [True, False], ids=["extension", "plain"])


@contextmanager
def using(native: bool) -> Iterator[None]:
    """The extension, or plain Python; skipped where there is no extension."""
    if native and extension() is None:
        pytest.skip("no extension here")
    with pytest.MonkeyPatch.context() as patch:
        if not native:
            patch.setattr("vq_plugin.coding.ans.extension", lambda: None)
        yield


@st.composite
def tables(draw: st.DrawFn) -> NDArray[np.uint32]:
    """Frequencies from equal ones to one that has nearly everything."""
    k = draw(st.sampled_from(CENTERS))
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    shares = random.exponential(size=k) ** draw(st.sampled_from([0.0, 1.0, 8.0, 60.0]))
    shares = shares / shares.sum()
    frequencies = np.floor(shares * (WHOLE - k)).astype(np.int64) + 1
    frequencies[shares.argmax()] += WHOLE - frequencies.sum()
    return frequencies.astype(np.uint32)


@st.composite
def groups(draw: st.DrawFn) -> Group:
    """Symbols as often as their frequencies say, or all equally, or a run of one; or none."""
    frequencies = draw(tables())
    k = len(frequencies)
    random = np.random.default_rng(draw(st.integers(0, 1 << 32)))
    count = draw(st.sampled_from([0, 1, 2, 3, 50, 4000]))
    shares = draw(
        st.sampled_from(
            [frequencies / WHOLE, np.full(k, 1 / k), np.eye(1, k, int(random.integers(k)))[0]]
        )
    )
    dtype = np.uint8 if k <= 256 else np.int16 if k <= 1 << 15 else np.int32
    return random.choice(k, count, p=shares).astype(dtype), frequencies


def written(parts: list[Group]) -> NDArray[np.uint32]:
    writer = Writer()
    for symbols, frequencies in reversed(parts):
        writer.push(symbols, frequencies)
    return writer.words()


def read(words: NDArray[np.uint32], parts: list[Group]) -> tuple[list[list[int]], bool]:
    """Symbols of every group, and whether the stream ends there."""
    reader, found = Reader(words), []
    for symbols, frequencies in parts:
        again = np.empty_like(symbols)
        reader.pop(again, frequencies)
        found.append(again.tolist())
    return found, reader.finished


def model(frequencies: NDArray[np.uint32]) -> Any:
    # constriction scales by (2^24 - k) / sum, here exactly 1, and adds 1 to each.
    return constriction.stream.model.Categorical(frequencies.astype(float) - 1, perfect=False)


def written_by_constriction(parts: list[Group]) -> NDArray[np.uint32]:
    other = constriction.stream.stack.AnsCoder()
    for symbols, frequencies in reversed(parts):
        other.encode_reverse(symbols.astype(np.int32), model(frequencies))
    words: NDArray[np.uint32] = other.get_compressed()
    return words


def read_by_constriction(
    words: NDArray[np.uint32], parts: list[Group]
) -> tuple[list[list[int]], bool]:
    other = constriction.stream.stack.AnsCoder(words)
    found = [other.decode(model(table), len(symbols)).tolist() for symbols, table in parts]
    return found, other.is_empty()


@both
@settings(max_examples=200)
@given(parts=st.lists(groups(), max_size=4))
def test_streams_are_those_of_constriction_byte_by_byte(native: bool, parts: list[Group]) -> None:
    with using(native):
        words = written(parts)
        assert words.dtype == np.uint32
        assert words.tobytes() == written_by_constriction(parts).tobytes()
        expected = [symbols.tolist() for symbols, _ in parts], True
        assert read(words, parts) == expected == read_by_constriction(words, parts)


def test_long_streams_have_no_seams() -> None:
    frequencies = np.array([WHOLE - 90, 50, 40], np.uint32)
    symbols = (np.random.default_rng(0).random((1 << 20) + 5) < 0.01).astype(np.uint8)
    parts = [(symbols, frequencies)]
    words = written_by_constriction(parts)
    for native in (True, False):
        with using(native):
            assert written(parts).tobytes() == words.tobytes()
            assert read(words, parts) == ([symbols.tolist()], True)


@both
@settings(max_examples=200)
@given(
    words=st.lists(st.integers(0, (1 << 32) - 1), max_size=40),
    parts=st.lists(groups(), max_size=3),
)
def test_any_words_are_read_as_constriction_reads_them(
    native: bool, words: list[int], parts: list[Group]
) -> None:
    stream = np.array(words, np.uint32)
    readers: list[Callable[..., Any]] = [read, read_by_constriction]
    with using(native):
        if words and words[-1] == 0:
            for each in readers:
                with pytest.raises(ValueError, match=r"zero|word of 0"):
                    each(stream, parts)
        else:
            ours, theirs = (each(stream, parts) for each in readers)
            assert ours == theirs


@both
@pytest.mark.parametrize(
    "frequencies", [[WHOLE], [], [0, WHOLE], [WHOLE, 0], [1, WHOLE], [5, 5], [1 << 31] * 2]
)
def test_what_are_no_frequencies_is_refused(native: bool, frequencies: list[int]) -> None:
    table = np.array(frequencies, np.uint32)
    with using(native):
        with pytest.raises(ValueError, match="these are no frequencies"):
            Writer().push(np.zeros(3, np.uint8), table)
        with pytest.raises(ValueError, match="these are no frequencies"):
            Reader(np.array([7], np.uint32)).pop(np.zeros(3, np.uint8), table)


@both
def test_a_symbol_without_a_frequency_is_refused(native: bool) -> None:
    table = np.array([5, WHOLE - 5], np.uint32)
    with using(native):
        for symbols in (np.array([0, 2, 1], np.uint8), np.array([0, 70_000], np.int32)):
            with pytest.raises(ValueError, match="a symbol has no frequency"):
                Writer().push(symbols, table)


def test_the_extension_refuses_buffers_that_would_lead_it_astray() -> None:
    module = extension()
    if module is None:
        pytest.skip("no extension here")
    table, words = np.array([5, WHOLE - 5], np.uint32), np.zeros(4, np.uint32)
    symbols = np.zeros(4, np.uint8)
    for arguments in (
        (table, symbols, words, 0),  # a word too few
        (table, symbols.astype(np.int64), np.zeros(9, np.uint32), 0),
        (table.astype(np.int64), symbols, np.zeros(9, np.uint32), 0),
        (table, symbols, np.zeros(9, np.int64), 0),
        (table, np.zeros(8, np.uint8)[::2], np.zeros(9, np.uint32), 0),
    ):
        with pytest.raises(ValueError, match=r"items of another width|contiguous"):
            module.ans_push(*arguments)
    for left in (-1, 5):
        with pytest.raises(ValueError, match="items of another width"):
            module.ans_pop(table, words, 0, left, symbols)
    for bits, packed in ((9, 5), (0, 0), (4, 3), (4, 1)):
        with pytest.raises(ValueError, match="another number of bytes"):
            module.pack_bits(symbols, bits, np.zeros(packed, np.uint8))
        with pytest.raises(ValueError, match="another number of bytes"):
            module.unpack_bits(np.zeros(packed, np.uint8), bits, symbols)
    frozen = bytes(2)
    with pytest.raises(BufferError):
        module.pack_bits(symbols, 4, frozen)


def test_the_variable_turns_the_extension_off(monkeypatch: pytest.MonkeyPatch) -> None:
    extension.cache_clear()
    with monkeypatch.context() as patch:
        patch.setenv("VQ_PLUGIN_ISA", "none")
        assert coder().__name__ == "vq_plugin.coding.plain"
    extension.cache_clear()
