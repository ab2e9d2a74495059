"""Schemes: values that round-trip through text and dicts, and refuse what makes no sense."""

import copy
import dataclasses
import json
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vq_plugin as vq

FLOATS = ["float16", "bfloat16", "float32"]
SCALE = st.sampled_from([None, "row"])
COMMON = {"codebook_dtype": st.sampled_from([*FLOATS, "int8"]), "scale": SCALE}
SIDES = {
    "axis": st.sampled_from(["in", "out"]),
    "codebooks": st.sampled_from(["subspace", "tensor"]),
    "layout": st.sampled_from(["flat", "channels"]),
}
K = st.integers(1, 1 << 16)
SMALL = st.integers(1, 300)
CLASSES = (vq.KM, vq.PQ, vq.RQ, vq.Binary, vq.Uniform, vq.Signs)
SCHEMES: st.SearchStrategy[vq.Scheme] = st.one_of(
    st.builds(vq.KM, k=K, group=st.none() | SMALL, keep_zeros=st.booleans(), **COMMON),
    st.builds(vq.PQ, k=K, dim=SMALL, **SIDES, **COMMON),
    st.builds(vq.RQ, k=K, stages=SMALL, dim=st.none() | SMALL, **SIDES, **COMMON),
    st.builds(vq.Uniform, step=st.floats(1e-6, 1e6), k=K, **COMMON),
    st.builds(vq.Signs, levels=st.integers(1, 16), block=st.integers(1, 4), **COMMON),
    st.builds(vq.Binary, codebook_dtype=st.sampled_from(FLOATS), scale=SCALE),
)


@given(SCHEMES)
def test_text_dict_json_repr_copy_and_pickle_give_the_scheme_back(scheme: vq.Scheme) -> None:
    assert vq.parse_scheme(str(scheme)) == scheme
    assert vq.scheme_from_dict(scheme.to_dict()) == scheme
    assert vq.scheme_from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme
    assert eval(repr(scheme), {c.__name__: c for c in CLASSES}) == scheme
    assert copy.deepcopy(scheme) == scheme
    assert pickle.loads(pickle.dumps(scheme)) == scheme
    assert hash(copy.deepcopy(scheme)) == hash(scheme)


@given(SCHEMES, SCHEMES)
def test_equal_text_means_equal_scheme(one: vq.Scheme, two: vq.Scheme) -> None:
    assert (str(one) == str(two)) == (one == two)


def test_defaults_are_those_of_the_paper_and_the_contract() -> None:
    assert vq.KM() == vq.KM(k=16, group=None, keep_zeros=False)
    assert vq.PQ() == vq.PQ(k=16, dim=4, axis="in", codebooks="subspace")
    assert vq.RQ() == vq.RQ(k=256, stages=2, dim=None, axis="in")
    assert vq.Binary().k == 2
    assert vq.Signs() == vq.Signs(levels=4, block=4)
    assert vq.Uniform() == vq.Uniform(step=0.5, k=256)
    for scheme in (each() for each in CLASSES):
        assert scheme.codebook_dtype == "float16"
        assert scheme.torch_codebook_dtype is torch.float16
        assert scheme.scale is None
        assert scheme.geometry((1, 1)).axis == "in"
    assert vq.PQ(axis="out").geometry((1, 1)).axis == "out"
    assert vq.RQ(axis="out").geometry((1, 1)).axis == "out"


def test_schemes_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        vq.KM().k = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "scheme"),
    [
        ("km", vq.KM()),
        ("pq()", vq.PQ()),
        (" PQ ( k = 8 , dim = 2 ) ", vq.PQ(k=8, dim=2)),
        ("pq(k=8,axis='out')", vq.PQ(k=8, axis="out")),
        ("rq(dim=None,stages=3)", vq.RQ(stages=3)),
        ("rq(dim=null)", vq.RQ()),
        ("km(keep_zeros=True,group=none)", vq.KM(keep_zeros=True)),
        ("binary(scale=row)", vq.Binary(scale="row")),
        ("km(k=4,)", vq.KM(k=4)),
    ],
)
def test_people_write_schemes_in_several_ways(text: str, scheme: vq.Scheme) -> None:
    assert vq.parse_scheme(text) == scheme


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read"),
        ("km(k=4", "cannot read"),
        ("km k=4", "cannot read"),
        ("km(16)", "setting=value"),
        ("pqq(k=4)", "'pqq' is unknown.*'pq'"),
        ("km(dim=4)", "km: setting 'dim' is unknown"),
        ("pq(codebook=tensor)", "'codebook' is unknown; did you mean 'codebooks'"),
        ("km(k=4,k=8)", "'k' is given twice"),
        ("km(method=pq)", "given twice"),
        ("km(k=0)", "km: k must be a whole number of at least 1, got 0"),
        ("km(k=2.5)", "km: k must be a whole number"),
        ("km(k=none)", "km: k must be a whole number"),
        ("km(k=true)", "km: k must be a whole number"),
        ("binary(k=4)", "binary: setting 'k' is unknown"),
    ],
)
def test_unreadable_text_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vq.parse_scheme(text)


@pytest.mark.parametrize(
    ("cls", "settings", "message"),
    [
        (vq.KM, {"k": -3}, "km: k .* got -3"),
        (vq.KM, {"k": 65537}, "km: k must be at most 65536, got 65537"),
        (vq.KM, {"k": 4.0}, "km: k .* got 4.0"),
        (vq.KM, {"group": 0}, "km: group .* got 0"),
        (vq.KM, {"keep_zeros": "yes"}, "km: keep_zeros .* got 'yes'"),
        (vq.KM, {"scale": "column"}, "km: scale .* got 'column'"),
        (vq.PQ, {"dim": 0}, "pq: dim .* got 0"),
        (vq.PQ, {"dim": None}, "pq: dim .* got None"),
        (vq.PQ, {"axis": "x"}, "pq: axis must be one of 'in', 'out', got 'x'"),
        (vq.PQ, {"codebooks": "layer"}, "pq: codebooks .* got 'layer'"),
        (vq.RQ, {"stages": 0}, "rq: stages .* got 0"),
        (vq.RQ, {"dim": -1}, "rq: dim .* got -1"),
        (vq.PQ, {"codebook_dtype": "int4"}, "pq: codebook_dtype .* 'int8', got 'int4'"),
        (vq.Binary, {"codebook_dtype": "int8"}, "binary: codebook_dtype .* got 'int8'"),
    ],
)
def test_settings_out_of_range_name_method_setting_and_value(
    cls: type[vq.Scheme], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**settings)


@pytest.mark.parametrize("values", [{}, {"k": 4}, {"method": None}, {"method": "nope"}])
def test_a_dict_without_a_known_method_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"unknown; .*known: km, uniform, binary, pq, rq"):
        vq.scheme_from_dict(values)


def test_reading_a_dict_leaves_it_as_it_was() -> None:
    values = {"method": "km", "k": 4}
    vq.scheme_from_dict(values)
    assert values == {"method": "km", "k": 4}
