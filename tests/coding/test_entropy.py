"""Coded codes: the same again, near their entropy, and by the documented integers alone."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.coding.test_ans import using
from vq_plugin.coding.bits import code_dtype, packed_size, unpack
from vq_plugin.coding.entropy import Coding, coded_size, decode, encode, frequencies


def codes_of(shape: tuple[int, ...], k: int, skew: float, seed: int = 0) -> NDArray[Any]:
    rng = np.random.default_rng(seed)
    share = np.exp(-skew * np.arange(k))
    values = rng.choice(k, size=shape, p=share / share.sum())
    return values.astype(code_dtype(k))


def entropy_bytes(codes: NDArray[Any]) -> float:
    """Of the codes by their frequencies in all of the layer."""
    _, counts = np.unique(codes, return_counts=True)
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def decoded_by_integers(
    data: NDArray[np.uint8], bits: int, tables: list[tuple[int, int]]
) -> list[list[int]]:
    """The documented format, read with Python's integers; symbols and counts of every table."""
    values = sum(k for _, k in tables)
    width = bits - 16 if bits > 16 else bits
    size = packed_size(values, 1 << width)
    stored = unpack(data[:size], values, 1 << width)
    if bits > 16:
        quarters, each = (1024, 1218, 1448, 1722), 1 << (width - 4)
        numbers = [0]
        for n in range((1 << width) - 1):
            numbers.append(quarters[n % each * (4 // each)] << n // each)
        stored = np.array([numbers[number] for number in stored.tolist()])
    words = [int(word) for word in data[size:].view("<u4")]
    state = 0
    for _ in range(2):
        state = state << 32 | (words.pop() if words else 0)
    found = []
    for length, k in tables:
        counts, stored = stored[:k].tolist(), stored[k:]
        shares = [count * (2**24 - k) // sum(counts) for count in counts]
        shares[counts.index(max(counts))] += 2**24 - k - sum(shares)
        starts = [sum(shares[:i]) + i for i in range(k)]
        own = []
        for _ in range(length):
            low = state % 2**24
            code = max(i for i in range(k) if starts[i] <= low)
            state = (state >> 24) * (shares[code] + 1) + low - starts[code]
            if state < 2**32 and words:
                state = state << 32 | words.pop()
            own.append(code)
        found.append(own)
    assert state == 0
    assert not words
    return found


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 40), st.integers(1, 40)),
    k=st.sampled_from([1, 2, 3, 5, 16, 17, 256, 300, 5000]),
    skew=st.sampled_from([0.0, 0.01, 0.5, 2.0, 8.0, 40.0]),
    seed=st.integers(0, 1000),
)
def test_codes_come_back(shape: tuple[int, int, int], k: int, skew: float, seed: int) -> None:
    codes = codes_of(shape, k, skew, seed)
    found = encode(codes, k)
    if found is None:
        return
    coding, data = found
    assert data.size < packed_size(codes.size, k)
    again = decode(data, coding, tuple(codes.shape), k)
    assert again.dtype == codes.dtype
    assert np.array_equal(again, codes)
    second = encode(codes, k)
    assert second is not None
    assert second[0] == coding
    assert np.array_equal(second[1], data)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 60), st.integers(2, 60)),
    k=st.sampled_from([2, 3, 16, 40]),
    levels=st.lists(st.floats(0.002, 1.0), min_size=2, max_size=7),
    seed=st.integers(0, 1000),
)
def test_codes_of_uneven_rows_and_subspaces_come_back(
    shape: tuple[int, int, int], k: int, levels: list[float], seed: int
) -> None:
    stages, rows, subspaces = shape
    rng = np.random.default_rng(seed)
    kept = rng.choice(levels, (stages, rows, 1)) * rng.choice(levels, subspaces)
    codes = rng.integers(k, size=shape) * (rng.random(shape) < kept)
    codes = codes.astype(code_dtype(k))
    found = encode(codes, k)
    size = packed_size(codes.size, k) if found is None else found[1].size
    assert size <= coded_size(codes, k) <= size + 16
    if found is not None:
        assert np.array_equal(decode(found[1], found[0], shape, k), codes)


def test_pruned_rows_and_subspaces_take_fewer_bytes_than_independent_codes() -> None:
    # Nonzeros by a rank-one model: a code's own probability is known, its entropy the bound.
    rng = np.random.default_rng(0)
    kept = rng.choice([0.001, 0.02, 0.1], (400, 1)) * rng.choice([0.05, 0.3, 1.0], 500)
    codes = (rng.random((1, 400, 500)) < kept).astype(np.uint8)
    bound = -(kept * np.log2(kept) + (1 - kept) * np.log2(1 - kept)).sum() / 8
    sides = (400 + 500) * np.log2(3) / 8
    found = encode(codes, 2)
    assert found is not None
    assert found[0].along == "class"
    assert found[1].size < 1.05 * bound + sides < 0.9 * entropy_bytes(codes)


@pytest.mark.parametrize("shape", [(1024, 256), (1024, 64)])
def test_rows_of_unlike_spread_have_classes_though_most_of_many_codes_are_rare(
    shape: tuple[int, int],
) -> None:
    """Such are equal steps that are longer where the outputs feel little."""
    rng = np.random.default_rng(0)
    spread = np.exp2(rng.normal(size=(shape[0], 1)))
    numbers = (rng.normal(size=shape) * spread).round().astype(int)
    codes = (numbers - numbers.min()).astype(np.uint8)[None]
    found = encode(codes, int(codes.max()) + 1)
    assert found is not None
    assert found[0].along == "class"
    # Of a Gaussian number and its step of known ratio.
    bound = sum(
        entropy_bytes((rng.normal(size=100_000) * each).round().astype(int)) / 100_000
        for each in spread[:, 0]
    )
    alone = entropy_bytes(codes)
    assert found[1].size < bound * shape[1] + 0.45 * (alone - bound * shape[1])


@pytest.mark.parametrize("k", [2, 16, 256])
@pytest.mark.parametrize("skew", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("shape", [(1, 1024, 1024), (3, 300, 70)])
def test_the_size_is_within_one_percent_of_the_entropy(
    k: int, skew: float, shape: tuple[int, ...]
) -> None:
    codes = codes_of(shape, k, skew)
    found = encode(codes, k)
    size = packed_size(codes.size, k) if found is None else found[1].size
    # Tables and the last words: what they add to small layers does not depend on the entropy.
    assert size <= 1.01 * entropy_bytes(codes) + 2 * k + 16
    assert size <= packed_size(codes.size, k)


def six_ways() -> dict[str, NDArray[Any]]:
    plain, skewed = codes_of((2, 96, 80), 8, 0.0, 1), codes_of((2, 96, 80), 8, 4.0, 2)
    odd_rows = (np.arange(96) % 2 == 1)[:, None]
    odd_subspaces = np.arange(80) % 2 == 1
    return {
        "layer": skewed,
        "stage": np.stack([plain[0], skewed[0]]),
        # Each has another commonest code: classes cannot tell them apart.
        "row": (skewed + np.arange(96)[:, None]) % 8,
        "subspace": (skewed + np.arange(80)) % 8,
        "class": np.where(odd_rows | odd_subspaces, skewed, plain),
        "previous": np.stack([plain[0], (plain[0] * 3 + skewed[1]) % 8]),
    }


@pytest.mark.parametrize("along", six_ways())
def test_tables_lie_where_the_codes_differ_and_integers_read_them(along: str) -> None:
    codes = six_ways()[along]
    found = encode(codes, 8)
    assert found is not None
    coding, data = found
    assert coding.along == along
    assert np.array_equal(decode(data, coding, tuple(codes.shape), 8), codes)
    groups: dict[str, list[NDArray[Any]]] = {
        "layer": [codes.flatten()],
        "stage": list(codes.reshape(2, -1)),
        "row": list(codes.reshape(2 * 96, -1)),
        "subspace": list(codes.transpose(0, 2, 1).reshape(2 * 80, -1)),
        "previous": [codes[0].flatten(), *(codes[1][codes[0] == c] for c in range(8))],
        # Odd ones are the first class. Both stages have the same subspaces.
        "class": [
            np.arange(1, 193) % 2,
            np.arange(1, 81) % 2,
            *(codes[:, a::2, b::2].flatten() for a, b in ((1, 1), (1, 0), (0, 1), (0, 0))),
        ],
    }
    expected = [group.tolist() for group in groups[along]]
    tables = [(len(group), 8) for group in expected]
    if along == "class":
        assert data[:2].tolist() == [2, 2]
        data = data[2:]
        tables[:2] = [(192, 2), (80, 2)]
    assert decoded_by_integers(data, coding.bits, tables) == expected


@given(st.lists(st.integers(0, (1 << 16) - 1), min_size=2, max_size=300).filter(any))
def test_frequencies_are_positive_and_sum_to_a_power_of_two(table: list[int]) -> None:
    found = frequencies(np.array(table))
    assert found.min() >= 1
    assert found.sum() == 1 << 24


@pytest.mark.parametrize("k", [16, 300])
def test_codes_of_the_stage_before_are_a_context_even_where_some_never_come(k: int) -> None:
    first = codes_of((1, 100, 100), k, 3.0)
    codes = np.concatenate([first, (first + 1) % k, (first * 5) % k])
    found = encode(codes, k)
    assert found is not None
    assert found[0].along == "previous" or k > 256  # its tables would be too large
    assert np.array_equal(decode(found[1], found[0], (3, 100, 100), k), codes)


def test_uniform_few_and_single_codes_stay_packed() -> None:
    assert encode(codes_of((1, 100, 100), 16, 0.0), 16) is None
    assert encode(codes_of((1, 5, 5), 16, 3.0), 16) is None
    assert encode(np.zeros((1, 500, 500), np.uint8), 1) is None
    assert encode(np.zeros((1, 0, 5), np.uint8), 4) is None


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 300), st.integers(1, 3), st.integers(1, 200), st.integers(1, 200), st.data())
def test_the_size_is_known_without_coding(
    k: int, stages: int, rows: int, subspaces: int, data: st.DataObject
) -> None:
    random = np.random.default_rng(data.draw(st.integers(0, 1 << 32)))
    shares = np.exp(random.normal(size=k) * data.draw(st.floats(0, 8)))
    codes = random.choice(k, (stages, rows, subspaces), p=shares / shares.sum())
    codes = codes.astype(code_dtype(k))
    found = encode(codes, k)
    real = packed_size(codes.size, k) if found is None else found[1].size
    assert real <= coded_size(codes, k) <= real + 16
    if found is None:
        assert coded_size(codes, k) == real


def test_plain_python_makes_the_same_bytes_and_reads_them() -> None:
    for along, codes in six_ways().items():
        codes = codes.astype(np.uint8)
        with using(native=True):
            found = encode(codes, 8)
        with using(native=False):
            again = encode(codes, 8)
            assert found is not None
            assert again is not None
            assert again[0] == found[0]
            assert found[0].along == along
            assert again[1].tobytes() == found[1].tobytes()
            assert np.array_equal(decode(found[1], found[0], codes.shape, 8), codes)


@settings(max_examples=500, deadline=None)
@given(
    data=st.binary(max_size=120),
    along=st.sampled_from(["layer", "stage", "row", "subspace", "previous", "class"]),
    bits=st.integers(-1, 24),
    k=st.integers(-1, 40),
    shape=st.tuples(st.integers(-1, 3), st.integers(0, 9), st.integers(0, 9)),
)
def test_any_bytes_are_codes_below_k_or_an_error(
    data: bytes, along: str, bits: int, k: int, shape: tuple[int, int, int]
) -> None:
    raw = np.frombuffer(data, np.uint8)
    try:
        codes = decode(raw, Coding(along, bits), shape, k)  # type: ignore[arg-type]
    except ValueError:
        return
    assert tuple(codes.shape) == shape
    assert int(codes.max()) < k
