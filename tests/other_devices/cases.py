"""What test_elsewhere.py runs in a process of its own."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from tests.other_devices import elsewhere
from vq_plugin.nn.coded import CodedWeight, Memory

SCHEMES = [
    vq.KM(k=16),
    vq.KM(k=8, scale="row"),
    vq.PQ(k=16, dim=4),
    vq.PQ(k=16, dim=3, axis="out"),
    vq.PQ(k=8, dim=4, codebook_dtype="int8"),
    vq.PQ(k=16, dim=4, layout="channels"),
    vq.RQ(k=16, stages=2, dim=4),
    vq.Uniform(step=0.5, scale="row"),
    vq.Binary(),
]
FITTED = [vq.KM(k=8, scale="row"), vq.PQ(k=16, dim=3, axis="out"), vq.RQ(k=16, stages=2, dim=4)]
X = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
ROWS = torch.randint(50, (4, 3), generator=torch.Generator().manual_seed(0))
LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (lambda: nn.Linear(16, 32), X),
    "pointwise": (lambda: nn.Conv2d(8, 16, 1), IMAGES),
    "convolution": (lambda: nn.Conv2d(8, 16, 3, padding=1), IMAGES),
    "groups": (lambda: nn.Conv2d(8, 16, 3, groups=4), IMAGES),
    "transposed": (lambda: nn.ConvTranspose2d(8, 16, 3), IMAGES),
    "embedding": (lambda: nn.Embedding(50, 16, padding_idx=0), ROWS),
}
OTHERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "recurrent": (lambda: nn.LSTM(16, 8), X),
    "attention": (lambda: nn.MultiheadAttention(16, 2), X),
}

pytestmark = pytest.mark.filterwarnings("ignore:codes are far off")


@pytest.fixture
def device() -> Iterator[str]:
    with elsewhere.device() as name:
        yield name


def _cast(inputs: Tensor, dtype: torch.dtype) -> Tensor:
    return inputs.to(dtype) if inputs.is_floating_point() else inputs


def _bias(layer: nn.Module) -> dict[str, Tensor]:
    return {} if getattr(layer, "bias", None) is None else {"bias": layer.bias}


def _codes(model: nn.Module) -> list[CodedWeight]:
    return [each for each in model.modules() if isinstance(each, CodedWeight)]


def test_tensors_of_two_devices_do_not_meet(device: str) -> None:
    with pytest.raises(RuntimeError, match="takes tensors of elsewhere and of cpu"):
        X.to(device) + X


@pytest.mark.parametrize(
    ("dtype", "memory"),
    [(torch.float32, "weight"), (torch.float16, "codes"), (torch.bfloat16, "weight")],
    ids=["float32", "float16", "bfloat16"],
)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_and_gradients_are_those_of_the_decoded_weight(
    kind: str, scheme: vq.Scheme, dtype: torch.dtype, memory: Memory, device: str
) -> None:
    build, inputs = LAYERS[kind]
    small = vq.compress(nn.Sequential(build()), scheme).to(dtype)
    inputs = _cast(inputs, dtype)
    plain = build().eval().to(dtype)
    with torch.no_grad():
        plain.weight.copy_(small[0].weight)
    plain.load_state_dict({"weight": plain.weight} | _bias(small[0]))
    there = copy.deepcopy(small).to(device)
    vq.set_memory(there, memory)

    with torch.no_grad():
        outputs = there(inputs.to(device))
        again = there(inputs.to(device))
    assert (outputs.device.type, outputs.dtype) == (device, dtype)
    assert torch.equal(outputs.cpu(), plain(inputs))
    assert torch.equal(again.cpu(), outputs.cpu())

    small(inputs).float().square().sum().backward()
    there(inputs.to(device)).float().square().sum().backward()
    for (name, ours), theirs in zip(small.named_parameters(), there.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None and theirs.grad is not None:
            bound = 1e-4 if dtype is torch.float32 else 0.05
            largest = float(ours.grad.abs().max())
            torch.testing.assert_close(theirs.grad.cpu(), ours.grad, rtol=0, atol=bound * largest)


@pytest.mark.parametrize("scheme", FITTED, ids=str)
@pytest.mark.parametrize("kind", [*LAYERS, *OTHERS])
def test_fits_give_the_codes_of_the_cpu(kind: str, scheme: vq.Scheme, device: str) -> None:
    build, inputs = (LAYERS | OTHERS)[kind]
    model = nn.Sequential(build()).eval()
    # Recurrent layers and attention take kernels of the CPU that round in their own way.
    for data in (None,) if kind in OTHERS else (None, [inputs]):
        expected = vq.compress(model, scheme, data).state_dict()
        moved = None if data is None else [inputs.to(device)]
        there = vq.compress(copy.deepcopy(model).to(device), scheme, moved)
        for small in _codes(there):
            assert small.codes.device.type == small.codebooks.device.type == device
        for name, tensor in there.state_dict().items():
            assert torch.equal(tensor.cpu(), expected[name]), name
