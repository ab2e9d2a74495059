"""Fits that know how a layer's inputs go together, against NumPy and explicit loops."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from tests.fit.problems import correlated_inputs, kept_moments_of, matrix_of, moments_of
from vq_plugin.fit.output import coupling
from vq_plugin.fit.output.calibrated import calibrate
from vq_plugin.fit.output.feedback import Factor, descend, feedback
from vq_plugin.fit.output.metric import row_errors
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.output.objective import Objective, Quantized, damped
from vq_plugin.fit.output.refit import refit
from vq_plugin.rounding import round_centers

SCHEMES = [
    vq.KM(k=4),
    vq.KM(k=4, group=7, scale="row"),
    vq.PQ(k=8, dim=4),
    vq.PQ(k=8, dim=5),
    vq.PQ(k=8, dim=4, axis="out"),
    vq.PQ(k=8, dim=7, axis="out", codebooks="tensor", scale="row"),
    vq.PQ(k=8, dim=4, codebooks="tensor", scale="row"),
    vq.RQ(k=8, stages=2),
    vq.RQ(k=8, stages=3, dim=4, axis="out"),
    vq.RQ(k=8, stages=3, dim=7, codebooks="tensor"),
]


MOMENTS = {"square": moments_of, "samples": kept_moments_of}
both_forms = pytest.mark.parametrize("form", MOMENTS)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors go from block to block of a sweep in small problems, too."""
    monkeypatch.setattr(coupling, "_BLOCK", 4)


def problem(scheme: vq.Scheme, groups: int = 1, shape: tuple[int, int] = (12, 10),
            form: str = "square") -> tuple[Objective, Quantized]:  # fmt: skip
    """The objective of a small weight, and its fit without second moments."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    moments = MOMENTS[form](correlated_inputs(60, groups * shape[1]), groups)
    small = vq.quantize_weight(weight, scheme)
    view = weight.T if scheme.geometry((1, 1)).axis == "out" else weight
    if small.scale is not None:
        view = view / small.scale.float().unsqueeze(1)
    objective = Objective.build(view, small.scale, scheme, small.geometry, moments)
    assert objective is not None
    return objective, Quantized(small.codes.long(), small.codebooks.float())


def value(objective: Objective, quantized: Quantized) -> float:
    """The objective, output by output."""
    error = (objective.weight - objective.decode(quantized)).double().numpy()
    mass = objective.mass.reshape(len(error), -1).double().numpy()
    total = 0.0
    for group, hessian in enumerate(matrix_of(objective.metric).double().numpy()):
        for output in range(error.shape[2]):
            e = error[group, :, output]
            total += mass[group, output] * e @ hessian @ e
    return total


@both_forms
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_refit_is_least_squares(scheme: vq.Scheme, form: str) -> None:
    objective, quantized = problem(scheme, form=form)
    found = refit(objective, objective.place(quantized), iterations=3000, tolerance=1e-7).quantized
    # One column per number in the codebooks: what a one there adds to the weighted weight.
    factor = np.linalg.cholesky(matrix_of(objective.metric).double().numpy())
    mass = objective.mass.reshape(len(factor), 1, -1).double().numpy()

    def weighed(weight: Tensor) -> np.ndarray:
        return (factor.transpose(0, 2, 1) @ weight.double().numpy() * np.sqrt(mass)).ravel()

    columns = []
    for index in range(quantized.codebooks.numel()):
        unit = torch.zeros(quantized.codebooks.numel())
        unit[index] = 1
        decoded = objective.decode(
            Quantized(quantized.codes, unit.reshape(quantized.codebooks.shape))
        )
        columns.append(weighed(decoded))
    best, *_ = np.linalg.lstsq(np.stack(columns, 1), weighed(objective.weight), rcond=None)
    solution = Quantized(
        quantized.codes, torch.tensor(best).reshape(quantized.codebooks.shape).float()
    )
    assert value(objective, found) == pytest.approx(value(objective, solution), rel=1e-3)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_few_iterations_of_the_refit_lower_the_error(scheme: vq.Scheme) -> None:
    objective, quantized = problem(scheme)
    start = objective.place(quantized)
    found = [refit(objective, start, iterations=n).quantized for n in (1, 2, 4, 8)]
    values = [value(objective, each) for each in found]
    assert value(objective, quantized) > values[0] > values[1] >= values[2] >= values[3]


def fed_back(objective: Objective, quantized: Quantized) -> Quantized:
    return feedback(objective, quantized, Factor.of(objective, quantized)).quantized


def greedy(objective: Objective, quantized: Quantized, step: int) -> tuple[Tensor, list[int]]:
    """GPTQ/GPTVQ by their definition: after every choice all inputs left are solved for anew."""
    weight = objective.weight[0].double().numpy()
    hessian = matrix_of(objective.metric)[0].double().numpy()
    inputs, outputs = weight.shape
    size = hessian.diagonal().reshape(-1, step).sum(1)
    order = np.argsort(-size, kind="stable")
    books = quantized.codebooks[0, 0].double().numpy()
    codes: dict[tuple[int, int], int] = {}
    for output in range(outputs):
        chosen: list[int] = []
        error = np.zeros(inputs)
        for at in order:
            here = list(range(at * step, (at + 1) * step))
            left = [i for i in range(inputs) if i not in chosen and i not in here]
            table = books[at if len(books) > 1 else 0]
            costs = []
            for center in table:
                # The least of the objective over the inputs left, which may still be anything.
                trial = error.copy()
                trial[here] = weight[here, output] - center
                known = [*chosen, *here]
                if left:
                    pulled = hessian[np.ix_(left, known)] @ trial[known]
                    trial[left] = -np.linalg.solve(hessian[np.ix_(left, left)], pulled)
                costs.append(trial @ hessian @ trial)
            code = int(np.argmin(costs))
            codes[output, int(at)] = code
            error[here] = weight[here, output] - table[code]
            chosen += here
    return torch.tensor([[codes[o, s] for s in range(inputs // step)] for o in range(outputs)]), [
        int(at) for at in order
    ]


@both_forms
@pytest.mark.parametrize(
    "scheme", [vq.KM(k=3), vq.PQ(k=4, dim=2), vq.PQ(k=4, dim=5, codebooks="tensor")], ids=str
)
def test_feedback_is_the_greedy_choice(scheme: vq.Scheme, form: str) -> None:
    objective, quantized = problem(scheme, form=form)
    expected, _ = greedy(objective, quantized, quantized.codebooks.shape[4])
    assert torch.equal(fed_back(objective, quantized).codes[0], expected)


@both_forms
def test_feedback_along_the_outputs_is_the_greedy_choice(form: str) -> None:
    objective, quantized = problem(vq.PQ(k=4, dim=2, axis="out"), form=form)
    weight = objective.weight[0].double().numpy()
    hessian = matrix_of(objective.metric)[0].double().numpy()
    inputs, outputs = weight.shape
    order = np.argsort(-hessian.diagonal(), kind="stable")
    expected = torch.zeros(inputs, outputs // 2, dtype=torch.int64)
    for book, table in enumerate(quantized.codebooks[0, 0].double().numpy()):
        error = np.zeros((inputs, 2))
        chosen: list[int] = []
        for at in map(int, order):
            left = [i for i in range(inputs) if i not in chosen and i != at]
            costs = []
            for center in table:
                trial = error.copy()
                trial[at] = weight[at, 2 * book : 2 * book + 2] - center
                known = [*chosen, at]
                if left:
                    pulled = hessian[np.ix_(left, known)] @ trial[known]
                    trial[left] = -np.linalg.solve(hessian[np.ix_(left, left)], pulled)
                costs.append(np.trace(trial.T @ hessian @ trial))
            expected[at, book] = int(np.argmin(costs))
            error[at] = weight[at, 2 * book : 2 * book + 2] - table[expected[at, book]]
            chosen.append(at)
    assert torch.equal(fed_back(objective, quantized).codes[0], expected)


@both_forms
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_descending_does_not_raise_the_error(scheme: vq.Scheme, form: str) -> None:
    objective, quantized = problem(scheme, form=form)
    values = [value(objective, quantized)]
    for _ in range(4):
        quantized = descend(objective, objective.place(quantized)).quantized
        values.append(value(objective, quantized))
    assert all(after <= before * (1 + 1e-5) for before, after in itertools.pairwise(values))


@both_forms
@pytest.mark.parametrize("scheme", [s for s in SCHEMES if not isinstance(s, vq.RQ)], ids=str)
def test_descent_ends_where_no_single_code_helps(scheme: vq.Scheme, form: str) -> None:
    objective, quantized = problem(scheme, shape=(5, 10), form=form)
    for _ in range(50):
        quantized = descend(objective, objective.place(quantized)).quantized
    least = value(objective, quantized)
    for place in itertools.product(*map(range, quantized.codes.shape)):
        for code in range(quantized.codebooks.shape[3]):
            codes = quantized.codes.clone()
            codes[place] = code
            assert value(objective, Quantized(codes, quantized.codebooks)) >= least * (1 - 1e-5)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_output_error_on_other_inputs_falls(scheme: vq.Scheme, groups: int) -> None:
    weight = torch.randn(48, 40, generator=torch.Generator().manual_seed(2))
    inputs = correlated_inputs(4000, 40 * groups)
    seen, unseen = moments_of(inputs[:1000], groups), moments_of(inputs[1000:], groups)
    plain = vq.quantize_weight(weight, scheme)
    small = vq.quantize_weight(weight, scheme, moments=seen)
    errors = [unseen.output_error(cw.decode() - weight) for cw in (small, plain)]
    # A whole row as one sub-vector leaves hardly any choice; 7 outputs reach beyond their group.
    straddles = groups == 2 and "dim=7" in str(scheme) and scheme.geometry((1, 1)).axis == "out"
    bound = 1.0 if straddles or "dim=none" in str(scheme) else 0.9
    assert errors[0] <= bound * errors[1]
    assert small.nbytes == plain.nbytes


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    length=st.integers(1, 11),
    dim=st.integers(1, 5),
    axis=st.sampled_from(["in", "out"]),
    codebooks=st.sampled_from(["subspace", "tensor"]),
    scale=st.sampled_from([None, "row"]),
    stages=st.integers(1, 2),
    samples=st.integers(1, 30),
    groups=st.sampled_from([1, 3]),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    codebook_dtype=st.sampled_from(["float16", "int8"]),
    form=st.sampled_from([*MOMENTS]),
)
def test_any_shape_is_no_worse_than_without(
    rows, length, dim, axis, codebooks, scale, stages, samples, groups, dtype, codebook_dtype, form
) -> None:
    weight = torch.randn(rows * groups, length).to(dtype)
    kind = {"k": 4, "dim": dim, "axis": axis, "codebooks": codebooks, "scale": scale}
    kind["codebook_dtype"] = codebook_dtype
    scheme = vq.PQ(**kind) if stages == 1 else vq.RQ(**kind, stages=stages)
    moments = MOMENTS[form](correlated_inputs(samples, groups * length), groups, bias=False)
    small = vq.quantize_weight(weight, scheme, moments=moments)
    plain = vq.quantize_weight(weight, scheme, moments.importance)
    assert small.decode().shape == weight.shape
    assert small.nbytes == plain.nbytes
    for cw in (small, plain):
        assert torch.equal(round_centers(cw.codebooks, codebook_dtype), cw.codebooks)
    judge = damped(moments)
    errors = [float(row_errors(judge, cw.decode() - weight).sum()) for cw in (small, plain)]
    assert errors[0] <= errors[1] * (1 + 1e-3) + 1e-6


def test_zeros_stay_zeros() -> None:
    weight = torch.randn(40, 48, generator=torch.Generator().manual_seed(0))
    weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(1)) < 0.8] = 0
    moments = moments_of(correlated_inputs(300, 48))
    for scheme in (vq.KM(k=4, keep_zeros=True), vq.KM(k=4, group=8, keep_zeros=True)):
        plain = vq.quantize_weight(weight, scheme)
        small = vq.quantize_weight(weight, scheme, moments=moments)
        assert (small.decode()[weight == 0] == 0).all()
        errors = [moments.output_error(cw.decode() - weight) for cw in (small, plain)]
        assert errors[0] < errors[1]


def test_the_bias_takes_up_the_mean() -> None:
    layer = nn.Linear(30, 20)
    inputs = correlated_inputs(200, 30)
    moments = moments_of(inputs)
    small = vq.quantize_weight(layer.weight, vq.PQ(k=4, dim=4), moments=moments)
    assert small.bias_shift is not None
    with torch.no_grad():
        change = inputs @ (small.decode() - layer.weight).T + small.bias_shift
    assert change.mean(0).abs().max() < 1e-4 * change.abs().max()
    assert moments.output_error(small.decode() - layer.weight) == pytest.approx(
        float(change.square().mean(0).sum()), rel=1e-3
    )


@both_forms
def test_constant_inputs_and_zero_inputs_are_no_trouble(form: str) -> None:
    weight = torch.randn(12, 10)
    for inputs in (torch.zeros(5, 10), torch.full((5, 10), 1e3), torch.eye(10)[:1].repeat(3, 1)):
        for bias in (False, True):
            moments = MOMENTS[form](inputs, bias=bias)
            small = vq.quantize_weight(weight, vq.PQ(k=4, dim=2), moments=moments)
            assert small.decode().isfinite().all()


def test_importance_beside_moments_is_refused() -> None:
    moments = moments_of(correlated_inputs(30, 8))
    with pytest.raises(ValueError, match="not both"):
        vq.quantize_weight(torch.randn(9, 8), vq.PQ(k=4), torch.rand(8), moments=moments)


def test_a_convolution_is_the_product_of_its_patches() -> None:
    layer = nn.Conv2d(4, 6, 3, padding=1, groups=2)
    x = torch.randn(50, 4, 6, 6)
    small = vq.compress(layer, vq.PQ(k=4, dim=3), [x])
    change = (small.weight - layer.weight).detach()
    with torch.no_grad():
        output = functional.conv2d(x, change, small.bias - layer.bias, padding=1, groups=2)
    assert output.mean((0, 2, 3)).abs().max() < 1e-4 * output.abs().max()


def test_moments_of_any_size_are_fitted_by_normal_numbers() -> None:
    weight = torch.randn(24, 16, generator=torch.Generator().manual_seed(1))
    moments = moments_of(correlated_inputs(60, 16), bias=False)
    assert moments.second is not None
    hessians = []
    # Products with numbers below float32's normal ones take 100 times as long.
    for size in (2.0**-110, 1.0, 2.0**100):
        sized = Moments(moments.importance, moments.second * size)
        geometry = vq.KM(k=4).geometry((24, 16))
        objective = Objective.build(weight, None, vq.KM(k=4), geometry, sized)
        assert objective is not None
        hessians.append(matrix_of(objective.metric))
        assert 0.5 <= float(hessians[-1].abs().max()) < 2
    assert torch.equal(hessians[0], hessians[1])
    assert torch.equal(hessians[2], hessians[1])


def test_what_a_fit_does_keeps_the_product_of_its_error() -> None:
    for form in MOMENTS:
        objective, quantized = problem(vq.PQ(k=8, dim=2), form=form)
        factor = Factor.of(objective, quantized)
        start = objective.place(quantized)
        assert factor.value(objective, quantized) == pytest.approx(
            value(objective, quantized), rel=1e-4
        )
        for placed in (
            start, feedback(objective, quantized, factor), descend(objective, start),
            refit(objective, start),
        ):  # fmt: skip
            again = objective.place(placed.quantized)
            assert torch.allclose(placed.error, again.error, atol=1e-5)
            assert torch.allclose(placed.product, again.product, atol=1e-4)
            assert objective.value(placed) == pytest.approx(
                value(objective, placed.quantized), rel=1e-4
            )


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_samples_count_as_their_square_does(groups: int, bias: bool) -> None:
    inputs, change = correlated_inputs(7, 30 * groups), torch.randn(4, 30)
    kept, square = (each(inputs, groups, bias=bias) for each in MOMENTS.values())
    assert torch.allclose(kept.row_errors(change), square.row_errors(change), rtol=1e-3)
    assert torch.allclose(kept.row_inputs((4, 30)), square.row_inputs((4, 30)), rtol=1e-3)
    assert torch.allclose(matrix_of(damped(kept)), matrix_of(damped(square)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_codes_that_a_fit_starts_from_stay_as_they_are(scheme: vq.Scheme) -> None:
    objective, quantized = problem(scheme)
    start = Quantized(quantized.codes.byte(), quantized.codebooks)
    before = start.codes.clone()
    calibrate(objective, start, "float16")
    assert torch.equal(start.codes, before)


@pytest.mark.parametrize(
    "scheme",
    [vq.PQ(k=8, dim=4), vq.PQ(k=8, dim=4, axis="out"), vq.PQ(k=16, dim=8, codebooks="tensor")],
    ids=str,
)
def test_a_second_feedback_lowers_the_error_on_other_inputs(scheme: vq.Scheme) -> None:
    inputs = correlated_inputs(4000, 48)
    seen, unseen = moments_of(inputs[:1000]), moments_of(inputs[1000:])
    errors = {"once": 0.0, "calibrated": 0.0}
    for seed in range(4):
        weight = torch.randn(64, 48, generator=torch.Generator().manual_seed(seed))
        plain = vq.quantize_weight(weight, scheme)
        start = Quantized(plain.codes.long(), plain.codebooks.float())
        view = plain.geometry.matrix(weight)
        fitted, judge = (
            Objective.build(view, None, scheme, plain.geometry, moments)
            for moments in (seen, unseen)
        )
        assert fitted is not None
        assert judge is not None
        placed = feedback(fitted, start, Factor.of(fitted, start))
        placed = refit(fitted, descend(fitted, refit(fitted, placed)))
        rounded = round_centers(placed.quantized.codebooks, "float16").float()
        once = descend(fitted, fitted.place(Quantized(placed.quantized.codes, rounded)))
        found = calibrate(fitted, start, "float16")
        found = Quantized(found.codes, found.codebooks.float())
        for name, each in (("once", once.quantized), ("calibrated", found)):
            errors[name] += judge.value(judge.place(each)) / 4
    assert errors["calibrated"] < 0.97 * errors["once"]
