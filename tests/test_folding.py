"""Batch norms folded into the layers before them: the same outputs, smaller files."""

import copy
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.checkpoint import CheckpointError, read_header

X = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Every kind of pair that folds, and those that must not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
        self.up, self.norm3 = nn.ConvTranspose2d(8, 6, 2), nn.BatchNorm2d(6, affine=False)
        self.read_twice, self.norm4 = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.shared, self.norm5 = nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)
        self.after_relu = nn.BatchNorm2d(6)
        self.no_statistics = nn.Sequential(
            nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, track_running_stats=False)
        )
        self.grouped, self.norm6 = nn.ConvTranspose2d(6, 6, 2, groups=2), nn.BatchNorm2d(6)
        self.head, self.norm7 = nn.Linear(6, 5), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(self.second(self.norm1(self.first(x)).relu())).relu()
        x = self.norm3(self.up(x))
        y = self.read_twice(x)
        x = self.norm4(y) + y
        x = self.norm5(self.shared(self.shared(x)))
        x = self.no_statistics(self.after_relu(x.relu()))
        x = self.norm6(self.grouped(x))
        return self.norm7(self.head(x.mean((2, 3))))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    net = Net()
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for value in (*module.parameters(), *module.buffers()):
                if value.is_floating_point():
                    nn.init.uniform_(value, 0.5, 1.5)
    return net.eval()


FOLDED = {"norm1", "norm2", "norm3", "norm7"}


def norms(model: nn.Module) -> set[str]:
    kinds = nn.modules.batchnorm._BatchNorm
    return {name for name, module in model.named_modules() if isinstance(module, kinds)}


def test_what_folds_computes_the_same_and_the_rest_stays(net: nn.Module) -> None:
    before = copy.deepcopy(net.state_dict())
    folded = vq.fold_batch_norms(net)
    assert norms(net) - norms(folded) == FOLDED
    with torch.no_grad():
        assert torch.allclose(folded(X), net(X), atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_compress_folds_on_request(net: nn.Module, tmp_path: Path) -> None:
    small = vq.compress(net, vq.KM(k=16), [X], fold=True)
    same = vq.compress(vq.fold_batch_norms(net), vq.KM(k=16), [X])
    assert torch.equal(small(X), same(X))
    plain = vq.compress(net, vq.KM(k=16), [X])
    for name, model in (("plain", plain), ("folded", small)):
        vq.save(model, tmp_path / name)
    sizes = [read_header(tmp_path / name)[1] for name in ("plain", "folded")]
    assert sum(sizes[1].values()) < sum(sizes[0].values())


class Block(nn.Module):
    """As most networks have them."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()
        self.conv1, self.bn1 = nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
        self.down = nn.Sequential(nn.ConvTranspose2d(4, 4, 1), nn.BatchNorm2d(4))
        self.after = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4))
        self.other = nn.Sequential(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.after(y + self.down(x))


def test_a_summary_says_what_folding_saves_without_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    small = vq.compress(Block().eval(), vq.KM(k=4))
    folded = vq.compress(Block().eval(), vq.KM(k=4), fold=True)
    calls: list[object] = []
    monkeypatch.setattr(nn.Module, "__call__", lambda self, *_: calls.append(self))
    monkeypatch.setattr("torch.fx.Tracer.trace", lambda self, *_: calls.append(self))
    found = vq.summary(small)
    left = [v for n, v in folded.state_dict().items() if n not in small.state_dict()]
    gone = [v for n, v in small.state_dict().items() if n not in folded.state_dict()]
    assert found.foldable_nbytes == sum(v.nbytes for v in gone) - sum(v.nbytes for v in left)
    assert "fold=True saves about 248 B" in str(found)
    assert vq.summary(folded).foldable_nbytes == 0
    assert "fold=True" not in str(vq.summary(folded))
    assert not calls


@pytest.mark.parametrize("training", [False, True])
def test_files_of_folded_models_load_into_plain_ones(
    net: nn.Module, tmp_path: Path, training: bool
) -> None:
    small = vq.compress(net, vq.KM(k=16), [X], fold=True)
    vq.save(small, tmp_path / "small.vq")
    again = vq.load(tmp_path / "small.vq", Net().train(training))
    assert norms(again) == norms(small)
    assert torch.equal(again.eval()(X), small(X))
    other = vq.load(tmp_path / "small.vq", vq.fold_batch_norms(Net().eval()))
    assert torch.equal(other(X), small(X))


def test_files_of_plain_models_keep_their_norms(net: nn.Module, tmp_path: Path) -> None:
    vq.save(vq.compress(net, vq.KM(k=16)), tmp_path / "small.vq")
    assert norms(vq.load(tmp_path / "small.vq", Net().eval())) == norms(net)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x if x.sum() > 0 else -x


def test_a_model_that_cannot_be_traced_says_what_to_do(tmp_path: Path) -> None:
    model = Untraceable().eval()
    for call in (vq.fold_batch_norms, lambda m: vq.compress(m, vq.KM(k=4), fold=True)):
        with pytest.raises(ValueError, match=r"torch\.fx cannot trace.*fused_float"):
            call(model)
    weight, bias = nn.utils.fusion.fuse_conv_bn_weights(
        model.conv.weight, model.conv.bias, torch.zeros(4), torch.ones(4), 1e-5, None, None
    )
    fused = Untraceable().eval()
    fused.conv.weight, fused.conv.bias, fused.norm = weight, bias, nn.Identity()
    vq.save(vq.compress(fused, vq.KM(k=4)), tmp_path / "small.vq")
    with pytest.raises(CheckpointError, match=r"lacks the batch norms \['norm'\].*folded model"):
        vq.load(tmp_path / "small.vq", model)


def test_training_mode_is_refused() -> None:
    with pytest.raises(ValueError, match=r"model\.eval\(\)"):
        vq.fold_batch_norms(nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)))


@pytest.mark.parametrize(
    "scheme",
    [
        vq.KM(k=4, codebook_dtype="float32"),
        vq.KM(k=4, scale="row", codebook_dtype="float32"),
        vq.PQ(k=4, dim=2, codebook_dtype="float32"),
        vq.RQ(k=4, stages=2, dim=4, codebook_dtype="float32"),
    ],
    ids=str,
)
def test_norms_of_codebook_layers_become_row_scales(
    scheme: vq.Scheme, net: nn.Module, tmp_path: Path
) -> None:
    small = vq.compress(net, scheme)
    before = {name: value.clone() for name, value in small.state_dict().items()}
    folded = vq.fold_batch_norms(small)
    # A transposed convolution holds its codes by a parametrization.
    assert norms(net) - norms(folded) == FOLDED - {"norm3"}
    with torch.no_grad():
        assert torch.allclose(folded(X), small(X), atol=1e-5)
        for kept, value in small.state_dict().items():
            assert torch.equal(value, before[kept])
    assert torch.equal(folded.first.codes, small.first.codes)  # type: ignore[arg-type, union-attr]
    vq.save(folded, tmp_path / "small.vq")
    again = vq.load(tmp_path / "small.vq", Net().eval())
    assert norms(again) == norms(folded)
    assert torch.equal(again(X), folded(X))


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_files_are_smaller_by_the_norms_of_codebook_layers(
    dtype: Literal["float16", "int8"], net: nn.Module, tmp_path: Path
) -> None:
    small = vq.compress(net, vq.KM(k=4, codebook_dtype=dtype))
    folded = vq.fold_batch_norms(small)
    with torch.no_grad():
        assert torch.allclose(folded(X), small(X), atol=5e-3)
    sizes = [vq.save(each, tmp_path / "m.vq", rest="int8") for each in (small, folded)]
    assert sizes[1] < sizes[0] - 22


def test_norms_that_no_row_scale_holds_stay(net: nn.Module) -> None:
    across = vq.compress(net, vq.PQ(k=4, dim=2, axis="out"))
    assert norms(vq.fold_batch_norms(across)) == norms(net)
    with torch.no_grad():
        net.norm1.running_var[0] = 1e-30  # type: ignore[index, operator, union-attr]
        net.norm1.eps = 1e-30  # type: ignore[assignment, union-attr]
        net.norm2.weight[0] = 0  # type: ignore[index, operator, union-attr]
    folded = vq.fold_batch_norms(vq.compress(net, vq.KM(k=4)))
    assert norms(net) - norms(folded) == FOLDED - {"norm1", "norm3"}


def test_a_weight_that_is_computed_is_left() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
    model = nn.Sequential(layer, nn.BatchNorm2d(4)).eval()
    assert norms(vq.fold_batch_norms(model)) == {"1"}


def test_a_weight_of_two_layers_is_left() -> None:
    first, second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
    second.weight = first.weight
    model = nn.Sequential(first, nn.BatchNorm2d(4), second).eval()
    assert norms(vq.fold_batch_norms(model)) == {"1"}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("change", ["layer's hook", "norm's hooks", "forward", "subclass"])
def test_what_does_more_than_its_kind_is_left(change: str, compressed: bool) -> None:
    class Activated(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    norm = Activated if change == "subclass" else nn.BatchNorm2d
    model = nn.Sequential(nn.Conv2d(3, 8, 3), norm(8)).eval()
    nn.init.uniform_(model[1].weight, 1.0, 2.0)
    if compressed:
        model = vq.compress(model, vq.KM(k=8))
    if change == "layer's hook":
        model[0].register_forward_hook(lambda _, args, output: output.relu())
    elif change == "norm's hooks":
        model[1].register_forward_pre_hook(lambda _, args: (args[0].relu(),))
    elif change == "forward":
        whole = model[1].forward
        model[1].forward = lambda x: whole(x) + 1
    folded = vq.fold_batch_norms(model)
    assert torch.equal(folded(X), model(X))
    assert isinstance(folded[1], nn.BatchNorm2d)


def test_a_norm_alone_in_training_mode_is_refused(net: nn.Module) -> None:
    net.norm2.train()
    with pytest.raises(ValueError, match="norm 'norm2' is in training mode"):
        vq.fold_batch_norms(net)
