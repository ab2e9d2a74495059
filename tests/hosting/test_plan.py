"""Plans travel through a host: equal copies, fits shared, nothing kept alive."""

import copy
import gc
import weakref

import pytest
from torch import nn

import vq_plugin as vq
from vq_plugin.hosting.conversion import Conversion
from vq_plugin.hosting.plan import Plan, plans


def test_the_first_class_that_fits_decides():
    rules = ((nn.Conv2d, vq.PQ()), (nn.Linear, None), (nn.Module, vq.KM()))
    plan = Plan(rules, seed=0)
    schemes = [
        plan.scheme_for(m) for m in (nn.Conv2d(1, 1, 1), nn.Linear(1, 1), nn.Embedding(2, 2))
    ]
    assert schemes == [vq.PQ(), None, vq.KM()]
    linear, tanh = nn.Linear(1, 1), nn.Tanh()
    assert plan.convert(linear) is linear
    assert plan.convert(tanh) is tanh


def test_copies_are_equal_and_those_made_together_share_fits():
    conversion, linear = Conversion(), nn.Linear(8, 8)
    one, other = (Plan(((nn.Module, vq.KM()),), 0, conversion, name) for name in ("a", "b"))
    assert one != other
    copies = copy.deepcopy([one, other])
    assert copies == [one, other]
    assert copies[0].convert(linear) is copies[1].convert(linear)
    assert one.convert(linear) is not copies[0].convert(linear)


def test_layers_that_share_a_weight_share_the_plan_of_the_first():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    found = plans(model, vq.KM(), seed=5)
    assert list(found) == ["0", "1", "2"]
    assert found["2"] is found["0"] != found["1"]
    assert (found["2"].name, found["2"].seed, found["2"].scheme) == ("0", 5, vq.KM())


def test_two_schemes_for_one_weight_are_an_error():
    conversion, one, other = Conversion(), nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = one.weight
    conversion.layer(one, vq.KM(), 0, "one")
    with pytest.raises(ValueError, match=r"layer 'other' shares its weight.*km\(k=16\)"):
        conversion.layer(other, vq.PQ(), 0, "other")


def test_fits_keep_no_float_weight_alive():
    conversion, layer = Conversion(), nn.Linear(4, 4)
    conversion.layer(layer, vq.KM(), 0, "layer")
    weight = weakref.ref(layer.weight)
    del layer
    gc.collect()
    assert weight() is None
    assert not conversion.layers
    assert not conversion.weights


def test_errors_show_the_name_or_else_the_settings():
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, float("nan"))
    with pytest.raises(ValueError, match="layer 'fc': the weight holds 6 NaN"):
        Plan(((nn.Module, vq.KM()),), 0, name="fc").convert(layer)
    with pytest.raises(ValueError, match=r"layer 'Linear\(in_features=3"):
        Plan(((nn.Module, vq.KM()),), 0).convert(layer)
