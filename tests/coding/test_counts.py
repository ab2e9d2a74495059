"""Counts as files keep them: in proportion, or by their logarithm."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vq_plugin.coding.counts import (
    LOGARITHMS,
    as_stored,
    from_stored,
    is_width,
    quantized_counts,
    width_of,
)

WIDTHS = (1, 4, 8, 16, *LOGARITHMS)


@given(
    st.lists(st.integers(0, 1 << 40), min_size=1, max_size=40).filter(any),
    st.sampled_from(WIDTHS),
)
def test_readers_have_what_writers_counted_by(counts: list[int], bits: int) -> None:
    tables = quantized_counts(np.array([counts, counts[::-1]]), bits)
    stored = as_stored(tables, bits)
    assert stored.min() >= 0
    assert stored.max() < 1 << width_of(bits)
    assert (from_stored(stored, bits) == tables).all()
    assert ((tables[0] > 0) == (np.array(counts) > 0)).all()
    assert tables[0][np.argmax(counts)] == tables[0].max()


@pytest.mark.parametrize(("bits", "worst"), [(20, 0.5), (21, 0.25), (22, 0.125)])
def test_logarithms_are_off_by_half_a_step(bits: int, worst: float) -> None:
    counts = np.random.default_rng(0).integers(1 << 6, 1 << 20, (3, 200))
    counts[:, 0] = 1 << 20
    tables = quantized_counts(counts, bits)
    off = np.log2(tables / tables[:, :1]) - np.log2(counts / counts[:, :1])
    assert np.abs(off).max() < worst + 1e-3


def test_other_widths_are_none() -> None:
    assert [bits for bits in range(-3, 40) if is_width(bits)] == [*range(1, 17), *LOGARITHMS]
