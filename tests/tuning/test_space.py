"""Which layers a search may change, and what each may choose from."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.tuning import LADDER
from vq_plugin.tuning.space import search_space

FEW = (vq.KM(k=4), vq.KM(k=16))


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 2)
    )


class Tied(nn.Module):
    """An embedding whose weight is read out again by the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner = nn.Embedding(20, 8), nn.Linear(8, 8)
        self.out = nn.Linear(8, 20, bias=False)
        self.out.weight = self.embed.weight


def test_by_default_every_layer_has_the_whole_ladder() -> None:
    assert search_space(net()) == {"0": LADDER, "3": LADDER, "4": LADDER}
    assert None in LADDER
    assert len(set(LADDER)) == len(LADDER)


@pytest.mark.parametrize(
    ("candidates", "expected"),
    [
        (FEW, {"0": FEW, "3": FEW, "4": FEW}),
        (list(FEW), {"0": FEW, "3": FEW, "4": FEW}),
        (vq.PQ(), {"0": (vq.PQ(),), "3": (vq.PQ(),), "4": (vq.PQ(),)}),
        ({"3": FEW}, {"3": FEW}),
        ({"3": FEW, "4": None}, {"3": FEW, "4": (None,)}),
        ({"3": FEW, "*": vq.KM()}, {"0": (vq.KM(),), "3": FEW, "4": (vq.KM(),)}),
        # Name before expression before class before the rest, in whatever order they are given.
        (
            {"*": vq.KM(k=2), nn.Linear: vq.KM(k=3), "re:[34]": vq.KM(k=4), "4": vq.KM(k=5)},
            {"0": (vq.KM(k=2),), "3": (vq.KM(k=4),), "4": (vq.KM(k=5),)},
        ),
        ({"re:[34]": FEW, "re:[03]": None}, {"0": (None,), "3": FEW, "4": FEW}),
        ({nn.Linear: [vq.KM(k=4), None]}, {"3": (vq.KM(k=4), None), "4": (vq.KM(k=4), None)}),
        ({"3": [vq.KM(k=4), vq.PQ(), vq.KM(k=4)]}, {"3": (vq.KM(k=4), vq.PQ())}),
        # None leaves what could not be compressed anyway.
        ({"*": FEW, nn.ReLU: None}, {"0": FEW, "3": FEW, "4": FEW}),
    ],
)
def test_patterns_decide_as_in_compress(candidates: Any, expected: Mapping[str, Any]) -> None:
    found = search_space(net(), candidates)
    assert found == expected
    assert list(found) == sorted(found)


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ([], r"candidates for '\*' are empty"),
        ({"3": ()}, "candidates for '3' are empty"),
        (None, "nothing to search"),
        ([None], "nothing to search"),
        ({"*": None, "3": [None]}, "nothing to search"),
        ({}, "nothing to search"),
        ({"fc": FEW}, "'fc' matches nothing"),
        ({"re:(": FEW}, "not a regular expression"),
        ({"1": FEW}, "'1' cannot be compressed: it is a ReLU"),
        ({nn.LSTM: FEW}, "LSTM matches nothing"),
    ],
)
def test_what_gives_no_search_is_refused(candidates: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_space(net(), candidates)


def test_schemes_may_be_texts() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    expected = {"0": (vq.KM(k=4), vq.PQ(k=4, dim=2), None)}
    assert search_space(model, ["km(k=4)", vq.PQ(k=4, dim=2), None]) == expected
    assert search_space(model, {"0": "km(k=4)"}) == {"0": (vq.KM(k=4),)}
    with pytest.raises(ValueError, match="'0': expected a scheme"):
        search_space(model, {"0": ["km(k=4", None]})


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (4, "candidates for '\\*' must be a scheme, None or a sequence"),
        ({"3": 4}, "candidates for '3' must be"),
        ({"3": {vq.KM()}}, "candidates for '3' must be"),
        ([vq.KM(), "small"], "a preset stands where a scheme is needed"),
        ([[vq.KM()]], "expected a scheme"),
        ({3: FEW}, "a pattern is a name"),
        ({nn.Linear(2, 2): FEW}, "a pattern is a name"),
    ],
)
def test_wrong_types_are_named(candidates: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        search_space(net(), candidates)


def test_layers_that_share_a_weight_are_one_entry() -> None:
    assert search_space(Tied(), FEW) == {"embed": FEW, "inner": FEW}
    assert search_space(Tied(), {"embed": FEW, "out": FEW}) == {"embed": FEW}


@pytest.mark.parametrize(
    "candidates",
    [
        {"embed": FEW},
        {"out": FEW},
        {"embed": FEW, "out": None},
        {"embed": FEW, "out": FEW[::-1]},
        {nn.Linear: FEW, nn.Embedding: vq.KM()},
    ],
)
def test_layers_that_share_a_weight_need_the_same_candidates(candidates: Any) -> None:
    with pytest.raises(ValueError, match=r"'embed'.*'out'.*share one weight|'out'.*'embed'"):
        search_space(Tied(), candidates)


def test_a_shared_weight_may_be_left() -> None:
    space = search_space(Tied(), {"embed": None, "out": None, "inner": FEW})
    assert space == {"embed": (None,), "inner": FEW}
    assert search_space(Tied(), {"inner": FEW}) == {"inner": FEW}


def test_a_module_used_twice_goes_by_its_first_name() -> None:
    layer = nn.Linear(4, 4)
    twice = nn.Sequential(layer, nn.ReLU(), layer)
    assert search_space(twice, {"2": FEW}) == {"0": FEW}
    assert torch.equal(twice[0].weight, twice[2].weight)
