"""The summary counts what the file holds, once, and shows it."""

import math
import re
from pathlib import Path

import pytest
import torch
from scipy.stats import entropy
from torch import nn

import vq_plugin as vq
from vq_plugin.checkpoint import read_header


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


def test_rates_of_factors_are_those_of_their_layer() -> None:
    float_model = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 4))
    small = vq.compress(float_model, {"0": "svd(rank=4)+km(k=16)", "1": "km(k=16)"})
    shown = vq.summary(small)
    assert [row.shape for row in shown.rows] == [(4, 64), (32, 4), (4, 32)]
    assert shown.layer_rate == 4 * (64 * 32 + 32 * 4) / shown.nbytes
    assert shown.file_layer_rate == 4 * (64 * 32 + 32 * 4) / shown.file_nbytes
    assert "compressed weights: 8.7 kB -> " in str(shown)


def test_other_bytes_in_half_precision_count_double_in_float() -> None:
    shown = vq.summary(vq.compress(model().half(), {"0": vq.KM()}))
    assert shown.rows[0].float_nbytes == 4 * 216
    assert shown.other_float_nbytes - 8 == 2 * (shown.other_nbytes - 8)


def test_tied_layers_count_once() -> None:
    tied = nn.ModuleDict({"embed": nn.Embedding(50, 16), "head": nn.Linear(16, 50, bias=False)})
    tied["head"].weight = tied["embed"].weight
    shown = vq.summary(vq.compress(tied, vq.PQ()))
    first, second = shown.rows
    assert second.nbytes == second.file_nbytes == second.float_nbytes == 0
    assert second.note == "tied to embed"
    assert shown.nbytes == first.nbytes > 0
    assert shown.float_nbytes == 4 * 800
    assert shown.other_nbytes == 0


def test_a_reduced_k_is_shown() -> None:
    layer = nn.Linear(8, 8)
    with torch.no_grad():
        layer.weight.copy_(torch.arange(64.0).reshape(8, 8) % 5)
    shown = vq.summary(vq.compress(layer, vq.KM(k=16)))
    assert shown.rows[0].note == "k 16 -> 5: no weight has the others"
    assert "k 16 -> 5" in str(shown)
    assert shown.nbytes == 64 * 3 // 8 + 5 * 2


def test_bytes_in_a_file_are_those_of_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64))
    with torch.no_grad():
        layers[0].weight *= torch.rand(64, 64) < 0.1
    schemes = {
        "0": vq.KM(k=5, keep_zeros=True, scale="row"),
        "1": vq.PQ(),
        "2": vq.RQ(k=2, stages=70, dim=2),
    }
    small = vq.compress(layers, schemes)
    vq.save(small, tmp_path / "m.vq")
    sizes = read_header(tmp_path / "m.vq")[1]
    shown = vq.summary(small)
    for row in shown.rows:
        stored = sum(sizes.get(f"{row.name}.{leaf}", 0) for leaf in ("codes", "codebooks", "scale"))
        assert stored <= row.file_nbytes <= min(stored + 8, row.nbytes)
    # So many stages are never coded, see the file format.
    assert [row.file_nbytes < row.nbytes for row in shown.rows] == [True, False, False]
    assert shown.file_nbytes == sum(row.file_nbytes for row in shown.rows)
    assert shown.file_layer_rate == shown.float_nbytes / shown.file_nbytes > shown.layer_rate


@pytest.mark.parametrize("group", [None, 16])
def test_a_pruned_layer_says_where_its_bits_go(group: int | None) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(64, 64)
    with torch.no_grad():
        layer.weight *= torch.rand(64, 64) < 0.1
    small = vq.compress(layer, vq.KM(k=5, keep_zeros=True, group=group))
    values = small.weight.detach().flatten()  # type: ignore[operator, union-attr]
    share = float((values == 0).double().mean())
    where = entropy([share, 1 - share], base=2)
    (row,) = vq.summary(small).rows
    found = re.fullmatch(r"(.+) % zeros: (.+) bits/weight where, (.+) which", row.note)
    assert found is not None
    zeros, shown_where, shown_which = map(float, found.groups())
    assert zeros == pytest.approx(100 * share, abs=0.05)
    assert shown_where == pytest.approx(where, abs=0.005)
    if group is None:
        counts = torch.unique(values[values != 0], return_counts=True)[1]
        assert shown_which == pytest.approx((1 - share) * entropy(counts, base=2), abs=0.005)
        # Together they are what the codes take.
        assert where + shown_which == pytest.approx(8 * row.file_nbytes / 4096, abs=0.1)
    assert not vq.summary(vq.compress(nn.Linear(64, 64), vq.KM(keep_zeros=True))).rows[0].note
    assert not vq.summary(vq.compress(layer, vq.KM(k=5))).rows[0].note


def test_it_prints_an_aligned_table() -> None:
    shown = vq.summary(vq.compress(model(), vq.KM(k=4)))
    lines = str(shown).splitlines()
    header = ["layer", "kind", "shape", "scheme", "bits/weight", "size", "rate", "file"]
    assert lines[0].split() == header
    assert [line.split()[0] for line in lines[2:5]] == ["0", "3", "4"]
    assert len({len(line) for line in lines[:5]}) == 1
    assert "layer rate" in lines[-2]
    # The network has batch norms after its convolutions.
    assert "fold=True saves" in lines[-1]
    assert repr(shown) == str(shown)


def test_a_model_without_codebooks_has_no_rows() -> None:
    shown = vq.summary(model())
    assert shown.rows == ()
    assert shown.nbytes == 0
    assert shown.layer_rate == math.inf
    assert shown.other_nbytes == sum(v.nbytes for v in model().state_dict().values())
    assert str(shown)


def test_a_model_without_codebooks_has_no_rate_of_layers() -> None:
    shown = str(vq.summary(nn.Sequential(nn.Linear(8, 8))))
    assert "no weight is compressed" in shown
    assert "inf" not in shown


def test_training_does_not_change_the_size() -> None:
    small = vq.compress(model(), vq.PQ(k=4))
    before = vq.summary(small)
    small(torch.randn(2, 3, 8, 8)).sum().backward()
    torch.optim.SGD(small.parameters(), 0.1).step()
    assert vq.summary(small) == before


def test_a_model_without_values_has_no_sizes() -> None:
    small = vq.compress(nn.Sequential(nn.Linear(8, 8)), vq.KM(k=4)).to("meta")
    with pytest.raises(ValueError, match="'0' is on the meta device: there are no codes to count"):
        vq.summary(small)
