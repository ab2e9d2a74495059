"""The summary counts what the file holds, once, and shows it."""

import math

import torch
from torch import nn

import vq_plugin as vq


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 36, 10), nn.Linear(10, 4)
    )


def test_rows_rates_and_bytes_by_hand() -> None:
    small = vq.compress(model(), {"0": vq.KM(k=16), "3": vq.PQ(k=8, dim=4, axis="out")})
    shown = vq.summary(small)
    conv, linear = shown.rows
    assert (conv.name, conv.kind, conv.shape) == ("0", "CodebookConv2d", (8, 3, 3, 3))
    assert (linear.name, linear.kind, linear.shape) == ("3", "CodebookLinear", (10, 288))
    assert conv.nbytes == 216 // 2 + 16 * 2
    # 10 outputs are 3 sub-vectors of 4, padded; 3-bit codes for 288 inputs.
    assert linear.nbytes == 288 * 3 * 3 // 8 + 3 * 8 * 4 * 2
    assert conv.float_nbytes == 216 * 4
    assert conv.bits_per_weight == 8 * conv.nbytes / 216
    assert conv.scheme == "km(k=16)"
    assert shown.nbytes == conv.nbytes + linear.nbytes
    assert shown.float_nbytes == 4 * (216 + 2880)
    assert shown.layer_rate == shown.float_nbytes / shown.nbytes
    # Biases 8 + 10, norm 4 x 8 and its int64 counter, the layer left 40 + 4.
    assert shown.other_nbytes == 4 * (8 + 10 + 32 + 44) + 8
    assert shown.other_float_nbytes == shown.other_nbytes


def test_other_bytes_in_half_precision_count_double_in_float() -> None:
    shown = vq.summary(vq.compress(model().half(), {"0": vq.KM()}))
    assert shown.rows[0].float_nbytes == 4 * 216
    assert shown.other_float_nbytes - 8 == 2 * (shown.other_nbytes - 8)


def test_tied_layers_count_once() -> None:
    tied = nn.ModuleDict({"embed": nn.Embedding(50, 16), "head": nn.Linear(16, 50, bias=False)})
    tied["head"].weight = tied["embed"].weight
    shown = vq.summary(vq.compress(tied, vq.PQ()))
    first, second = shown.rows
    assert second.nbytes == second.float_nbytes == 0
    assert second.note == "tied to embed"
    assert shown.nbytes == first.nbytes > 0
    assert shown.float_nbytes == 4 * 800
    assert shown.other_nbytes == 0


def test_a_reduced_k_is_shown() -> None:
    layer = nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(64.0).reshape(8, 8) % 5)
    shown = vq.summary(vq.compress(layer, vq.KM(k=16)))
    assert shown.rows[0].note == "k 16 -> 5: no more distinct values"
    assert "k 16 -> 5" in str(shown)
    assert shown.nbytes == 64 * 3 // 8 + 5 * 2


def test_it_prints_an_aligned_table() -> None:
    shown = vq.summary(vq.compress(model(), vq.KM(k=4)))
    lines = str(shown).splitlines()
    assert lines[0].split() == ["layer", "kind", "shape", "scheme", "bits/weight", "size", "rate"]
    assert [line.split()[0] for line in lines[2:5]] == ["0", "3", "4"]
    assert len({len(line) for line in lines[:5]}) == 1
    assert "layer rate" in lines[-1]
    assert repr(shown) == str(shown)


def test_a_model_without_codebooks_has_no_rows() -> None:
    shown = vq.summary(model())
    assert shown.rows == ()
    assert shown.nbytes == 0
    assert shown.layer_rate == math.inf
    assert shown.other_nbytes == sum(v.nbytes for v in model().state_dict().values())
    assert str(shown)


def test_training_does_not_change_the_size() -> None:
    small = vq.compress(model(), vq.PQ(k=4))
    before = vq.summary(small)
    small(torch.randn(2, 3, 8, 8)).sum().backward()
    torch.optim.SGD(small.parameters(), 0.1).step()
    assert vq.summary(small) == before
