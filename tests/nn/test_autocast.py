"""Under autocast layers give what float layers give, whichever kernel runs."""

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from tests.nn.decoding import CASES, SCHEMES, assert_near, decoded, pair

HALVES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("scheme", [*SCHEMES, vq.KM(k=16, group=16)], ids=str)
@pytest.mark.parametrize("name", CASES)
def test_the_dtype_is_that_of_the_float_layer(
    name: str, scheme: vq.Scheme, dtype: torch.dtype
) -> None:
    small, expected, x = pair(name, scheme)
    for batch in (x[:1], x, x.repeat(64, *[1] * (x.dim() - 1))):
        for input in (batch, batch.to(dtype)):
            for gradients in (False, True):
                with torch.set_grad_enabled(gradients), torch.autocast("cpu", dtype=dtype):
                    try:
                        want = expected(input)
                    except RuntimeError:  # torch's own cells, in float16
                        continue
                    found = small(input)
                assert found.dtype is want.dtype
                assert_near(found.float(), want.float(), 0.05)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_large_layer_gives_it_by_its_kernel_and_keeps_no_weight(dtype: torch.dtype) -> None:
    layer = nn.Linear(512, 512)
    small = vq.compress(layer, vq.PQ(k=16, dim=4))
    expected = decoded(layer, small)
    x = torch.randn(2, 512)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        for input in (x, x.to(dtype)):
            assert small(input).dtype is dtype
            assert_near(small(input).float(), expected(input).float(), 0.05)
    assert small._decoded.kept is None


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_near_those_outside(name: str) -> None:
    small, _, x = pair(name, vq.PQ(k=16, dim=4))

    def gradients(autocast: bool, backward_inside: bool) -> list[Tensor]:
        small.zero_grad()
        inside = torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast)
        with inside:
            loss = small(x).float().square().sum()
            if backward_inside:
                loss.backward()
        if not backward_inside:
            loss.backward()
        return [p.grad.clone() for p in small.parameters() if p.grad is not None]

    exact = gradients(False, False)
    for inside in (False, True):
        found = gradients(True, inside)
        for one, other in zip(found, exact, strict=True):
            assert float((one - other).norm()) <= 0.05 * float(other.norm())


def test_float64_stays_float64() -> None:
    small = vq.compress(nn.Linear(8, 8).double(), vq.KM(k=4))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert small(torch.randn(2, 8).double()).dtype is torch.float64


@pytest.mark.usefixtures("by_codes")
def test_compiled_and_exported_programs_follow(recwarn: pytest.WarningsRecorder) -> None:
    torch._dynamo.reset()
    small = vq.compress(nn.Sequential(nn.Linear(64, 64)), vq.PQ(k=16, dim=4)).eval()
    x = torch.randn(2, 64)
    compiled = torch.compile(small, backend="aot_eager", fullgraph=True)
    exported = torch.export.export(small, (x,), strict=False).module()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = small(x)
        for program in (compiled, exported):
            assert program(x).dtype is torch.bfloat16
            assert torch.equal(program(x), expected)


def test_a_compressed_encoder_keeps_the_dtype_of_its_fast_path() -> None:
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    small = vq.compress(model, vq.KM(k=16))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert small(torch.randn(2, 3, 16)).dtype is model(torch.randn(2, 3, 16)).dtype
