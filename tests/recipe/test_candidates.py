"""A list is the search space of each layer, one scheme is fixed, null leaves the layer."""

import inspect

import pytest
from torch import nn

import vq_plugin as vq
from vq_plugin.recipe.reading import parse_recipe
from vq_plugin.recipe.schema import ExitPolicy
from vq_plugin.recipe.training import Recovery
from vq_plugin.tuning import LADDER
from vq_plugin.tuning.space import BUILT_IN

START = "version: 1.0\nmodel: a:b\nevaluation: {tuning: a:c}\noutput: out\n"


def candidates(quantization: str) -> dict[object, object]:
    recipe, _ = parse_recipe(START + quantization, "recipe.yaml")
    return dict(recipe.candidates())


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("null", None),
        ("km(k=4)", vq.KM(k=4)),
        ("PQ(k=4, dim=2, axis=out)", vq.PQ(k=4, dim=2, axis="out")),
        ("binary", vq.Binary()),
        ("svd(rate=8) + km(k=4)", vq.Factored(vq.SVD(rate=8), vq.KM(k=4))),
        ("\n      - km(k=4)", [vq.KM(k=4)]),
        ("\n      - pq(k=4,dim=2)\n      - null", [vq.PQ(k=4, dim=2), None]),
    ],
)
def test_what_a_scheme_may_be_at_every_level(text: str, choice: object) -> None:
    wise = f"    scheme: {text}\n"
    assert candidates(f"quantization:\n  model_wise:\n{wise}") == {"*": choice}
    layer = f"    scheme: {text}\n".replace("\n", "\n  ")
    for section, name, pattern in (
        ("optype_wise", "Conv2d", nn.Conv2d),
        ("op_wise", "fc", "fc"),
        ("op_wise", '"re:fc.*"', "re:fc.*"),
    ):
        text_of_section = f"quantization:\n  {section}:\n    {name}:\n  {layer}"
        assert candidates(text_of_section)[pattern] == choice


@pytest.mark.parametrize(
    "quantization", ["", "quantization: {}\n", "quantization: {op_wise: {fc: {scheme: null}}}\n"]
)
def test_layers_that_no_key_speaks_of_get_what_is_built_in(quantization: str) -> None:
    assert candidates(quantization)["*"] == list(BUILT_IN)
    recipe, _ = parse_recipe(START + quantization, "recipe.yaml")
    assert recipe.candidates(LADDER)["*"] == list(LADDER)


def test_the_whole_recipe_becomes_candidates_and_a_budget(every_key: str) -> None:
    recipe, _ = parse_recipe(every_key, "recipe.yaml")
    assert recipe.candidates() == {
        "classifier.3": None,
        "re:features.*": vq.KM(k=8),
        nn.Conv2d: [vq.KM(k=16), vq.KM(k=256)],
        "*": [vq.KM(k=4), vq.PQ(k=16, dim=4), None],
    }
    budget = recipe.tuning.accuracy_criterion.budget()
    assert budget == vq.LossBudget(relative=0.02, confidence=0.9, min_agreement=0.6)


def test_the_order_of_expressions_is_kept_for_the_first_decides() -> None:
    text = (
        'quantization:\n  op_wise:\n    "re:a.*": {scheme: null}\n    "re:.*": {scheme: km(k=2)}\n'
    )
    assert list(candidates(text)) == ["re:a.*", "re:.*", "*"]


def test_without_limits_the_defaults_are_those_of_tune() -> None:
    parameters = inspect.signature(vq.tune).parameters
    assert ExitPolicy().max_trials == parameters["max_trials"].default
    assert ExitPolicy().timeout == parameters["timeout"].default
    recipe, _ = parse_recipe(START, "recipe.yaml")
    assert recipe.tuning.accuracy_criterion.budget() == vq.LossBudget(relative=0.01)
    assert recipe.tuning.random_seed == parameters["seed"].default
    assert recipe.pruning is None
    assert recipe.recovery is None
    text = START + "pruning: {loader: a:d, sparsity: 0.5}\nrecovery: {loader: a:d}\n"
    recipe, _ = parse_recipe(text, "recipe.yaml")
    assert recipe.pruning is not None
    assert recipe.recovery is not None
    pruning = inspect.signature(vq.prune).parameters
    assert recipe.pruning.epochs == pruning["epochs"].default
    assert recipe.pruning.learning_rate == pruning["lr"].default
    assert recipe.recovery.method == "finetune"
    # What is left out is left to the classes; the descriptions say what they do.
    finetune, learn = vq.Recovery([]), vq.Learning([])
    for key, field in (("epochs", "epochs"), ("learning_rate", "lr"), ("max_trials", "max_trials")):
        assert getattr(recipe.recovery, key) is None
        said = Recovery.model_fields[key].description or ""
        assert said.endswith(f"; {getattr(finetune, field)}, to learn {getattr(learn, field)}.")
