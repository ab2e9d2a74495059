"""The native fits against the same fits in torch and numpy, and plain oracles."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import vq_plugin as vq
from tests.fit.problems import correlated_inputs, moments_of
from vq_plugin.fit.batch import Batch
from vq_plugin.fit.exchange import improve
from vq_plugin.fit.kernels import best_kernels
from vq_plugin.fit.kernels.native import _cell_map
from vq_plugin.fit.optimal import optimal_starts
from vq_plugin.fit.output.calibrated import calibrate
from vq_plugin.fit.output.feedback import descend
from vq_plugin.fit.output.objective import Objective, Quantized
from vq_plugin.fit.scalar import fit_scalar
from vq_plugin.fit.vector import fit_vector, plus_plus
from vq_plugin.ops import fit, isa, isas, use_isa
from vq_plugin.ops.fit import operators

pytestmark = pytest.mark.skipif(not fit.native_fits(), reason="no native kernels here")

InTorch = Callable[[Callable[[], object]], object]


@pytest.fixture
def in_torch(monkeypatch: pytest.MonkeyPatch) -> InTorch:
    """Runs a function without the native kernels."""

    def run(function: Callable[[], object]) -> object:
        with monkeypatch.context() as patch:
            patch.setattr(fit, "native_fits", lambda: False)
            return function()

    return run


def points(books: int, n: int, dim: int, *, weighted: bool, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(books, n, dim, generator=rng)
    importance = torch.rand(x.shape, generator=rng).pow(3) + 1e-3 if weighted else None
    return Batch(x, importance)


def error(batch: Batch, centers: Tensor) -> Tensor:
    """Weighted squared error of every book, in float64."""
    square = (batch.x.unsqueeze(2) - centers.unsqueeze(1)).double().square()
    if batch.importance is not None:
        square *= batch.importance.unsqueeze(2)
    return square.sum(3).amin(2).sum(1)


# Sizes around whole registers and tiles.
SHAPES = [(3, 200, 4, 16), (2, 64, 1, 7), (1, 65, 8, 33), (4, 1, 3, 2), (2, 150, 13, 256)]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("books", "n", "dim", "k"), SHAPES)
def test_codes_errors_and_means_are_those_of_torch(
    books: int, n: int, dim: int, k: int, weighted: bool, in_torch: InTorch
) -> None:
    batch = points(books, n, dim, weighted=weighted)
    centers = torch.randn(books, k, dim)

    def run() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        codes, distance = best_kernels().assign_with_error(batch, centers)
        return codes, distance, *best_kernels().means(batch, codes, k)

    ours, theirs = run(), in_torch(run)
    assert torch.equal(ours[0], theirs[0])
    for mine, other in zip(ours[1:], theirs[1:], strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dim", [1, 4, 11])
def test_the_same_draws_give_the_same_first_centers(
    dim: int, weighted: bool, in_torch: InTorch
) -> None:
    batch = points(6, 300, dim, weighted=weighted)

    def run() -> Tensor:
        return plus_plus(batch, 12, torch.Generator().manual_seed(7))

    theirs = in_torch(run)
    assert isinstance(theirs, Tensor)
    assert torch.allclose(run(), theirs, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("n", "k"), [(3000, 16), (500, 16), (200, 60)])
def test_whole_fits_are_as_good_as_in_torch(
    n: int, k: int, weighted: bool, in_torch: InTorch
) -> None:
    batch = points(8, n, 4, weighted=weighted)
    theirs = in_torch(lambda: fit_vector(batch, k, 3))
    assert isinstance(theirs, tuple)
    centers, codes = fit_vector(batch, k, 3)
    assert codes.dtype == theirs[1].dtype
    assert float(error(batch, centers).sum() / error(batch, theirs[0]).sum()) < 1.005
    # From the same first centers most books end in the same place.
    if n > 64 * k:
        assert float((codes == theirs[1]).float().mean()) > 0.9


def test_every_move_of_the_exchange_lowers_the_error() -> None:
    for weighted in (False, True):
        batch = points(5, 120, 3, weighted=weighted, seed=1)
        codes = torch.randint(20, (5, 120), dtype=torch.uint8)
        means, _ = best_kernels().means(batch, codes, 20)
        better, _ = improve(batch, codes, means)
        moved = operators().exchange_codes(batch.x, batch.importance, codes, 20, sweeps=1)
        again = operators().exchange_codes(batch.x, batch.importance, better, 20, sweeps=1)
        total = [float(_own_error(batch, c).sum()) for c in (codes, moved, better, again)]
        assert total[0] > total[1] >= total[2] * (1 - 1e-6)
        assert total[3] <= total[2] * (1 + 1e-6)


def _own_error(batch: Batch, codes: Tensor) -> Tensor:
    means, _ = best_kernels().means(batch, codes, 20)
    own = means.gather(1, codes.long().unsqueeze(2).expand(-1, -1, batch.x.shape[2]))
    square = (batch.x - own).double().square()
    return square if batch.importance is None else square * batch.importance


@pytest.mark.parametrize(
    "scheme",
    [
        vq.KM(k=16, codebook_dtype="float32"),
        vq.KM(k=200, codebook_dtype="float32"),
        vq.PQ(k=16, dim=4, codebook_dtype="float32"),
        vq.PQ(k=100, dim=7, codebooks="tensor", codebook_dtype="float32"),
        vq.PQ(k=32, dim=4, scale="row", codebook_dtype="float32"),
        vq.RQ(k=24, stages=2, dim=8, codebook_dtype="float32"),
    ],
    ids=str,
)
def test_the_instruction_set_does_not_change_a_byte(scheme: vq.Scheme) -> None:
    weight = torch.randn(301, 207, generator=torch.Generator().manual_seed(3))
    before = isa()
    assert before is not None
    results = []
    try:
        for name in isas():
            use_isa(name)
            small = vq.quantize_weight(weight, scheme)
            results.append((small.codes, small.codebooks))
    finally:
        use_isa(before)
    for codes, codebooks in results[1:]:
        assert torch.equal(codes, results[0][0])
        assert torch.equal(codebooks, results[0][1])


@pytest.mark.parametrize("weighted", [False, True])
def test_cells_hold_the_mass_and_the_moment_of_their_values(weighted: bool) -> None:
    values = torch.randn(70_000) * torch.logspace(-6, 2, 70_000)
    mass = torch.rand(len(values)) if weighted else None
    offset, shift = _cell_map(values[::7].contiguous())
    cells = operators().scalar_cells(values, mass, offset, shift)
    ones = torch.ones(len(values)) if mass is None else mass
    assert float(cells[:, 0].sum()) == pytest.approx(float(ones.double().sum()))
    moment = (ones.double() * values.double()).sum()
    assert float(cells[:, 1].sum()) == pytest.approx(float(moment), abs=1e-6)
    # Cells ascend, and each lies within the values between its neighbours.
    means = (cells[:, 1] / cells[:, 0])[cells[:, 0] > 0]
    assert (means.diff() > 0).all()


@pytest.mark.parametrize("count", [0, 1, 3, 15, 16, 17, 100, 255])
@pytest.mark.parametrize("kind", ["normal", "crowded", "equal"])
def test_scalar_codes_are_those_of_bucketize(count: int, kind: str) -> None:
    values = torch.cat([torch.randn(1003), torch.tensor([0.0, -0.0, 1e30, -1e30])])
    boundaries = torch.randn(count).sort().values
    if kind == "crowded" and count:
        boundaries[1:] *= 1e-4
        boundaries = boundaries.sort().values
    if kind == "equal":
        boundaries = torch.full((count,), 0.25)
    values = torch.cat([values, boundaries])
    expected = torch.bucketize(values, boundaries).to(torch.uint8)
    assert torch.equal(operators().scalar_codes(values, boundaries), expected)


@pytest.mark.parametrize(("m", "k"), [(1, 1), (2, 2), (50, 7), (1000, 16), (300, 300)])
def test_optimal_intervals_are_those_of_numpy(m: int, k: int) -> None:
    rng = np.random.default_rng(m)
    mass = np.cumsum(np.append(0.0, rng.random(m) + 0.01))
    moment = np.cumsum(np.append(0.0, np.diff(mass) * np.sort(rng.normal(size=m))))
    ours = operators().optimal_intervals(torch.from_numpy(mass), torch.from_numpy(moment), k)
    assert ours.tolist() == optimal_starts(mass, moment, k).tolist()


def test_the_operators_refuse_what_would_lead_them_astray() -> None:
    x = torch.randn(2, 10, 3)
    codes = torch.full((2, 10), 4, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="code 4 is outside 4 centers"):
        operators().sums_by_code(x, None, codes, 4)
    with pytest.raises(RuntimeError, match="centers"):
        operators().nearest_centers(x, None, torch.randn(2, 300, 3))
    with pytest.raises(RuntimeError, match="float32"):
        operators().nearest_centers(x.double(), None, torch.randn(2, 3, 3))
    with pytest.raises(RuntimeError, match="another shape"):
        operators().lloyd(x, None, torch.randn(2, 3, 4), iterations=1, tolerance=0.0)
    with pytest.raises(RuntimeError, match="importance"):
        operators().exchange_codes(x, torch.ones(2, 10, 2), codes, 5, sweeps=1)
    with pytest.raises(RuntimeError, match="no map of cells"):
        operators().scalar_cells(
            x.flatten(),
            None,
            torch.full((fit.CELL_BINS,), -1, dtype=torch.int32),
            torch.zeros(fit.CELL_BINS, dtype=torch.uint8),
        )
    read = operators().patch_rows
    one, image, at = [1, 1], torch.randn(2, 3, 4, 4), torch.tensor([31])
    assert read(image, at, one, one, [0, 0], one, [4, 4]).flatten().tolist() == (
        image[1, :, 3, 3].tolist()
    )
    with pytest.raises(RuntimeError, match="no place 32 of 32"):
        read(image, at + 1, one, one, [0, 0], one, [4, 4])
    with pytest.raises(RuntimeError, match="no place -1"):
        read(image, at - 32, one, one, [0, 0], one, [4, 4])
    with pytest.raises(RuntimeError, match="not one for each dimension"):
        read(image, at, [1], one, [0, 0], one, [4, 4])
    with pytest.raises(RuntimeError, match="no positions"):
        read(image, at, [0, 1], one, [0, 0], one, [4, 4])
    with pytest.raises(RuntimeError, match="float32"):
        read(image.half(), at, one, one, [0, 0], one, [4, 4])
    # Whatever is asked for, nothing beside the image is read.
    assert not read(image, at, one, one, [900, -900], one, [4, 4]).any()


CALIBRATED = [
    vq.KM(k=4),
    vq.KM(k=300),
    vq.KM(k=4, group=5, keep_zeros=True),
    vq.KM(k=4, group=100, scale="row"),
    vq.PQ(k=8, dim=4),
    vq.PQ(k=8, dim=1),
    vq.PQ(k=8, dim=5, codebooks="tensor", scale="row"),
    vq.PQ(k=8, dim=4, axis="out"),
    vq.PQ(k=8, dim=7, axis="out"),
    vq.PQ(k=8, dim=7, axis="out", codebooks="tensor"),
    vq.RQ(k=8, stages=3, dim=4),
    vq.RQ(k=8, stages=2, dim=7, axis="out", codebooks="tensor"),
]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("scheme", CALIBRATED, ids=str)
def test_calibrated_fits_reach_what_they_reach_in_torch(
    scheme: vq.Scheme, groups: int, in_torch: InTorch
) -> None:
    # More outputs than one thread takes, more inputs than one block.
    weight = torch.randn(672, 140 // groups, generator=torch.Generator().manual_seed(5))
    weight[weight.abs() < 0.1] = 0
    moments = moments_of(correlated_inputs(300, groups * weight.shape[1]), groups)
    # One start for all: k-means differs more.
    small = vq.quantize_weight(weight, scheme)
    view = weight.T if scheme.geometry((1, 1)).axis == "out" else weight
    if small.scale is not None:
        view = view / small.scale.float().unsqueeze(1)
    objective = Objective.build(view, small.scale, scheme, small.geometry, moments)
    assert objective is not None
    start = Quantized(small.codes, small.codebooks)

    def value() -> float:
        found = calibrate(objective, start, "float16")
        return objective.value(objective.place(Quantized(found.codes, found.codebooks.float())))

    before = isa()
    assert before is not None
    expected = in_torch(value)
    try:
        values = []
        for name in isas():
            use_isa(name)
            values.append(value())
    finally:
        use_isa(before)
    assert len(set(values)) == 1
    assert values[0] == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("scheme", CALIBRATED, ids=str)
def test_a_sweep_chooses_the_codes_that_it_chooses_in_torch(
    scheme: vq.Scheme, in_torch: InTorch
) -> None:
    weight = torch.randn(300, 140, generator=torch.Generator().manual_seed(6))
    small = vq.quantize_weight(weight, scheme)
    view = weight.T if scheme.geometry((1, 1)).axis == "out" else weight
    moments = moments_of(correlated_inputs(300, 140))
    objective = Objective.build(view, small.scale, scheme, small.geometry, moments)
    assert objective is not None
    start = objective.place(Quantized(small.codes.long(), small.codebooks.float()))

    def codes() -> Tensor:
        found = descend(objective, start)
        assert torch.allclose(found.error, objective.place(found.quantized).error, atol=1e-5)
        return found.quantized.codes

    assert float((codes() == in_torch(codes)).float().mean()) > 0.999


@pytest.mark.parametrize("n", [1, 2, 17, 64, 1000, 4096])
@pytest.mark.parametrize("digits", [1, 8])
def test_centers_of_few_weights_are_those_of_the_general_fit(
    n: int, digits: int, in_torch: InTorch
) -> None:
    """Bit for bit: where the call ends that takes few weights is no border of results."""
    values = torch.randn(n, generator=torch.Generator().manual_seed(n)).round(decimals=digits)
    for k in (1, 2, 3, 16, 256):
        ours, theirs = fit_scalar(values, k), in_torch(lambda k=k: fit_scalar(values, k))
        assert torch.equal(ours, theirs)


def test_few_weights_of_no_kind_are_refused() -> None:
    for values, k in ((torch.zeros(0), 1), (torch.zeros(3), 0), (torch.zeros(3).double(), 1)):
        with pytest.raises(RuntimeError, match=r"values|centers"):
            operators().few_centers(values, k)
