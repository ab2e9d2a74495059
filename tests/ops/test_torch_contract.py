"""What torch asks of an operator: schema, fake, gradients, compile, export."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import vq_plugin as vq
from tests.ops.problems import Operands, operands
from vq_plugin import ops
from vq_plugin.codebook import decode

SCHEMES = [
    vq.PQ(k=8, dim=3),
    vq.PQ(k=8, dim=3, axis="out", scale="row"),
    vq.KM(k=5, scale="row"),
    vq.RQ(k=20, stages=2, dim=4, codebook_dtype="float32"),
]
# The layer rounds these centers, not the operator.
INT8 = vq.PQ(k=8, dim=3, codebook_dtype="int8")


def arguments(scheme: vq.Scheme) -> tuple[Any, ...]:
    layer = vq.compress(nn.Linear(14, 10), scheme)
    x = torch.randn(6, 14, requires_grad=True)
    return (x, layer._codes, layer.codebooks, layer.scale, layer.bias, *layer._settings, 0)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_opcheck(scheme: vq.Scheme) -> None:
    torch.library.opcheck(torch.ops.vq.codebook_linear.default, arguments(scheme))
    _, *rest = arguments(scheme)
    torch.library.opcheck(
        torch.ops.vq.codebook_linear.pointwise,
        (torch.randn(2, 14, 3), *(t.detach() if isinstance(t, Tensor) else t for t in rest)),
    )
    codes, codebooks, scale, *_ = rest
    layer = vq.compress(nn.Linear(14, 10), scheme)
    settings = ([10, 14], *layer._settings[1:])
    torch.library.opcheck(
        torch.ops.vq.dequantize_codebook.default, (codes, codebooks, scale, *settings)
    )


@pytest.mark.parametrize("scheme", [*SCHEMES, INT8], ids=str)
def test_gradients_are_those_of_the_decoded_layer(scheme: vq.Scheme) -> None:
    layer = vq.compress(nn.Linear(14, 10), scheme)
    x = torch.randn(6, 14, requires_grad=True)
    wanted = [x, *layer.parameters()]
    cotangent = torch.randn(6, 10)
    found = torch.autograd.grad((layer(x) * cotangent).sum(), wanted)
    plain = nn.functional.linear(x, layer.weight, layer.bias)
    expected = torch.autograd.grad((plain * cotangent).sum(), wanted)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def operators(graph: torch.fx.Graph) -> list[str]:
    return [str(node.target) for node in graph.nodes if "vq." in str(node.target)]


@pytest.mark.usefixtures("by_codes")
@pytest.mark.parametrize("scheme", [SCHEMES[0], INT8], ids=str)
def test_the_operator_survives_export_with_a_dynamic_batch(scheme: vq.Scheme) -> None:
    small = vq.compress(nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 8)), scheme)
    x = torch.randn(4, 32)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(small.eval(), (x,), dynamic_shapes=(batch,), strict=False)
    assert len(operators(program.graph)) == 2
    for size in (1, 4, 9):
        x = torch.randn(size, 32)
        assert torch.equal(program.module()(x), small(x))


@pytest.mark.usefixtures("by_codes")
@pytest.mark.parametrize("scheme", [SCHEMES[2], INT8], ids=str)
def test_it_compiles_without_a_break(scheme: vq.Scheme) -> None:
    small = vq.compress(nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 8)), scheme)
    compiled = torch.compile(small, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 32)
    with torch.no_grad():
        assert torch.equal(compiled(x), small(x))


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def called(model: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, list[str]]:
    """The result, and the operators of vq_plugin that torch ran for it."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
        y = model(x)
    return y, [event.name for event in seen.events() if event.name.startswith("vq::")]


@needs_compiler
@pytest.mark.parametrize("scheme", [vq.PQ(k=16, dim=4), vq.KM(k=16)], ids=str)
def test_inductor_calls_the_operator(scheme: vq.Scheme) -> None:
    small = vq.compress(nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 8)), scheme)
    compiled = torch.compile(small.eval(), fullgraph=True, dynamic=True)
    called(compiled, torch.randn(3, 32))  # while it compiles, the operator runs more often
    for size in (4, 9):
        x = torch.randn(size, 32)
        y, names = called(compiled, x)
        torch.testing.assert_close(y, small(x))
        assert names == ["vq::codebook_linear"] * 2


@needs_compiler
def test_compiling_a_layer_that_decodes_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    torch._dynamo.reset()
    layer = vq.compress(nn.Conv2d(4, 8, 3), vq.KM(k=4))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 4, 5, 5)
    torch.testing.assert_close(compiled(x), layer(x))
    assert [str(w.message) for w in recwarn if "vq_plugin" in str(w.message)] == []


def test_ahead_of_time_compiled_models_call_the_operator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The usual one is shared by all processes.
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    model = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 8))
    small = vq.compress(model, {"0": vq.PQ(k=16, dim=4), "2": vq.KM(k=16)}).eval()
    batch = {0: torch.export.Dim("batch")}
    example = (torch.randn(4, 32),)
    program = torch.export.export(small, example, dynamic_shapes=(batch,), strict=False)
    quick = {
        "aot_inductor.compile_wrapper_opt_level": "O0",
        "aot_inductor.precompile_headers": False,
    }
    package = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "model.pt2"), inductor_configs=quick
    )
    loaded = torch._inductor.aoti_load_package(package)
    for size in (1, 4, 9):
        x = torch.randn(size, 32)
        y, names = called(loaded, x)
        torch.testing.assert_close(y, small(x))
        assert names == ["vq::codebook_linear"] * 2


@given(operands())
def test_what_other_devices_run_is_the_definition(at: Operands) -> None:
    settings = at.settings
    shape = (settings["out_features"], at.input.shape[-1])
    rest = (settings["along_out"], settings["group"] or 0, settings["codebook_dtype"])
    codes = ops.pack_codes(at.codes, along_out=rest[0]) if at.packs else at.codes
    values = [at.input, at.codebooks, at.scale, at.bias]
    input, codebooks, scale, bias = (None if v is None else v.double() for v in values)
    fallback = torch._C.DispatchKey.CompositeExplicitAutograd
    found = torch.ops.vq.codebook_linear.default._op_dk(
        fallback, input, codes, codebooks, scale, bias, shape[0], *rest, 0
    )
    weight = decode(
        at.codes,
        codebooks.to(rest[2]).double(),
        None if scale is None else scale.to(rest[2]).double(),
        shape=shape,
        axis="out" if rest[0] else "in",
        group=settings["group"],
    )
    torch.testing.assert_close(found, nn.functional.linear(input, weight, bias))

    def meta(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to("meta")

    without_data = torch.ops.vq.codebook_linear(
        *map(meta, (at.input, codes, at.codebooks, at.scale, at.bias)), shape[0], *rest, 0
    )
    assert without_data.shape == found.shape


def test_a_fast_layer_says_so_and_is_no_part_of_the_file(tmp_path: Path) -> None:
    small = vq.compress(nn.Sequential(nn.Linear(64, 64)), vq.PQ(k=16, dim=4))
    vq.set_precision(small, "fast")
    assert small[0].precision == "fast"
    vq.save(small, tmp_path / "m.vq")
    assert vq.load(tmp_path / "m.vq", nn.Sequential(nn.Linear(64, 64)))[0].precision == "exact"
    with pytest.raises(ValueError, match="no codebook layer"):
        vq.set_precision(nn.Linear(2, 2), "fast")
    with pytest.raises(ValueError, match="exact"):
        vq.set_precision(small, "quick")  # type: ignore[arg-type]


def test_a_layer_takes_no_float_weight() -> None:
    layer = vq.compress(nn.Linear(256, 256), vq.PQ(k=16, dim=4))
    layer(torch.randn(2, 256))
    held = sum(t.nbytes for t in (*layer.parameters(), *layer.buffers()))
    assert held < 256 * 256 * 4 / 6
    assert layer._decoded.kept is None


def test_instruction_sets_can_be_named() -> None:
    assert ops.isa() in ops.isas()
    with pytest.raises(ValueError, match="no kernels for 'sse9'"):
        ops.use_isa("sse9")
