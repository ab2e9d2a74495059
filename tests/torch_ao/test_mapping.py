"""Patterns mean in FX what they mean in compress."""

import pytest
import torch
from torch import nn
from torch.ao.quantization import QConfigMapping, get_default_qconfig_mapping
from torch.ao.quantization.qconfig import qconfig_equals

import vq_plugin as vq
from vq_plugin.nn import CodebookLayer
from vq_plugin.select import select
from vq_plugin.torch_ao import get_qat_qconfig_mapping, get_qconfig_mapping

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 3, padding=1)
        self.fc1 = nn.Linear(8, 8)
        self.fc10 = nn.Linear(8, 8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

    def forward(self, x):
        return self.block(self.fc10(torch.relu(self.fc1(self.conv(x)))))


ONE, TWO, THREE = vq.KM(k=2), vq.KM(k=3), vq.KM(k=4)


@pytest.mark.parametrize(
    "schemes",
    [
        ONE,
        {"fc1": ONE},
        {"re:fc1": ONE},
        {"re:fc1.*": ONE},
        {"re:fc1|block.0": ONE},
        {"re:(?i:FC1)": ONE},
        {"re:.*": ONE, "re:fc.*": TWO},
        {"re:fc.*": TWO, "re:.*": ONE},
        {"*": ONE, nn.Conv1d: TWO},
        {"*": ONE, nn.Conv1d: None},
        {nn.Module: ONE, nn.Linear: TWO},
        {nn.Linear: ONE, nn.Conv1d: TWO, "re:block.*": THREE, "block.2": ONE},
        {"*": ONE, "re:block.*": None, "block.0": TWO},
        {"*": ONE, "block": None},
        {"re:block.*": ONE, "block.0": None},
        {"*": None, "fc1": ONE},
        {"*": ONE, nn.ReLU: None, nn.BatchNorm1d: None},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:pattern .block. leaves nothing")
def test_precedence_equals_select(convert, schemes):
    model = Net().eval()
    known = schemes
    if isinstance(schemes, dict):
        # compress refuses classes that the model lacks; a converted model cannot tell.
        known = {p: s for p, s in schemes.items() if p is not nn.BatchNorm1d}
    expected = select(model, known)
    converted = convert(model, schemes, torch.randn(2, 1, 8))
    found = {n: m.scheme for n, m in converted.named_modules() if isinstance(m, CodebookLayer)}
    assert found == expected


@pytest.mark.parametrize(
    ("schemes", "error", "message"),
    [
        ("pqq", ValueError, r"expected a scheme.*a preset.*'pqq' is unknown"),
        ("auto", TypeError, "a preset stands where a scheme is needed"),
        ({3: ONE}, TypeError, "a pattern is a name"),
        ({"fc1": 4}, TypeError, "'fc1': expected a scheme"),
        ({"re:fc(": ONE}, ValueError, r"'re:fc\(' is not a regular expression"),
        ({"re:(?i)fc1": ONE}, ValueError, r"write flags as '\(\?i:"),
    ],
)
def test_bad_schemes_end_before_prepare(schemes, error, message):
    with pytest.raises(error, match=message):
        get_qconfig_mapping(schemes)


@pytest.mark.parametrize(("pattern", "shown"), [("*", r"'\*'"), (nn.Linear, "Linear")])
def test_classes_beside_a_base_have_to_be_named(pattern, shown):
    with pytest.raises(ValueError, match=f"pattern {shown}: .*select"):
        get_qconfig_mapping({pattern: ONE}, get_default_qconfig_mapping("x86"))


def test_the_base_is_kept_and_not_changed():
    base = get_default_qconfig_mapping("x86").set_module_name_regex("conv.*", None)
    before = repr(base)
    mapping = get_qconfig_mapping({"fc1": ONE, "re:block.*": TWO, "block.0": None}, base)
    assert repr(base) == before
    assert qconfig_equals(mapping.global_qconfig, base.global_qconfig)
    assert list(mapping.module_name_regex_qconfigs)[-1] == "conv.*"
    assert isinstance(mapping, QConfigMapping)


@pytest.mark.parametrize("base", ["x86", {"": None}, vq.KM()])
def test_a_base_is_a_mapping(base):
    with pytest.raises(TypeError, match="base is a QConfigMapping, such as get_default_"):
        get_qconfig_mapping({"0": vq.KM()}, base)
    model = nn.Sequential(nn.Linear(4, 4)).train()
    with pytest.raises(TypeError, match="base is a QConfigMapping, such as get_default_"):
        get_qat_qconfig_mapping(model, {"0": vq.KM()}, base)
