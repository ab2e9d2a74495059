"""Codebook layers in what ``torch.fx`` traces: whole, as layers of torch are."""

import copy

import pytest
import torch
from torch import Tensor, fx, nn

import vq_plugin as vq


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 8, padding_idx=0)
        self.rows = nn.Linear(8, 8)
        self.places = nn.Conv1d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.places(self.rows(input=self.embedding(x)).mT)  # type: ignore[no-any-return]


NETS = {
    "images": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.BatchNorm2d(4),
            nn.ConvTranspose2d(4, 4, 3),
            nn.Flatten(),
            nn.Linear(144, 8),
        ),
        torch.randn(5, 2, 6, 6),
    ),
    "words": (Keywords, torch.randint(0, 20, (3, 5))),
}


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_a_symbolic_trace_holds_layers_as_they_are(name: str, gradients: bool) -> None:
    make, x = NETS[name]
    torch.manual_seed(0)
    model = make().eval()
    small = vq.compress(model, vq.KM(k=16))
    with torch.set_grad_enabled(gradients):
        traced = fx.symbolic_trace(small)
    expected = [node.target for node in fx.symbolic_trace(model).graph.nodes]
    assert [node.target for node in traced.graph.nodes] == expected
    assert traced.state_dict().keys() == small.state_dict().keys()
    for copied in (traced, copy.deepcopy(traced)):
        assert torch.equal(copied(x), small(x))
    # Codebooks that train go on to be those of the graph.
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(2)
    assert torch.equal(traced(x), small(x))


def test_hooks_run_once_in_every_pass_of_a_symbolic_trace() -> None:
    small = vq.compress(nn.Sequential(nn.Linear(8, 8)), vq.KM(k=16))
    seen: list[nn.Module] = []
    small[0].register_forward_hook(lambda module, *_: seen.append(module))
    traced = fx.symbolic_trace(small)
    traced(torch.randn(2, 8))
    assert len(seen) == 1
