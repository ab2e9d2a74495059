"""Files of converted models, and what they load into."""

import pytest
import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.torch_ao import fused_float
from vq_plugin.workloads.digits import DigitsCNN

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")

INPUTS = torch.randn(4, 1, 8, 8)


def dense() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 4)
    ).eval()


@pytest.mark.parametrize("schemes", [vq.PQ(k=8, dim=4), {"3": vq.KM(k=16)}], ids=str)
def test_without_batch_norm_the_float_model_does(convert, assert_same, tmp_path, schemes):
    converted = convert(dense(), schemes, INPUTS)
    vq.save(converted, tmp_path / "model.vq")
    assert_same(vq.load(tmp_path / "model.vq", dense()), converted, INPUTS)


@pytest.mark.parametrize("schemes", [vq.KM(k=8), {"re:classifier.*": vq.KM(k=8)}], ids=str)
def test_with_batch_norm_the_fused_float_model_does(convert, assert_same, tmp_path, schemes):
    model = DigitsCNN()
    model(INPUTS)
    converted = convert(model.eval(), schemes, INPUTS)
    vq.save(converted, tmp_path / "model.vq")
    fresh = fused_float(DigitsCNN().eval())
    assert_same(vq.load(tmp_path / "model.vq", fresh), converted, INPUTS)


def test_with_batch_norm_the_float_model_is_folded(convert, assert_same, tmp_path):
    model = DigitsCNN()
    model(INPUTS)
    converted = convert(model.eval(), vq.KM(k=8), INPUTS)
    vq.save(converted, tmp_path / "model.vq")
    assert_same(vq.load(tmp_path / "model.vq", DigitsCNN().eval()), converted, INPUTS)


def test_summary_counts_what_compress_counts(convert):
    model = dense()
    converted = vq.summary(convert(model, vq.PQ(k=8, dim=4), INPUTS))
    assert str(converted) == str(vq.summary(vq.compress(model, vq.PQ(k=8, dim=4))))


def test_a_training_model_is_not_fused():
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        fused_float(DigitsCNN())
