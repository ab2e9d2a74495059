"""``CodebookEmbedding`` against the float embedding with the decoded weight."""

import copy
import functools
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin import reader
from vq_plugin.nn import CodebookEmbedding

SCHEMES = [
    vq.KM(k=8),
    vq.KM(k=2, scale="row"),
    vq.RQ(k=3, stages=2, dim=5),
    vq.PQ(k=16, dim=4, codebooks="tensor"),
    vq.KM(k=4, group=7),
    vq.PQ(k=8, dim=4),
    vq.PQ(k=8, axis="out"),
    vq.RQ(k=8, dim=5),
    vq.PQ(k=8, dim=4, axis="out", codebooks="tensor", scale="row", codebook_dtype="int8"),
    vq.KM(k=300, group=7, scale="row"),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("padding_idx", [None, 0, -1])
def test_it_looks_up_the_decoded_weight(scheme: vq.Scheme, padding_idx: int | None) -> None:
    source = nn.Embedding(30, 12, padding_idx=padding_idx)
    layer = CodebookEmbedding.from_float(source, scheme)
    weight = vq.quantize_weight(source.weight, scheme).decode()
    if padding_idx is not None:
        weight[padding_idx] = 0
    for index in (
        torch.arange(30),
        torch.randint(30, (2, 5), dtype=torch.int32),
        torch.tensor(3),
        torch.zeros(0, dtype=torch.long),
    ):
        assert torch.equal(layer(index), functional.embedding(index, weight))
        assert torch.equal(layer.to_float()(index), layer(index))


@pytest.mark.parametrize("scale_grad_by_freq", [False, True])
def test_gradients_treat_padding_and_frequency_as_the_float_layer(
    scale_grad_by_freq: bool,
) -> None:
    source = nn.Embedding(10, 4, padding_idx=2, scale_grad_by_freq=scale_grad_by_freq)
    # One center for every weight: the codebook's gradient is the weight's.
    layer = CodebookEmbedding.from_float(source, vq.KM(k=64, codebook_dtype="float32"))
    index = torch.tensor([1, 2, 2, 3, 3, 3])
    target = torch.randn(6, 4)
    for module in (source, layer):
        (module(index) * target).sum().backward()
    assert source.weight.grad is not None
    assert layer.codebooks.grad is not None
    by_weight = layer.codebooks.grad.flatten()[layer.codes.long().reshape(10, 4)]
    assert torch.allclose(by_weight, source.weight.grad, atol=1e-6)


@pytest.mark.parametrize(
    ("scheme", "bits"),
    [
        (vq.Binary(), 1), (vq.KM(k=4), 2), (vq.KM(k=16), 4), (vq.KM(k=17), 8),
        (vq.PQ(k=16, dim=4), 4), (vq.KM(k=16, group=50), 4), (vq.RQ(k=4, stages=2, dim=1), 4),
    ],
    ids=str,
)  # fmt: skip
def test_codes_take_a_part_of_a_byte(scheme: vq.Scheme, bits: int) -> None:
    source = nn.Embedding(100, 24)
    layer = CodebookEmbedding.from_float(source, scheme)
    small = vq.quantize_weight(source.weight, scheme)
    held = sum(
        value.nbytes
        for owner in (layer, copy.deepcopy(layer).double().to(torch.float16))
        for value in vars(owner).values()
        if isinstance(value, torch.Tensor)
    )
    assert held == 2 * 100 * 24 * bits // (8 * small.geometry.dim)
    # What others read is a code each, as ever.
    assert torch.equal(layer.codes, small.codes)
    assert torch.equal(layer.state_dict()["codes"], small.codes)


def test_an_embedding_that_rewrites_its_weight_is_refused() -> None:
    with pytest.raises(ValueError, match=r"max_norm=1\.0 rewrites its weight.*max_norm=None"):
        CodebookEmbedding.from_float(nn.Embedding(10, 4, max_norm=1.0), vq.KM())


def test_an_index_out_of_range_is_an_error() -> None:
    layer = CodebookEmbedding.from_float(nn.Embedding(10, 4), vq.KM())
    with pytest.raises(IndexError):
        layer(torch.tensor([10]))


def test_repr_names_the_padding_index() -> None:
    layer = CodebookEmbedding.from_float(nn.Embedding(10, 4, padding_idx=3), vq.KM(k=4))
    assert repr(layer).startswith("CodebookEmbedding(10, 4, padding_idx=3, km(k=4), ")


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_gradients_are_those_of_the_whole_weight(scheme: vq.Scheme) -> None:
    for padding_idx, zero in ((None, False), (3, True), (3, False)):
        source = nn.Embedding(30, 12, padding_idx=padding_idx)
        if not zero:
            nn.init.normal_(source.weight)
        layer = CodebookEmbedding.from_float(source, scheme)
        index, target = torch.randint(30, (4, 9)), torch.randn(4, 9, 12)
        index[:, 0] = 3
        parameters = list(layer.parameters())
        found = torch.autograd.grad((layer(index) * target).sum(), parameters)
        # Torch's own gradient of a table leaves the row of the padding out.
        whole = functional.embedding(index, layer.weight, padding_idx)
        expected = torch.autograd.grad((whole * target).sum(), parameters)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("gradients", [False, True])
def test_only_rows_that_are_looked_up_are_decoded(
    scheme: vq.Scheme, gradients: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = CodebookEmbedding.from_float(nn.Embedding(3000, 12), scheme)
    index = torch.tensor([1, 2999])
    expected = layer.weight.detach()[index]
    monkeypatch.setattr("vq_plugin.nn.coded.decode", None)
    monkeypatch.setattr("vq_plugin.nn.coded.dequantize_codebook", None)
    with torch.set_grad_enabled(gradients):
        assert torch.equal(layer(index), expected)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("index", [30, 31, -1])
def test_a_row_that_there_is_not_is_an_error_whatever_the_axis(
    scheme: vq.Scheme, index: int
) -> None:
    layer = CodebookEmbedding.from_float(nn.Embedding(30, 12), scheme)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients), pytest.raises(IndexError):
            layer(torch.tensor([0, index]))


@pytest.mark.parametrize("scheme", [*SCHEMES, vq.Binary()], ids=str)
def test_the_row_of_the_padding_is_exactly_zero_and_stays_so(
    scheme: vq.Scheme, tmp_path: Path
) -> None:
    model = nn.Sequential(nn.Embedding(50, 12, padding_idx=-1), nn.Flatten(), nn.Linear(48, 4))
    small = vq.compress(model.eval(), scheme)
    batches = [torch.randint(50, (16, 4)) for _ in range(4)]
    for batch in batches:
        batch[:, 2] = 49

    def rows(model: nn.Module) -> list[torch.Tensor]:
        table = model[0]  # type: ignore[index]
        found = [table(torch.tensor([[49]])), table.weight[49], table.to_float().weight[49]]
        with torch.no_grad():
            return [*found, table(torch.tensor(49)), table.weight[49]]

    vq.finetune(small, batches, teacher=model)
    vq.save(small, tmp_path / "m.vq")
    fresh = nn.Sequential(nn.Embedding(50, 12, padding_idx=-1), nn.Flatten(), nn.Linear(48, 4))
    other = vq.compress(fresh, scheme)
    other.load_state_dict(small.state_dict())
    for each in (small, vq.load(tmp_path / "m.vq", fresh), other, copy.deepcopy(small)):
        assert not any(row.any() for row in rows(each))
        assert torch.equal(each.eval()(batches[0]), small.eval()(batches[0]))


@pytest.mark.parametrize("zero", [False, True])
def test_a_padding_row_that_is_not_zero_is_coded_as_others_are(zero: bool, tmp_path: Path) -> None:
    # As in models whose checkpoints were trained elsewhere.
    source, fresh = (nn.Embedding(50, 12, padding_idx=3) for _ in range(2))
    if not zero:
        nn.init.normal_(source.weight)
    small = vq.compress(nn.Sequential(source), vq.KM(k=16))
    vq.save(small, tmp_path / "m.vq")
    loaded = vq.load(tmp_path / "m.vq", nn.Sequential(fresh))
    other = vq.compress(nn.Sequential(fresh), vq.KM(k=16))
    other.load_state_dict(small.state_dict())
    for each in (small, loaded, other):
        assert bool(each(torch.tensor([3])).any()) is not zero
        assert torch.equal(each(torch.arange(50)), small(torch.arange(50)))


class Scaled(nn.Embedding):
    """As those of BART."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(input)


def renamed() -> nn.Module:
    layer = nn.Embedding(50, 12, padding_idx=3)
    layer.forward = functools.partial(nn.Embedding.forward, layer)  # type: ignore[method-assign]
    return layer


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("scheme", [*SCHEMES, vq.Binary()], ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda: Scaled(50, 12, padding_idx=3),
        renamed,
        lambda: nn.EmbeddingBag(50, 12, padding_idx=3),
    ],
    ids=["subclass", "instance", "bag"],
)
def test_tables_that_stay_what_they_are_keep_the_row_of_their_padding(
    make: Callable[[], nn.Module], scheme: vq.Scheme, zero: bool, tmp_path: Path
) -> None:
    source, fresh = make(), make()
    if not zero:
        nn.init.normal_(source.weight)  # type: ignore[arg-type]
    small = vq.compress(nn.Sequential(source), scheme)
    vq.save(small, tmp_path / "m.vq")
    other = vq.compress(nn.Sequential(fresh), scheme)
    other.load_state_dict(small.state_dict())
    loaded = vq.load(tmp_path / "m.vq", nn.Sequential(make()))
    copied = pickle.loads(pickle.dumps(small)) if make is not renamed else copy.deepcopy(small)
    x = torch.tensor([[3, 4], [5, 3]])
    for each in (small, loaded, other, copied):
        assert bool(each[0].weight[3].any()) is not zero
        assert torch.equal(each[0].weight, small[0].weight)
        assert torch.equal(each(x), small(x))
        with torch.no_grad():
            assert torch.equal(each[0].weight, small[0].weight)
    for file in (vq.open_file(tmp_path / "m.vq"), reader.open_file(tmp_path / "m.vq")):
        read = torch.as_tensor(file.layers["0"].decode())
        assert torch.equal(read, small[0].weight.detach())
    small(x).sum().backward()
    if zero:
        assert not small[0].weight[3].any()
