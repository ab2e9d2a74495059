"""Models that no call can compress, and results that disappoint: messages say what to do."""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
]
X = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    model = nn.Sequential()
    model.add_module("fc", nn.Linear(16, 16))
    model.add_module("out", nn.Linear(16, 4))
    return model.eval()


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)).eval()


GRAPHS: dict[str, tuple[Callable[[], Any], str]] = {
    "scripted": (lambda: torch.jit.script(net()), "TorchScript.*compress the eager model"),
    "traced": (lambda: torch.jit.trace(net(), X), "TorchScript.*compress the eager model"),
    "exported": (
        lambda: torch.export.export(net(), (X,)).module(),
        "exported graph.*compress the float model",
    ),
    "unflattened": (
        lambda: torch.export.unflatten(torch.export.export(net(), (X,))),
        "exported graph.*compress the float model",
    ),
}


@pytest.mark.parametrize(("build", "message"), GRAPHS.values(), ids=GRAPHS.keys())
@pytest.mark.parametrize("schemes", [vq.KM(k=4), {"fc": vq.KM(k=4)}, {nn.Linear: vq.KM(k=4)}])
def test_graphs(build: Callable[[], Any], message: str, schemes: Any) -> None:
    with pytest.raises(ValueError, match=message):
        vq.compress(build(), schemes)


@pytest.mark.parametrize(("build", "message"), GRAPHS.values(), ids=GRAPHS.keys())
def test_files_into_graphs(build: Callable[[], Any], message: str, tmp_path: Path) -> None:
    vq.save(vq.compress(net(), vq.KM(k=4)), tmp_path / "m.vq")
    with pytest.raises(vq.CheckpointError, match=message):
        vq.load(tmp_path / "m.vq", build())


def test_what_is_no_module(tmp_path: Path) -> None:
    vq.save(vq.compress(net(), vq.KM(k=4)), tmp_path / "m.vq")
    program: Any = torch.export.export(net(), (X,))
    with pytest.raises(TypeError, match=r"ExportedProgram.*compress the float model"):
        vq.compress(program, vq.KM(k=4))
    with pytest.raises(TypeError, match=r"ExportedProgram.*compress the float model"):
        vq.load(tmp_path / "m.vq", program)
    with pytest.raises(TypeError, match="the model is a list"):
        vq.compress([net()], vq.KM(k=4))  # type: ignore[arg-type]
    for call in (
        vq.summary,
        lambda program: vq.save(program, tmp_path / "other.vq"),
        lambda program: vq.finetune(program, [X], teacher=net()),
        lambda program: vq.prune(program, [X], 0.5),
    ):
        with pytest.raises(TypeError, match=r"ExportedProgram.*compress the float model"):
            call(program)


@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_layers_that_torch_ao_has_quantized() -> None:
    small = torch.ao.quantization.quantize_dynamic(net(), {nn.Linear})
    with pytest.raises(ValueError, match=r"torch\.ao has quantized its layers"):
        vq.compress(small, vq.KM(k=4))


@pytest.mark.parametrize("build", [net, normed])
def test_files_of_wrapped_models(build: Callable[[], nn.Module], tmp_path: Path) -> None:
    for saved, model in ((nn.DataParallel(build()), build()), (build(), nn.DataParallel(build()))):
        vq.save(vq.compress(saved, vq.KM(k=4)), tmp_path / "m.vq")
        with pytest.raises(vq.CheckpointError, match=r"DataParallel; save.*\.module"):
            vq.load(tmp_path / "m.vq", model)


@pytest.mark.parametrize("build", [net, normed])
def test_files_into_models_of_which_a_part_is_compiled(
    build: Callable[[], nn.Module], tmp_path: Path
) -> None:
    def whole(*, compiled: bool) -> nn.Module:
        body = torch.compile(build(), backend="eager") if compiled else build()
        return nn.Sequential(OrderedDict(body=body, head=nn.Linear(4, 2))).eval()

    vq.save(vq.compress(whole(compiled=False), vq.KM(k=4)), tmp_path / "m.vq")
    with pytest.raises(vq.CheckpointError, match=r"'body' of the model is compiled: .*_orig_mod"):
        vq.load(tmp_path / "m.vq", whole(compiled=True))
    # Files of such a model go into another one.
    small = vq.compress(whole(compiled=True), vq.KM(k=4))
    vq.save(small, tmp_path / "m.vq")
    again = vq.load(tmp_path / "m.vq", whole(compiled=True))
    assert torch.equal(again(X), small(X))


@pytest.mark.parametrize("path", ["", "fc"])
def test_models_that_cannot_be_copied(path: str) -> None:
    model = net()
    model.get_submodule(path).lock = threading.Lock()  # type: ignore[assignment]
    full = f"{path}.lock" if path else "lock"
    with pytest.raises(TypeError, match=rf"attribute '{full}', a lock .*__deepcopy__"):
        vq.compress(model, {"out": vq.KM(k=4)})


def test_a_scripted_part_is_left_and_named() -> None:
    model = nn.Sequential(torch.jit.script(nn.Linear(64, 64)), nn.Linear(64, 4))
    with pytest.warns(UserWarning, match=r"0\.weight: 16,384 bytes.*TorchScript"):
        small = vq.compress(model, vq.KM(k=4), [torch.randn(8, 64)])
    assert [row.name for row in vq.summary(small).rows] == ["1"]


def test_layers_of_a_symbolic_trace_are_there() -> None:
    small = vq.compress(torch.fx.symbolic_trace(net()), vq.KM(k=4))
    assert [row.name for row in vq.summary(small).rows] == ["fc", "out"]


def test_a_compiled_model_compresses_and_says_where_files_go(tmp_path: Path) -> None:
    for build in (net, normed):
        vq.save(vq.compress(build(), vq.KM(k=4)), tmp_path / "m.vq")
        with pytest.raises(vq.CheckpointError, match=r"compiled: give load\(\) model._orig_mod"):
            vq.load(tmp_path / "m.vq", torch.compile(build(), backend="eager"))
    model = net()
    small: Any = vq.compress(torch.compile(model, backend="eager"), vq.KM(k=4))
    with torch.no_grad():
        output = small(X)
        model.fc.weight.zero_()  # type: ignore[union-attr, operator]
        assert torch.equal(small(X), output)


def with_weight(change: Callable[[Tensor], Tensor]) -> nn.Module:
    model = net()
    changed = change(model.fc.weight.detach())  # type: ignore[union-attr, operator]
    model.fc.weight = nn.Parameter(changed, requires_grad=False)
    return model


def quantized() -> nn.Module:
    torchao = pytest.importorskip("torchao.quantization")
    model = net()
    torchao.quantize_(model, torchao.Int8WeightOnlyConfig(), filter_fn=lambda _, name: name == "fc")
    return model


@pytest.mark.parametrize("calibration", [None, [X]], ids=["plain", "calibrated"])
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: with_weight(lambda w: w.to(torch.float8_e4m3fn)), "float8_e4m3fn, quantized"),
        (lambda: with_weight(lambda w: w.to(torch.float8_e5m2)), "float8_e5m2, quantized"),
        (lambda: with_weight(lambda w: w.to("meta")), "on the meta device: load its values"),
        (lambda: net().to("meta"), "on the meta device: load its values"),
        (quantized, "of torchao: compress the float model"),
    ],
    ids=["float8_e4m3fn", "float8_e5m2", "meta weight", "meta", "torchao"],
)
@pytest.mark.parametrize("schemes", [vq.KM(k=4), {"fc.weight": vq.KM(k=4)}], ids=["all", "named"])
def test_weights_without_float_values_name_their_layer(
    build: Callable[[], nn.Module], message: str, schemes: Any, calibration: Any
) -> None:
    with pytest.raises(ValueError, match=f"layer 'fc': .*{message}"):
        vq.compress(build(), schemes, calibration)


def test_layers_beside_quantized_ones() -> None:
    model = quantized()
    small = vq.compress(model, {"out": vq.KM(k=4)})
    assert small(X).shape == (4, 4)


def test_a_file_into_a_model_without_values(tmp_path: Path) -> None:
    vq.save(vq.compress(net(), vq.KM(k=4)), tmp_path / "m.vq")
    for model in (net().to("meta"), nn.Sequential(net(), nn.LayerNorm(4, device="meta"))):
        with pytest.raises(vq.CheckpointError, match=r"meta device.*to_empty\(device='cpu'\)"):
            vq.load(tmp_path / "m.vq", model)


class Raw(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.fc = nn.Parameter(torch.randn(64, 64)), nn.Linear(64, 4)

    def forward(self, value: Tensor) -> Tensor:
        return self.fc(value @ self.table)


def test_parameters_that_can_be_named_are_among_the_nearest_names() -> None:
    with pytest.raises(ValueError, match="nearest names are table"):
        vq.compress(Raw(), {"tabel": vq.KM(k=4)})


def test_weights_left_float_that_are_most_of_the_file() -> None:
    with pytest.warns(
        UserWarning, match=r"stayed in float \(together 99 % of the file\):\n  table"
    ):
        small = vq.compress(Raw(), vq.KM(k=4))
    shown = str(vq.summary(small))
    assert "(layer rate 14.2x)" in shown
    assert "(file rate 1.06x)" in shown
    assert "left in float, 99 % of the file:\n  table: 16.4 kB" in shown
    sizes = vq.summary(vq.compress(Raw(), {"fc": vq.KM(k=4), "table": vq.KM(k=4)}))
    rate = sizes.model_float_nbytes / sizes.model_file_nbytes
    assert f"(file rate {rate:.2f}x)" in str(sizes)
    assert "left in float" not in str(sizes)


def depthwise() -> nn.Module:
    """Rows of very different sizes, as folded norms leave them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(32, 8, 1))
    with torch.no_grad():
        model[0].weight *= torch.logspace(-3, 0, 32).reshape(-1, 1, 1, 1)
    return model


def test_a_plain_fit_that_is_far_off_says_what_helps() -> None:
    with pytest.warns(UserWarning, match=r"far off .* '0' \(\d+ %\): give calibration=") as found:
        vq.compress(depthwise(), vq.KM(k=16))
    assert found[0].filename == __file__
    assert "'1'" not in str(found[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vq.compress(depthwise(), vq.KM(k=16, scale="row"))
        vq.compress(depthwise(), {"0": vq.KM(k=16)}, [torch.randn(2, 32, 8, 8)])
        vq.compress(net(), vq.KM(k=16))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bare_layer_is_named_by_its_class(value: float) -> None:
    layer = nn.Linear(4, 4)
    nn.init.constant_(layer.weight, value)
    with pytest.raises(ValueError, match=r"layer Linear \(the model itself\): .* NaN or infinite"):
        vq.compress(layer, vq.KM(k=4))


def test_a_sparse_weight() -> None:
    model = net()
    model.fc.weight = nn.Parameter(model.fc.weight.data.to_sparse())
    with pytest.raises(
        ValueError, match=r"layer 'fc': the weight is of torch.sparse_coo.*to_dense"
    ):
        vq.compress(model, vq.KM(k=4))


def test_a_search_names_a_lazy_layer() -> None:
    with pytest.raises(ValueError, match=r"layer '0' is lazy .*run one batch first"):
        vq.tune(nn.Sequential(nn.LazyLinear(4)), lambda _: 1.0)


@pytest.mark.filterwarnings("ignore:Calling register_constant")
def test_a_search_leaves_quantized_layers_alone() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    model = net()
    torchao.quantize_(model.fc, torchao.Int8WeightOnlyConfig())
    ladder = {"out": [vq.KM(k=4)]}
    found = vq.tune(model, lambda _: 1.0, candidates=ladder, calibration=[X], max_trials=2)
    assert found.passed
