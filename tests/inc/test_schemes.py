"""Config classes are made of the fields of schemes, also of schemes that are not shipped."""

import copy
import dataclasses
import inspect
import json
import pickle

import pytest

pytest.importorskip("neural_compressor", reason="Intel Neural Compressor is not installed")

from neural_compressor.common.base_config import config_registry
from neural_compressor.torch.quantization import RTNConfig, quantize, save
from neural_compressor.torch.utils.utility import algos_mapping
from torch import nn

import vq_plugin as vq
from vq_plugin.inc import (
    BinaryConfig,
    KMConfig,
    PQConfig,
    RQConfig,
    SignsConfig,
    UniformConfig,
    VQConfig,
    load,
    scheme_config,
)
from vq_plugin.schemes import SCHEMES

SHIPPED = {
    vq.KM: KMConfig,
    vq.PQ: PQConfig,
    vq.RQ: RQConfig,
    vq.Binary: BinaryConfig,
    vq.Uniform: UniformConfig,
    vq.Signs: SignsConfig,
}


@dataclasses.dataclass(frozen=True, repr=False)
class Halves(vq.KM):
    """K-means of a user's own, with a setting more and one that has no default."""

    method = "halves"

    share: float = 0.5
    level: int = dataclasses.field(kw_only=True)


@pytest.fixture(scope="module")
def own():
    """The config class of :class:`Halves`, which INC forgets afterwards."""
    config = scheme_config(Halves)
    yield config
    del config_registry.registered_configs["torch"][config.name], algos_mapping[config.name]


@pytest.mark.parametrize("scheme", SHIPPED)
def test_settings_are_the_fields_in_their_order(scheme):
    expected = dict(inspect.signature(scheme).parameters)
    found = dict(inspect.signature(SHIPPED[scheme]).parameters)
    # It came later, by name alone: places stay what they were.
    later = [name for name in expected if name == "layout"]
    placed = [name for name in expected if name not in later]
    assert list(found) == [*placed, "seed", "white_list", *later]
    assert all(found[name].default == expected[name].default for name in expected)
    assert (found["seed"].default, found["white_list"].default) == (0, "*")
    assert SHIPPED[scheme]().layer_scheme == scheme()


@pytest.mark.parametrize("scheme", SHIPPED)
def test_there_is_one_class_for_each_scheme(scheme):
    config = scheme_config(scheme)
    assert config is SHIPPED[scheme]
    assert issubclass(config, VQConfig)
    assert config.__name__ == f"{scheme.__name__}Config"
    assert config.name == f"vq_{scheme.method}"


def test_settings_may_be_given_by_place():
    assert KMConfig(4, 8) == KMConfig(k=4, group=8)
    assert PQConfig(16, 8, "out", "tensor", "int8", "row", 3, ["fc1"]) == PQConfig(
        k=16,
        dim=8,
        axis="out",
        codebooks="tensor",
        codebook_dtype="int8",
        scale="row",
        seed=3,
        white_list=["fc1"],
    )


def test_an_unknown_setting_is_named():
    with pytest.raises(TypeError, match="'kk'"):
        KMConfig(kk=4)


def test_binary_compresses(mlp, schemes):
    small = quantize(mlp, BinaryConfig(scale="row", white_list=["2"]))
    assert schemes(small) == {"2": "binary(scale=row)"}


def test_a_scheme_of_a_users_own_has_a_config_too(own):
    assert own is scheme_config(Halves)
    assert config_registry.get_cls_configs()["torch"]["vq_halves"] is own
    assert [c.layer_scheme for c in own(k=[2, 4], level=1).expand()] == [
        Halves(k=2, level=1),
        Halves(k=4, level=1),
    ]
    with pytest.raises(TypeError, match="level"):
        own(k=2)
    with pytest.raises(ValueError, match="halves: k must be a whole number"):
        own(k=0, level=1)


def test_such_a_config_is_copied_pickled_and_written(own, tmp_path):
    config = own(k=[2, 4], level=3).set_local("fc1", RTNConfig(bits=8))
    config.set_local("fc2", own(level=1))
    assert copy.deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config
    config.to_json_file(tmp_path / "config.json")
    assert type(config).from_json_file(tmp_path / "config.json") == config
    within = KMConfig().set_local("fc2", own(level=1))
    assert KMConfig.from_dict(within.to_dict()) == within


def test_such_a_scheme_goes_through_inc_and_its_files(own, mlp, tmp_path, monkeypatch, assert_same):
    monkeypatch.setitem(SCHEMES, "halves", Halves)
    settings = {"vq_halves": {"k": 4, "level": 2, "white_list": ["0", "2"]}}
    expected = vq.compress(mlp, {"0": Halves(k=4, level=2), "2": Halves(k=4, level=2)})
    small = quantize(mlp, settings)
    assert_same(small, expected, mlp[0].weight.new_ones(3, 32))
    save(small, tmp_path)
    again = load(
        tmp_path,
        nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.Linear(32, 8)),
    )
    assert_same(again, expected, mlp[0].weight.new_ones(3, 32))
    assert again[0].scheme == Halves(k=4, level=2)
    assert {type(config) for config in again.qconfig.values()} == {own}


def test_a_folder_names_a_scheme_that_was_registered_after_the_import(mlp, tmp_path, monkeypatch):
    @dataclasses.dataclass(frozen=True, repr=False)
    class Late(vq.KM):
        method = "late"

    save(quantize(mlp, VQConfig("km(k=4)", white_list=["0"]), inplace=False), tmp_path)
    path = tmp_path / "qconfig.json"
    settings = json.loads(path.read_text())
    ((_, layers),) = settings.items()
    layers["('0', 'Linear')"] = {"vq_late": {"k": 4}}
    path.write_text(json.dumps(settings))
    with pytest.raises(vq.CheckpointError, match="vq_late"):
        load(tmp_path, mlp)
    monkeypatch.setitem(SCHEMES, "late", Late)
    configs = load(tmp_path, mlp).qconfig
    assert configs["0", "Linear"] == scheme_config(Late)(k=4)
    del config_registry.registered_configs["torch"]["vq_late"], algos_mapping["vq_late"]
