"""Int8 centers: the nearest on their grid, held exactly by every float dtype and by a file."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from vq_plugin.format.weights import from_int8
from vq_plugin.rounding import round_centers, to_int8

# Every size that float16 has, its smallest numbers included, and codebooks of zeros.
CENTERS = st.one_of(
    st.just(0.0),
    *(
        st.floats(-largest, largest, width=32)
        for largest in (65024.0, 1.0, 2.0**-14, 2.0**-18, 2.0**-24)
    ),
)
CODEBOOKS = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=CENTERS
)


def nearest(codebook: np.ndarray) -> tuple[np.ndarray, int]:
    """Integers and the exponent of one codebook, by trying one exponent after the other."""
    for exponent in range(-24, 10):
        integers = np.rint(codebook.astype(np.float64) * 2.0**-exponent)
        if np.abs(integers).max() <= 127:
            return integers, exponent
    raise AssertionError("beyond float16")


def bits(values: Tensor) -> list[int]:
    found: list[int] = values.contiguous().view(torch.int16).flatten().tolist()
    return found


@given(CODEBOOKS)
def test_centers_go_to_the_nearest_multiple_of_the_least_power_of_two(array: np.ndarray) -> None:
    rounded = round_centers(torch.from_numpy(array), "int8")
    integers, exponents = to_int8(torch.from_numpy(array))
    assert rounded.dtype == torch.float16
    assert (integers.dtype, exponents.dtype) == (torch.int8, torch.int8)
    assert (integers.shape, exponents.shape) == (array.shape, array.shape[:-2])
    for place in np.ndindex(array.shape[:-2]):
        expected, exponent = nearest(array[place])
        assert int(exponents[place]) == exponent
        np.testing.assert_array_equal(integers[place].numpy(), expected)
        np.testing.assert_array_equal(rounded[place].numpy(), expected * 2.0**exponent)
        assert np.abs(rounded[place].double().numpy() - array[place]).max() <= 2.0**exponent / 2


@given(CODEBOOKS)
def test_integers_and_exponents_give_the_same_bits_back(array: np.ndarray) -> None:
    rounded = round_centers(torch.from_numpy(array), "int8")
    again = from_int8(*(part.numpy() for part in to_int8(rounded)))
    assert bits(torch.from_numpy(again)) == bits(rounded)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        # A model may change its dtype: nothing moves.
        assert bits(round_centers(rounded.to(dtype), "int8")) == bits(rounded)


@given(CODEBOOKS)
def test_zeros_stay_and_no_zero_has_a_sign(array: np.ndarray) -> None:
    rounded = round_centers(torch.from_numpy(array), "int8")
    assert bool((rounded[torch.from_numpy(array) == 0] == 0).all())
    assert not bool(rounded[rounded == 0].signbit().any())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 65280.0, 1e30])
def test_what_int8_cannot_hold_is_seen(bad: float) -> None:
    codebooks = torch.tensor([[[1.0], [bad]], [[1.0], [2.0]]])
    assert round_centers(codebooks, "int8").isfinite().tolist()[1] == [[True], [True]]
    assert not round_centers(codebooks, "int8")[0, 1].isfinite()
    with pytest.raises(ValueError, match="NaN, infinite or beyond 65024"):
        to_int8(codebooks)


@pytest.mark.parametrize(
    ("integers", "exponents", "message"),
    [
        (torch.zeros(2, 3, 1), torch.zeros(2, dtype=torch.int8), "of float32"),
        (torch.zeros(2, 3, 1, dtype=torch.int8), torch.zeros(2), "of float32"),
        (torch.zeros(2, 3, 1, dtype=torch.int8), torch.zeros(1, dtype=torch.int8), "do not fit"),
        (torch.full((1, 1), -128, dtype=torch.int8), torch.tensor(0, dtype=torch.int8), "range"),
        (torch.ones(1, 1, dtype=torch.int8), torch.tensor(-25, dtype=torch.int8), "range"),
        (torch.ones(1, 1, dtype=torch.int8), torch.tensor(10, dtype=torch.int8), "range"),
    ],
)
def test_what_no_codebook_gave_is_refused(
    integers: Tensor, exponents: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        from_int8(integers.numpy(), exponents.numpy())
