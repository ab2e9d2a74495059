"""Float models that compute what compressed ones should, independently: from decoded weights."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.nn import coded_weights, find_slots

SCHEMES = [
    vq.KM(k=16),
    vq.PQ(k=16, dim=4),
    vq.PQ(k=8, dim=4, axis="out", scale="row", codebook_dtype="int8"),
    vq.RQ(k=300, stages=2, dim=4),
]
# The same numbers whatever was imported before.
with torch.random.fork_rng():
    torch.manual_seed(0)
    CASES: dict[str, tuple[nn.Module, Tensor]] = {
        "linear": (nn.Linear(32, 24), torch.randn(3, 32)),
        "conv1d": (nn.Conv1d(8, 8, 3), torch.randn(2, 8, 9)),
        "pointwise": (nn.Conv2d(32, 32, 1, stride=2), torch.randn(2, 32, 4, 4)),
        "conv2d": (nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"), torch.randn(2, 8, 5, 5)),
        "conv3d": (nn.Conv3d(4, 4, 2), torch.randn(2, 4, 3, 3, 3)),
        "cell": (nn.GRUCell(8, 8), torch.randn(2, 8)),
        "transposed": (nn.ConvTranspose2d(8, 8, 3), torch.randn(2, 8, 4, 4)),
    }


def pair(name: str, scheme: vq.Scheme) -> tuple[nn.Module, nn.Module, Tensor]:
    """A compressed layer, the float layer with its decoded weight, and an input."""
    layer, x = CASES[name]
    small = vq.compress(copy.deepcopy(layer).eval(), scheme)
    return small, decoded(layer, small), x


def decoded(model: nn.Module, small: nn.Module) -> nn.Module:
    result = copy.deepcopy(model).eval()
    slots = find_slots(result)
    with torch.no_grad():
        for name, coded in coded_weights(small).items():
            slots[name].value.copy_(slots[name].view.restore(coded.codebook_weight.decode()))
    return result


def assert_near(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=tolerance)
