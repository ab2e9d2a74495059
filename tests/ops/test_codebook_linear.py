"""The kernels against ``F.linear`` with the decoded weight, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import vq_plugin as vq
from tests.ops.problems import Operands, operands
from vq_plugin import ops
from vq_plugin.codebook import decode


def decoded(at: Operands) -> Tensor:
    """The weight in float64, from the definition in vq_plugin.codebook."""
    dtype = at.settings["codebook_dtype"]
    return decode(
        at.codes,
        at.codebooks.to(dtype).double(),
        None if at.scale is None else at.scale.to(dtype).double(),
        shape=(at.settings["out_features"], at.input.shape[-1]),
        axis="out" if at.settings["along_out"] else "in",
        group=at.settings["group"],
    )


def run(at: Operands, precision: ops.Precision = "exact") -> Tensor:
    codes = at.codes
    if at.packs:
        codes = ops.pack_codes(codes, along_out=at.settings["along_out"])
    return ops.codebook_linear(
        at.input, codes, at.codebooks, at.scale, at.bias, precision=precision, **at.settings
    )


@pytest.mark.usefixtures("each_isa")
@settings(max_examples=150, deadline=None)
@given(operands())
def test_exact_kernels(at: Operands) -> None:
    weight = decoded(at)
    expected = functional.linear(
        at.input.double(), weight, None if at.bias is None else at.bias.double()
    )
    found = run(at)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    # What float32 sums of so many products may lose, whatever their order.
    size = functional.linear(at.input.double().abs(), weight.abs()) + 8
    stages = at.codebooks.shape[0]
    assert bool(((found.double() - expected).abs() <= 2e-6 * stages * size).all())


@pytest.mark.usefixtures("each_isa")
@settings(max_examples=100, deadline=None)
@given(operands())
def test_fast_kernels_stay_within_the_documented_bound(at: Operands) -> None:
    exact, fast = run(at), run(at, "fast")
    stages, _, _, _, dim = at.codebooks.shape
    centers = at.codebooks.abs().max().double()
    largest = at.input.abs().amax(-1, keepdim=True).double() if at.input.numel() else 0.0
    scale = 1.0 if at.scale is None else float(at.scale.max())
    inputs = at.input.shape[-1]
    if dim == 1:
        # Half a step of 1/127 for the input, of 2/127 for the center, which moves by as much, and
        # their product.
        bound = inputs * largest * centers * (0.5 / 127 + 2 / 127 + 2e-4)
    else:
        # Half a step of 2/126.9 of a table's largest entry, one entry for each subspace.
        bound = -(-inputs // dim) * largest * centers * dim * (1 / 126.9 + 1e-4)
    bound = bound * stages * scale * 1.01 + 1e-5
    assert bool(((exact - fast).abs() <= bound).all())


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("precision", ["exact", "high", "fast"])
@pytest.mark.parametrize(
    "scheme",
    [
        vq.PQ(k=16, dim=4),
        vq.PQ(k=16, dim=4, axis="out"),
        vq.PQ(k=64, dim=8),
        vq.PQ(k=64, dim=8, axis="out"),
        vq.KM(k=16),
        vq.KM(k=64),
    ],
    ids=str,
)
def test_the_same_bytes_on_one_thread_and_on_two(
    scheme: vq.Scheme, precision: ops.Precision
) -> None:
    layer = vq.compress(torch.nn.Linear(512, 384), scheme)
    layer.precision = precision
    threads = torch.get_num_threads()
    try:
        for batch in (1, 7, 64):
            x = torch.randn(batch, 512)
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                with torch.no_grad():
                    results.append(layer._multiply(x))
            assert torch.equal(results[0], results[1])
            assert torch.equal(results[0], results[2])
    finally:
        torch.set_num_threads(threads)


@settings(max_examples=50, deadline=None)
@given(operands(), st.sampled_from([torch.float64, torch.float16, torch.bfloat16]))
def test_other_dtypes_run_in_torch(at: Operands, dtype: torch.dtype) -> None:
    values = [at.input, at.codebooks, at.scale, at.bias]
    input, codebooks, scale, bias = (None if v is None else v.to(dtype) for v in values)
    assert input is not None
    assert codebooks is not None
    found = ops.codebook_linear(input, at.codes, codebooks, scale, bias, **at.settings)
    assert found.dtype == dtype
    assert found.shape == (*at.input.shape[:-1], at.settings["out_features"])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("codes", lambda t: t[:, :-1]),
        ("codes", lambda t: t[0]),
        ("codebooks", lambda t: t[:, :, :-1]),
        ("codebooks", lambda t: t[0]),
        ("codebooks", lambda t: t[:, :, :, :0]),
        ("scale", lambda t: t[:-1]),
        ("bias", lambda t: t[:-1]),
        ("bias", lambda t: t[None]),
        ("input", lambda t: t[..., :-5]),
    ],
)
def test_shapes_that_do_not_fit_are_errors(name: str, change) -> None:  # type: ignore[no-untyped-def]
    tensors = {
        "input": torch.randn(3, 40),
        "codes": torch.randint(16, (1, 24, 10), dtype=torch.uint8),
        "codebooks": torch.randn(1, 1, 10, 16, 4),
        "scale": torch.rand(24),
        "bias": torch.randn(24),
    }
    ops.codebook_linear(**tensors, out_features=24)
    tensors[name] = change(tensors[name])
    with pytest.raises(RuntimeError):
        ops.codebook_linear(**tensors, out_features=24)


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_fast_layer_of_single_weights_passes_nan_on(value: float) -> None:
    layer = vq.compress(torch.nn.Linear(64, 48), vq.KM(k=16))
    layer.precision = "fast"
    x = torch.randn(5, 64)
    x[3, 17] = value
    y = layer(x)
    assert not bool(y[3].isfinite().any())
    assert bool(y[[0, 1, 2, 4]].isfinite().all())


def test_codes_beyond_the_codebook_do_not_crash() -> None:
    codes = torch.full((1, 24, 10), 255, dtype=torch.uint8)
    for along_out in (False, True):
        features = {"out_features": 40 if along_out else 24, "along_out": along_out}
        x = torch.randn(5, 24 if along_out else 40)
        ops.codebook_linear(x, codes, torch.randn(1, 1, 10, 100, 4), **features)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.integers(0, 70), st.integers(0, 40), st.booleans())
def test_packing_is_undone_and_the_same_in_torch(
    stages: int, rows: int, subspaces: int, along_out: bool
) -> None:
    from vq_plugin.ops.packing import pack, unpack

    codes = torch.randint(16, (stages, rows, subspaces), dtype=torch.uint8)
    packed = ops.pack_codes(codes, along_out=along_out)
    assert torch.equal(packed, pack(codes, along_out))
    again = ops.unpack_codes(packed, rows=rows, subspaces=subspaces, along_out=along_out)
    assert torch.equal(again, codes)
    assert torch.equal(unpack(packed, rows, subspaces, along_out), codes)
