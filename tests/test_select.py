"""Patterns to layers: who wins, and what the errors say."""

import re
import warnings
from typing import Any

import pytest
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.select import select

A, B, C, D = vq.KM(k=2), vq.KM(k=3), vq.PQ(k=4), vq.RQ(k=5)


class MyConv(nn.Conv2d):
    """No forward of its own."""


class MyLinear(nn.Linear):
    """With a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), MyConv(4, 4, 3))
        self.fc1 = nn.Linear(4, 4)
        self.fc10 = nn.Linear(4, 4)
        self.embed = nn.Embedding(10, 4)


def test_one_scheme_is_for_every_layer_that_can_take_it() -> None:
    assert select(Net(), A) == dict.fromkeys(
        ["features.0", "features.2", "fc1", "fc10", "embed"], A
    )


@pytest.mark.parametrize("order", [1, -1])
def test_exact_name_beats_regex_beats_class_beats_star(order: int) -> None:
    patterns: dict[Any, Any] = {
        "fc1": A,
        r"re:fc\d+": B,
        nn.Linear: C,
        nn.Conv2d: C,
        r"re:features\.0": A,
        "*": D,
    }
    patterns = dict(list(patterns.items())[::order])
    assert select(Net(), patterns) == {
        "features.0": A,
        "features.2": C,
        "fc1": A,
        "fc10": B,
        "embed": D,
    }


def test_of_several_expressions_the_first_given_decides() -> None:
    chosen = select(Net(), {r"re:fc1.*": A, r"re:fc.*": B})
    assert chosen == {"fc1": A, "fc10": A}
    chosen = select(Net(), {r"re:fc.*": B, r"re:fc1.*": A})
    assert chosen == {"fc1": B, "fc10": B}


def test_an_expression_must_match_the_whole_name() -> None:
    assert select(Net(), {"re:fc1": A}) == {"fc1": A}
    assert list(select(Net(), {r"re:.*\.0": A})) == ["features.0"]
    with pytest.raises(ValueError, match="matches nothing"):
        select(Net(), {r"re:eatures\.0": A})


def test_a_plain_name_is_no_expression() -> None:
    with pytest.raises(ValueError, match=r"'fc\.' matches nothing"):
        select(Net(), {"fc.": A})


def test_none_leaves_a_layer_and_so_does_no_pattern() -> None:
    assert select(Net(), {"fc1": None, nn.Conv2d: None, "*": A}) == {"fc10": A, "embed": A}
    assert select(Net(), {"fc1": A}) == {"fc1": A}
    assert select(Net(), {}) == {}
    assert select(Net(), {"*": None}) == {}


def test_a_class_takes_its_subclasses_along() -> None:
    assert list(select(Net(), {nn.Conv2d: A})) == ["features.0", "features.2"]
    assert list(select(Net(), {MyConv: A})) == ["features.2"]
    # Neither of two classes is more specific: the first given decides.
    assert select(Net(), {MyConv: A, nn.Conv2d: B}) == {"features.0": B, "features.2": A}


def test_layers_come_in_the_order_of_the_model() -> None:
    assert list(select(Net(), {"embed": A, "fc1": A, "features.0": B})) == [
        "features.0",
        "fc1",
        "embed",
    ]


def test_a_module_used_twice_goes_by_either_name_and_is_chosen_once() -> None:
    model = nn.Module()
    model.first = nn.Linear(4, 4)
    model.second = model.first
    for pattern in ("first", "second", "re:sec.*", "*"):
        assert select(model, {pattern: A}) == {"first": A}


def test_the_root_has_the_empty_name() -> None:
    assert select(nn.Linear(4, 4), A) == {"": A}
    assert select(nn.Linear(4, 4), {"": A}) == {"": A}


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("fc2", r"pattern 'fc2' matches nothing; the nearest names are fc1"),
        ("feature.0", r"nearest names are features\.0"),
        ("re:embedding", r"nearest names are embed"),
        (nn.Conv3d, "pattern Conv3d matches nothing; .* Conv2d, Embedding, Linear, MyConv"),
        ("zzzzzz", "matches nothing; the nearest names are"),
    ],
)
def test_a_pattern_that_matches_nothing_names_what_there_is(pattern: Any, message: str) -> None:
    for scheme in (A, None):
        with pytest.raises(ValueError, match=message):
            select(Net(), {pattern: scheme, "fc1": A})


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("features.1", "'features.1' cannot be compressed: it is a ReLU, which has no slot"),
        ("features", "'features' cannot be compressed: it is a Sequential"),
        ("re:features", "cannot be compressed: it is a Sequential"),
        (nn.ReLU, "pattern ReLU: 'features.1' cannot be compressed: it is a ReLU"),
    ],
)
def test_a_pattern_on_something_else_says_why_not(pattern: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(Net(), {pattern: A})
    assert select(Net(), {pattern: None}) == {}


def test_a_subclass_with_its_own_forward_is_chosen_like_its_base() -> None:
    model = nn.Sequential(MyLinear(4, 4), nn.Linear(4, 4))
    assert select(model, A) == {"0": A, "1": A}
    assert select(model, {"0": None, "*": A}) == {"1": A}
    assert select(model, {MyLinear: B, "*": A}) == {"0": B, "1": A}


@pytest.mark.parametrize("model", [nn.Sequential(), nn.ReLU(), nn.Sequential(nn.BatchNorm2d(2))])
@pytest.mark.parametrize("schemes", [A, {"fc1": A}, {nn.Linear: A}])
def test_a_model_without_layers_is_an_error(model: nn.Module, schemes: Any) -> None:
    with pytest.raises(ValueError, match="no Linear, Conv1d"):
        select(model, schemes)


def test_compressed_layers_are_not_compressed_again() -> None:
    small = vq.compress(Net(), {"fc1": A})
    assert "fc1" not in select(small, B)
    with pytest.raises(ValueError, match="pattern 'fc1': already compressed"):
        select(small, {"fc1": B})


@pytest.mark.parametrize(
    ("schemes", "message"),
    [
        (3, "must be a scheme, a preset or a mapping"),
        ([A], "must be a scheme, a preset or a mapping"),
        ({"fc1": vq.PQ}, r"'fc1': expected a scheme.*a preset"),
        ({3: A}, "a pattern is a name"),
        ({int: A}, "a pattern is a name"),
        ({nn.Linear(2, 2): A}, "a pattern is a name"),
    ],
)
def test_wrong_types_are_told_apart(schemes: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        select(Net(), schemes)


def test_schemes_may_be_texts() -> None:
    text = {"fc1": "km(k=4)", "*": "pq(k=16,dim=4)"}
    assert select(Net(), text) == select(Net(), {"fc1": vq.KM(k=4), "*": vq.PQ(k=16, dim=4)})
    assert select(Net(), "km(k=4)") == select(Net(), vq.KM(k=4))
    for text in ("kmm(k=4)", "km(k=4", "atuo"):
        with pytest.raises(ValueError, match=r"'fc1': expected a scheme.*'pq\(k=16,dim=4\)'.*auto"):
            select(Net(), {"fc1": text})


@pytest.mark.parametrize(
    ("written", "meant"),
    [("fc.*", "re:fc.*"), ("fc*", "re:fc.*"), ("fc?", "re:fc."), ("*1", "re:.*1")],
)
def test_an_expression_without_its_mark_is_shown_with_it(written: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"is written {re.escape(repr(meant))}"):
        select(Net(), {written: A})
    assert select(Net(), {meant: A})


def test_a_broken_expression_is_shown() -> None:
    with pytest.raises(ValueError, match=r"'re:\(' is not a regular expression"):
        select(Net(), {"re:(": A})


def test_leaving_a_container_does_not_leave_its_layers_and_says_so() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 4), nn.BatchNorm1d(4))
    with pytest.warns(UserWarning, match="'0' leaves nothing: '0' is no layer, and other patterns"):
        assert list(select(model, {"0": None, "*": vq.KM()})) == ["0.0", "1"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(select(model, {"re:0.*": None, "2": None, "*": vq.KM()})) == ["1"]
        assert list(select(model, {"0": None, "0.0": None, "*": vq.KM()})) == ["1"]
        assert list(select(model, {"re:0.*": None, "0.0": vq.KM()})) == ["0.0"]
