"""Config classes: settings, plain values, JSON files, expansion."""

import json
import pickle
from copy import deepcopy

import pytest

pytest.importorskip("neural_compressor", reason="Intel Neural Compressor is not installed")

from hypothesis import given
from hypothesis import strategies as st
from neural_compressor.common.base_tuning import ConfigSet
from neural_compressor.torch.quantization import RTNConfig
from torch import nn

import vq_plugin as vq
from vq_plugin.inc import KMConfig, PQConfig, RQConfig, VQConfig

KEYS = st.sampled_from(["fc1", "features.0", "re:fc.*", "Linear", nn.Conv2d])
KM = st.builds(
    KMConfig,
    k=st.integers(1, 256) | st.lists(st.integers(1, 256), min_size=1, max_size=3),
    group=st.none() | st.integers(1, 9),
    keep_zeros=st.booleans(),
    scale=st.sampled_from([None, "row"]),
    seed=st.integers(0, 9),
    white_list=st.just("*") | st.lists(KEYS, min_size=1, max_size=3),
)
PQ = st.builds(
    PQConfig,
    k=st.integers(1, 256),
    dim=st.integers(1, 9),
    axis=st.sampled_from(["in", "out"]),
    codebooks=st.sampled_from(["subspace", "tensor"]),
    codebook_dtype=st.sampled_from(["float16", "int8"]),
)
RQ = st.builds(RQConfig, stages=st.integers(1, 3), dim=st.none() | st.integers(1, 9))
VQ = st.builds(VQConfig, st.sampled_from([vq.KM(k=3), vq.Binary(), "rq(k=4)", None]))
RTN = st.builds(RTNConfig, bits=st.sampled_from([2, 4, 8]), use_layer_wise=st.just(False))


@st.composite
def configs(draw):
    config = draw(KM | PQ | RQ | VQ)
    for key, local in draw(st.dictionaries(KEYS, KM | PQ | RQ | VQ | RTN, max_size=2)).items():
        if not getattr(local, "local_config", None):
            config.set_local(key, local)
    return config


def test_defaults_are_those_of_the_schemes():
    assert VQConfig().layer_scheme == vq.PQ()
    assert KMConfig().layer_scheme == vq.KM()
    assert PQConfig().layer_scheme == vq.PQ()
    assert RQConfig().layer_scheme == vq.RQ()


@given(configs())
def test_plain_values_read_back(config):
    again = type(config).from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert again.to_dict() == config.to_dict()


@given(configs())
def test_copies_are_equal(config):
    assert deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config


@given(config=configs())
def test_json_files_read_back(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("json") / "config.json"
    config.to_json_file(path)
    assert type(config).from_json_file(path) == config


def test_to_dict_has_settings_and_nothing_else():
    assert KMConfig(k=4).to_dict() == {
        "k": 4,
        "group": None,
        "keep_zeros": False,
        "codebook_dtype": "float16",
        "scale": None,
        "seed": 0,
    }
    assert VQConfig(vq.KM(k=4)).to_dict() == {"scheme": "km(k=4)", "seed": 0}


def test_configs_of_other_settings_or_layers_differ():
    base = KMConfig()
    for other in (
        KMConfig(k=4),
        KMConfig(seed=1),
        KMConfig(white_list=["fc1"]),
        KMConfig().set_local("fc1", None),
        KMConfig().set_local("fc1", PQConfig()),
        PQConfig(),
        RTNConfig(),
    ):
        assert base != other
    assert KMConfig(k=[4]) != KMConfig(k=4)


def test_settings_change_and_deviations_stay():
    config = KMConfig(white_list=["fc1", "fc2"]).set_local("fc1", PQConfig())
    config.k = 8
    assert config == KMConfig(k=8, white_list=["fc1", "fc2"]).set_local("fc1", PQConfig())
    config.white_list = ["fc2"]
    assert list(config.local_config) == ["fc2", "fc1"]
    config = KMConfig(white_list=["fc1"])
    config.white_list = ["fc2"]
    assert config == KMConfig(white_list=["fc2"])


def test_a_refused_setting_is_not_the_last_that_counts(mlp, schemes):
    from neural_compressor.torch.quantization import quantize

    for config in (KMConfig(), KMConfig(white_list=["0"])):
        with pytest.raises(ValueError, match="at least 1"):
            config.k = 0
        config.k = 4
        assert schemes(quantize(mlp, config, inplace=False))["0"] == "km(k=4)"


def test_a_white_list_that_becomes_all():
    config = KMConfig(white_list=["fc1"])
    config.white_list = "*"
    assert config == KMConfig()


def test_lists_of_the_caller_are_copied():
    names, values = ["fc1"], [4, 16]
    config = KMConfig(k=values, white_list=names)
    names.append("fc2")
    values.append(0)
    assert config == KMConfig(k=[4, 16], white_list=["fc1"])


def test_local_configs_of_inc_keep_their_settings(tmp_path):
    own = RTNConfig(bits=8, group_size=16, use_layer_wise=False)
    config = KMConfig().set_local("fc1", own)
    config.to_json_file(tmp_path / "config.json")
    again = KMConfig.from_json_file(tmp_path / "config.json")
    assert again == config
    assert (again.local_config["fc1"].bits, again.local_config["fc1"].group_size) == (8, 16)


def test_classes_that_a_file_cannot_name(tmp_path):
    config = KMConfig().set_local(nn.LazyLinear, None)
    with pytest.raises(ValueError, match=r"config\.json: a file can name Linear, Conv1d"):
        config.to_json_file(tmp_path / "config.json")
    with pytest.raises(ValueError, match="a sum of configs has no JSON form"):
        (KMConfig() + RTNConfig()).to_json_file("sum.json")


def test_expand_gives_every_combination():
    found = [str(config.layer_scheme) for config in PQConfig(k=[4, 16], dim=[2, 8]).expand()]
    assert found == [
        "pq(k=4,dim=2)",
        "pq(k=4,dim=8)",
        "pq(k=16,dim=2)",
        "pq(k=16,dim=8)",
    ]


def test_expand_without_lists_gives_the_config_itself():
    config = PQConfig().set_local("fc1", KMConfig())
    assert config.expand()[0] is config


def test_expand_keeps_white_lists_and_local_configs():
    config = KMConfig(k=[2, 4], white_list=["fc1", nn.Conv2d])
    config.set_local("fc2", PQConfig(k=[8, 16]))
    config.set_local("fc3", RTNConfig(bits=8))
    found = [
        (
            expanded.local_config["fc1"].k,
            expanded.local_config[nn.Conv2d].k,
            expanded.local_config["fc2"].k,
            expanded.local_config["fc3"].bits,
            expanded.global_config,
        )
        for expanded in config.expand()
    ]
    assert found == [
        (2, 2, 8, 8, None),
        (2, 2, 16, 8, None),
        (4, 4, 8, 8, None),
        (4, 4, 16, 8, None),
    ]


def test_tuples_are_lists():
    assert PQConfig(k=(4, 16)) == PQConfig(k=[4, 16])
    config = KMConfig()
    config.k = (2, 4)
    assert [expanded.k for expanded in config.expand()] == [2, 4]


def test_expand_of_schemes():
    config = VQConfig([vq.PQ(), "km(k=4)", None])
    expanded = ConfigSet.from_fwk_configs([config]).config_list
    assert [e.layer_scheme for e in expanded] == [vq.PQ(), vq.KM(k=4), None]


def test_a_type_may_be_named_in_text():
    assert KMConfig(white_list=[nn.Linear]) == KMConfig(white_list=["Linear"])


def test_repr_is_readable():
    assert "km(k=4)" in repr(VQConfig(vq.KM(k=4)).set_local(nn.Linear, RTNConfig(bits=2)))
