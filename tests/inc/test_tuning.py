"""Candidates for INC's ``autotune``: order, budget, recipes."""

import math
from fractions import Fraction
from textwrap import dedent

import pytest

pytest.importorskip("neural_compressor", reason="Intel Neural Compressor is not installed")

import numpy as np
import torch
from neural_compressor.common.base_tuning import ConfigSet
from neural_compressor.torch.quantization import TuningConfig, autotune
from torch import nn

import vq_plugin as vq
from vq_plugin.inc import KMConfig, tuning_config
from vq_plugin.nn import CodebookLayer
from vq_plugin.tuning import LADDER
from vq_plugin.workloads import digits

SETTINGS = [vq.KM(k=256), "pq(k=4,dim=8)", {"0": vq.KM(k=2), "*": None}, vq.KM(k=16)]


def nbytes(model):
    sizes = vq.summary(model)
    return sizes.file_nbytes + sizes.other_nbytes


def compressed(model):
    return any(isinstance(layer, CodebookLayer) for layer in model.modules())


# What stands for a metric here knows nothing of outputs.
UNSEEN = vq.LossBudget(relative=0.01, min_agreement=None)


def passes(*allowed):
    """An evaluation that only some schemes of the first layer pass."""

    def evaluate(model):
        scheme = getattr(model[0], "scheme", None)
        return 1.0 if scheme is None or str(scheme) in allowed else 0.5

    return evaluate


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8)).eval()


def test_settings_run_from_small_to_large_and_end_with_doing_nothing(model):
    config = tuning_config(model, SETTINGS)
    sizes = []
    for candidate in config.config_set[:-1]:
        schemes = {name: own.layer_scheme for name, own in candidate.local_config.items()}
        sizes.append(nbytes(vq.compress(model, schemes)))
    assert sizes == sorted(sizes)
    assert len(sizes) == len(SETTINGS)
    assert config.max_trials == len(config.config_set) == len(SETTINGS) + 1
    last = config.config_set[-1]
    assert last.layer_scheme is None
    assert not last.local_config


def test_the_smallest_that_holds_is_returned(model):
    small = autotune(model, tuning_config(model, SETTINGS, UNSEEN), passes("km(k=16)", "km(k=256)"))
    assert str(small[0].scheme) == str(small[2].scheme) == "km(k=16)"


def test_nothing_over_the_budget_is_returned(model):
    untouched = autotune(model, tuning_config(model, SETTINGS, UNSEEN), passes())
    assert not compressed(untouched)


def test_incs_own_rule_returns_what_breaks_the_budget(model):
    plain = TuningConfig(config_set=[KMConfig(k=2), KMConfig(k=4)], tolerable_loss=0.01)
    assert compressed(autotune(model, plain, passes()))


def test_calibration_by_run_fn(model):
    x = torch.randn(64, 64)
    config = tuning_config(model, [vq.PQ()], UNSEEN)
    small = autotune(model, config, lambda m: 1.0, run_fn=lambda m: m(x))
    assert torch.equal(small[0].weight, vq.compress(model, vq.PQ(), [x])[0].weight)


def test_the_frontier_of_the_tuner(model):
    x = torch.randn(64, 64)
    config = tuning_config(model, {"*": [*LADDER, None]}, calibration=[x], max_trials=8)
    assert len(config.config_set) <= 8
    seen = []

    def evaluate(candidate):
        seen.append(nbytes(candidate))
        return 1.0 if seen[-1:] == seen[:1] else 0.0

    autotune(model, config, evaluate)
    # The float model is evaluated twice: what differs from call to call is no metric.
    baseline, first, again, *others = seen
    assert again == baseline
    sizes = [first, *others]
    assert sizes == sorted(set(sizes))
    assert len(sizes) == len(config.config_set)
    assert sizes[-1] == baseline


def test_the_fits_of_the_frontier_are_used_as_they_are(model):
    x = torch.randn(64, 64)
    config = tuning_config(model, {"0": [vq.PQ(), None]}, UNSEEN, calibration=iter([x]))
    small = autotune(model, config, lambda m: 1.0)
    assert torch.equal(small[0].weight, vq.compress(model, {"0": vq.PQ()}, [x])[0].weight)


def test_fits_without_calibration_give_way_to_a_run_fn(model):
    x = torch.randn(64, 64)
    with pytest.warns(UserWarning, match="no calibration data"):
        config = tuning_config(model, {"0": [vq.PQ(), None]}, UNSEEN)
    small = autotune(model, config, lambda m: 1.0, run_fn=lambda m: m(x))
    assert torch.equal(small[0].weight, vq.compress(model, {"0": vq.PQ()}, [x])[0].weight)


def test_another_model_is_fitted_anew(model):
    config = tuning_config(model, {"0": [vq.PQ(), None]}, UNSEEN, calibration=[torch.randn(64, 64)])
    other = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 8))
    small = autotune(other, config, lambda m: 1.0)
    assert torch.equal(small[0].weight, vq.compress(other, {"0": vq.PQ()})[0].weight)


def test_tied_layers_get_one_config():
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    model[1].weight = model[0].weight
    config = tuning_config(model, {"*": [vq.KM(k=4)]}, UNSEEN, calibration=[torch.randn(9, 16)])
    small = autotune(model, config, len)
    assert torch.equal(small[0].codes, small[1].codes)


@pytest.fixture
def recipe(tmp_path):
    def write(**changes):
        keys = {"criterion": "{relative: 0.02}", "exit": "{max_trials: 5}", **changes}
        path = tmp_path / "recipe.yaml"
        path.write_text(
            dedent(f"""\
                version: 1
                model: vq_plugin.workloads.digits:model
                quantization:
                  calibration: vq_plugin.workloads.digits:calibration
                  model_wise: {{scheme: ["pq(k=16,dim=4)", km(k=4), km(k=16), null]}}
                evaluation:
                  tuning: vq_plugin.workloads.digits:evaluate
                tuning:
                  accuracy_criterion: {keys["criterion"]}
                  exit_policy: {keys["exit"]}
                output: {tmp_path}
                """)
        )
        return path

    return write


def test_one_recipe_drives_both(recipe):
    model = digits.model()
    config = tuning_config(model, recipe())
    assert config.max_trials == len(config.config_set) <= 5
    assert config.tolerable_loss == 0.02
    small = autotune(model, config, digits.evaluate)
    baseline, score = digits.evaluate(model), digits.evaluate(small)
    assert baseline * 0.98 <= score
    assert nbytes(small) * 4 < nbytes(model)
    name = next(n for n, m in small.named_modules() if isinstance(m, CodebookLayer))
    scheme = small.get_submodule(name).scheme
    expected = vq.compress(model, {name: scheme}, digits.calibration())
    assert torch.equal(small.get_submodule(name).weight, expected.get_submodule(name).weight)


def test_arguments_go_before_the_recipe(recipe):
    config = tuning_config(digits.model(), str(recipe()), 0.1, max_trials=3)
    assert config.tolerable_loss == 0.1
    assert len(config.config_set) <= 3


@pytest.mark.parametrize(
    "criterion",
    [
        "{absolute: 0.01}",
        "{relative: 0.01, higher_is_better: false}",
        "{relative: 0.01, confidence: 0.95}",
    ],
)
def test_budgets_that_inc_does_not_know(recipe, criterion):
    path = recipe(criterion=criterion)
    with pytest.raises(ValueError, match=r"recipe\.yaml: .* INC's autotune knows relative ones"):
        tuning_config(digits.model(), path)
    assert tuning_config(digits.model(), path, 0.01).tolerable_loss == 0.01


def test_other_budgets_as_an_argument(model):
    for budget in (
        vq.LossBudget(absolute=0.01),
        vq.LossBudget(relative=0.01, higher_is_better=False),
        vq.LossBudget(relative=0.01, confidence=0.9),
    ):
        with pytest.raises(ValueError, match=r"the budget is .* use vq\.tune for others"):
            tuning_config(model, SETTINGS, budget)
    with pytest.raises(ValueError, match="between 0 and 1"):
        tuning_config(model, SETTINGS, 1.5)


def test_a_rest_that_would_not_be_rounded_warns(recipe):
    path = recipe()
    path.write_text(path.read_text() + "\nrest: float16\n")
    with pytest.warns(UserWarning, match="'rest' is for save"):
        tuning_config(digits.model(), path)


def test_another_host_is_refused(recipe):
    path = recipe()
    path.write_text(path.read_text() + "\nhost: pt2e\n")
    with pytest.raises(ValueError, match="converts models itself: remove 'host'"):
        tuning_config(digits.model(), path)


def test_a_timeout_warns(recipe):
    with pytest.warns(UserWarning, match="INC's autotune knows no timeout"):
        tuning_config(digits.model(), recipe(exit="{max_trials: 3, timeout: 10}"))


@pytest.mark.parametrize(
    "key",
    [
        "pruning: {loader: NAME, sparsity: 0.9}",
        "factorization: {loader: NAME}",
        "recovery: {loader: NAME}",
    ],
)
def test_training_that_inc_does_not_do(recipe, key):
    path = recipe()
    loader = "vq_plugin.workloads.digits:training_batches"
    path.write_text(path.read_text() + key.replace("NAME", loader))
    with pytest.raises(ValueError, match="INC's autotune neither prunes nor trains: remove"):
        tuning_config(digits.model(), path)


def test_too_many_settings(model):
    with pytest.raises(ValueError, match="4 settings and one that does nothing are more than"):
        tuning_config(model, SETTINGS, max_trials=4)
    with pytest.raises(ValueError, match="max_trials must be 2 or more"):
        tuning_config(model, SETTINGS, max_trials=1)


def test_settings_are_calibrated_by_autotune(model):
    with pytest.raises(ValueError, match="calibrate them by its run_fn"):
        tuning_config(model, SETTINGS, calibration=[torch.randn(2, 64)])


def test_nothing_to_try(model):
    with pytest.raises(ValueError, match="nothing to try"):
        tuning_config(model, [])


@pytest.mark.parametrize("kind", [float, np.float64, np.float32, torch.tensor, Fraction])
def test_the_tolerance_is_incs_rule(kind):
    from vq_plugin.inc.tolerance import Tolerance

    for baseline, tolerance, score in np.random.default_rng(0).uniform(size=(200, 3)):
        plain = score >= baseline * (1 - tolerance)
        assert (kind(score) >= kind(baseline) * (1 - Tolerance(tolerance))) == (
            kind(score) >= kind(baseline) * (1 - kind(tolerance))
        ) or math.isclose(score, baseline * (1 - tolerance), rel_tol=1e-6)
        assert (float(score) >= float(baseline) * (1 - Tolerance(tolerance))) == plain


def test_the_tolerance_is_a_number_elsewhere():
    from vq_plugin.inc.tolerance import Tolerance

    assert float(torch.tensor(0.5) - Tolerance(0.25)) == 0.25
    assert bool(torch.tensor(0.5) > Tolerance(0.25))
    assert f"{Tolerance(0.01):.2%}" == "1.00%"


def test_a_changed_candidate_is_fitted_anew(model):
    config = tuning_config(
        model, {"0": [vq.KM(k=4), None]}, UNSEEN, calibration=[torch.randn(64, 64)]
    )
    config.config_set[0].local_config["0"].scheme = "km(k=2)"
    assert str(autotune(model, config, lambda m: 1.0)[0].scheme) == "km(k=2)"


def test_candidates_expand_to_themselves(model):
    config = tuning_config(model, SETTINGS)
    assert ConfigSet.from_fwk_configs(config.config_set).config_list == config.config_set
