"""Each silent no-op of the host becomes an error that says what to do."""

import copy

import pytest
import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig, get_default_qconfig_mapping
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.torch_ao import check_converted, get_backend_config, get_qconfig_mapping

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")

SCHEME = vq.KM(k=4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc1 = nn.Linear(144, 8)
        self.fc2 = nn.Linear(8, 4)
        self.embed = nn.Embedding(4, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.conv1(x)))
        x = self.fc2(functional.relu(self.fc1(x.flatten(1))))
        return self.embed(x.argmax(1))


EXAMPLE = torch.randn(2, 1, 8, 8)


def through_fx(model, mapping, example=EXAMPLE, *, prepare=True, convert=True, custom=None):
    prepared = prepare_fx(
        model.eval(),
        mapping,
        (example,),
        prepare_custom_config=custom,
        backend_config=get_backend_config() if prepare else None,
    )
    prepared(example)
    return convert_fx(prepared, backend_config=get_backend_config() if convert else None)


@pytest.mark.parametrize(
    ("name", "prepare", "convert"),
    [(name, *given) for name in ("conv1", "fc1", "fc2") for given in ((False, True), (True, False))]
    # Embeddings need it in convert only.
    + [(name, False, False) for name in ("conv1", "fc1", "fc2", "embed")]
    + [("embed", True, False)],
)
def test_missing_backend_config(name, prepare, convert):
    schemes = {name: SCHEME}
    converted = through_fx(Net(), get_qconfig_mapping(schemes), prepare=prepare, convert=convert)
    with pytest.raises(ValueError, match=rf"'{name}': asked for km\(k=4\).*backend_config="):
        check_converted(converted, schemes)


def test_all_layers_left_float_are_named():
    converted = through_fx(Net(), get_qconfig_mapping(SCHEME), convert=False)
    with pytest.raises(ValueError, match=r"(?s)'conv1'.*'fc1'.*'fc2'.*'embed'"):
        check_converted(converted, SCHEME)


def test_missing_mapping():
    converted = through_fx(Net(), get_qconfig_mapping({"fc1": SCHEME}))
    with pytest.raises(ValueError, match=r"'fc2'.*still Linear.*get_qconfig_mapping"):
        check_converted(converted, {nn.Linear: SCHEME})


@pytest.mark.parametrize(
    ("pattern", "nearest"),
    [
        ("fc3", "fc2"),
        ("re:conv", "conv1"),
        (nn.Conv3d, "Conv2d"),
        ("norm", "conv1"),
    ],
)
@pytest.mark.parametrize("scheme", [SCHEME, None])
def test_a_pattern_that_matches_nothing(pattern, nearest, scheme):
    schemes = {pattern: scheme, "*": SCHEME}
    converted = through_fx(Net(), get_qconfig_mapping(schemes))
    with pytest.raises(ValueError, match=rf"matches nothing.*{nearest}"):
        check_converted(converted, schemes)


def test_a_module_without_weights_cannot_be_asked_for():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    schemes = {"1": SCHEME}
    converted = through_fx(model, get_qconfig_mapping(schemes), torch.randn(2, 4))
    with pytest.raises(ValueError, match="'1' cannot be compressed: it is a Tanh"):
        check_converted(converted, schemes)


def test_int8_in_place_of_codebooks():
    base = get_default_qconfig_mapping("x86")
    converted = through_fx(Net(), base.set_module_name("embed", None))
    with pytest.raises(ValueError, match=r"'conv1': .*int8 \(.*Conv2d\)") as caught:
        check_converted(converted, {"conv1": SCHEME, "fc1": SCHEME, "fc2": SCHEME})
    for name, kind in {"fc1": "LinearReLU", "fc2": "Linear"}.items():
        assert f"'{name}': asked for km(k=4) but torch.ao quantized it to int8" in str(caught.value)
        assert kind in str(caught.value)


def test_a_name_in_the_base_that_beats_a_regular_expression():
    schemes = {"re:fc.*": SCHEME}
    base = get_default_qconfig_mapping("x86").set_module_name("fc1", get_default_qconfig("x86"))
    base.set_module_name("embed", None)
    converted = through_fx(Net(), get_qconfig_mapping(schemes, base))
    with pytest.raises(ValueError, match=r"'fc1'.*int8.*name it exactly"):
        check_converted(converted, schemes)


class OwnLinear(nn.Linear):
    """Compress replaces it, FX traces into it."""


class OwnForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own = OwnLinear(4, 4)
        self.inner = nn.Linear(4, 4)
        self.table = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return functional.linear(self.own(self.inner(x)), self.table)


@pytest.mark.parametrize(
    ("schemes", "name"),
    [(SCHEME, "own"), (SCHEME, "table"), ({"own": SCHEME}, "own"), ({nn.Linear: SCHEME}, "own")],
)
def test_layers_that_run_as_functions(schemes, name):
    converted = through_fx(OwnForward(), get_qconfig_mapping(schemes), torch.randn(2, 4))
    with pytest.raises(ValueError, match=rf"'{name}'.*function linear.*'{name}': None"):
        check_converted(converted, schemes)


def test_a_bare_layer():
    converted = through_fx(nn.Linear(4, 4), get_qconfig_mapping(SCHEME), torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"function linear.*inside the model"):
        check_converted(converted, SCHEME)


def test_layers_that_run_as_functions_can_be_left():
    schemes = {"*": SCHEME, "own": None, "table": None}
    converted = through_fx(OwnForward(), get_qconfig_mapping(schemes), torch.randn(2, 4))
    assert check_converted(converted, schemes) is converted


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


def test_layers_in_modules_that_fx_does_not_trace():
    model = nn.Sequential(Block(), nn.Linear(4, 4))
    custom = PrepareCustomConfig().set_non_traceable_module_classes([Block])
    mapping = get_qconfig_mapping(SCHEME)
    converted = through_fx(model, mapping, torch.randn(2, 4), custom=custom)
    with pytest.raises(ValueError, match=r"'0.fc'.*does not trace into '0' \(Block\)"):
        check_converted(converted, SCHEME)
    schemes = {"*": SCHEME, "re:0[.].*": None}
    assert check_converted(converted, schemes) is converted


def test_other_schemes_than_prepare_got():
    converted = through_fx(Net(), get_qconfig_mapping({"fc1": SCHEME}))
    with pytest.raises(ValueError, match=r"'fc1': asked for pq.*but it has km"):
        check_converted(converted, {"fc1": vq.PQ()})
    with pytest.raises(ValueError, match=r"'fc1': not asked for but it has km"):
        check_converted(converted, {"fc1": None})


def test_a_check_may_be_repeated():
    converted = through_fx(Net(), get_qconfig_mapping(SCHEME))
    before = converted(EXAMPLE)
    for _ in range(2):
        assert check_converted(converted, SCHEME) is converted
    assert torch.equal(converted(EXAMPLE), before)
    assert torch.equal(copy.deepcopy(converted)(EXAMPLE), before)
