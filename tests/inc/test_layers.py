"""Which layers a config is for."""

import copy

import pytest

pytest.importorskip("neural_compressor", reason="Intel Neural Compressor is not installed")

from neural_compressor.torch.quantization import quantize
from torch import nn

from vq_plugin.inc import KMConfig, PQConfig, VQConfig

ALL = ["embed", "conv1d", "conv2d", "conv3d", "fc1", "fc10", "out"]


def test_all_layers(net, schemes):
    assert list(schemes(quantize(net, KMConfig()))) == ALL


@pytest.mark.parametrize(
    ("key", "hit"),
    [
        ("fc1", ["fc1"]),  # INC's own rule takes fc10 as well
        ("fc1.*", ["fc1", "fc10"]),
        (r"re:conv\dd", ["conv1d", "conv2d", "conv3d"]),
        (r"conv\dd", ["conv1d", "conv2d", "conv3d"]),
        (nn.Linear, ["fc1", "fc10", "out"]),
        ("Linear", ["fc1", "fc10", "out"]),
        (nn.Embedding, ["embed"]),
        ("*", ALL),
    ],
)
def test_keys_of_white_lists_and_set_local(net, schemes, key, hit):
    listed = quantize(copy.deepcopy(net), KMConfig(white_list=[key]))
    assert list(schemes(listed)) == hit
    local = schemes(quantize(net, KMConfig(k=4).set_local(key, PQConfig())))
    assert [name for name, scheme in local.items() if scheme.startswith("pq")] == hit


def test_the_most_specific_rule_decides(net, schemes):
    config = KMConfig(k=2)
    config.set_local(nn.Linear, KMConfig(k=3))
    config.set_local("fc.*", KMConfig(k=4))
    config.set_local("fc10", KMConfig(k=5))
    found = schemes(quantize(net, config))
    assert [found[name] for name in ("embed", "out", "fc1", "fc10")] == [
        "km(k=2)",
        "km(k=3)",
        "km(k=4)",
        "km(k=5)",
    ]


def test_of_two_rules_of_one_kind_the_last_decides(net, schemes):
    config = KMConfig(k=2).set_local("fc.*", KMConfig(k=3)).set_local("fc1.*", KMConfig(k=4))
    assert schemes(quantize(net, config))["fc10"] == "km(k=4)"


def test_leaving_a_container_warns():
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8)), nn.Linear(8, 8))
    with pytest.warns(UserWarning, match=r"'0' is no layer, .* 're:0\.\*'"):
        quantize(model, KMConfig().set_local("0", None), inplace=False)
    small = quantize(model, KMConfig().set_local("re:0.*", None))
    assert type(small[0][0]) is nn.Linear


def test_none_leaves_layers_in_float(net, schemes):
    config = KMConfig().set_local(["fc1", nn.Conv3d], None).set_local("out", VQConfig(None))
    assert list(schemes(quantize(net, config))) == ["embed", "conv1d", "conv2d", "fc10"]


def test_do_nothing(net, schemes):
    assert schemes(quantize(net, VQConfig(None))) == {}


def test_a_list_of_keys(net, schemes):
    config = VQConfig(None).set_local(["fc1", "out"], KMConfig())
    assert list(schemes(quantize(net, config))) == ["fc1", "out"]


def test_white_list_and_set_local(net, schemes):
    config = KMConfig(k=4, white_list=["fc1", "fc10"]).set_local("fc10", PQConfig())
    assert schemes(quantize(net, config)) == {"fc1": "km(k=4)", "fc10": "pq(k=16,dim=4)"}


def test_a_changed_setting_reaches_the_layers(net, schemes):
    config = KMConfig(k=4, white_list=["fc1"])
    config.k = 8
    assert schemes(quantize(net, config)) == {"fc1": "km(k=8)"}


def test_unmatched_keys_warn_with_the_nearest_names(net, schemes):
    config = KMConfig(k=4).set_local("fc11", PQConfig()).set_local("out", PQConfig())
    with pytest.warns(
        UserWarning, match=r"pattern 'fc11' matches nothing; the nearest names are fc1"
    ):
        small = quantize(net, config)
    assert schemes(small)["out"] == "pq(k=16,dim=4)"
    assert schemes(small)["fc1"] == "km(k=4)"


def test_nothing_matched_is_an_error(net):
    nearest = "the nearest names are fc1"
    with (
        pytest.warns(UserWarning, match=nearest),
        pytest.raises(ValueError, match=f"KMConfig is for no layer .* {nearest}"),
    ):
        quantize(net, KMConfig(white_list=["fc11"]))
    assert type(net.fc1) is nn.Linear


def test_a_named_module_that_cannot_be_compressed_is_an_error():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    with pytest.raises(ValueError, match=r"'1' cannot be compressed: it is a BatchNorm1d"):
        quantize(model, KMConfig(white_list=["0", "1"]))


def test_a_model_without_layers_is_an_error():
    with pytest.raises(ValueError, match="the model has no Linear, Conv1d"):
        quantize(nn.Sequential(nn.ReLU()), KMConfig())
