"""Features as they were measured, some of them a thousand times as large as others."""

import torch
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.schemes import PQ
from vq_plugin.tuning.deadline import Deadline
from vq_plugin.tuning.layers import Layer, layers_of, observed
from vq_plugin.tuning.space import search_space

SIZES = torch.logspace(0, -4, 16)


def model() -> nn.Sequential:
    """Its outputs feel all features alike."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 256), nn.ReLU(), nn.Linear(256, 8))
    with torch.no_grad():
        net[0].weight /= SIZES
    return net.eval()


def features(sizes: Tensor) -> Tensor:
    return torch.randn(256, 16, generator=torch.Generator().manual_seed(1)) * sizes


def first_layer(sizes: Tensor) -> Layer:
    net = model()
    layers, _ = observed(
        layers_of(net, search_space(net)), net, [features(sizes)], 0, Deadline.after(None)
    )
    return layers[0]


def test_codebooks_of_every_input_are_looked_at_where_inputs_differ_in_size() -> None:
    layer = first_layer(SIZES)
    seen = [layer.schemes[at] for at in layer.unforeseen]
    assert {(each.dim, each.codebooks) for each in seen if isinstance(each, PQ)} == {
        (1, "subspace")
    }
    assert seen
    # A codebook has to be of fewer numbers than it stands for.
    assert max(each.k for each in seen if each is not None) <= 256 / 8
    assert first_layer(torch.ones(16)).unforeseen == []


def test_they_are_chosen_there() -> None:
    net, data = model(), features(SIZES)
    expected = net(data)

    def alike(other: nn.Module) -> Tensor:
        return torch.cosine_similarity(other(data), expected)

    result = vq.tune(net, alike, vq.LossBudget(relative=0.01), [data], max_trials=12)
    assert result.passed
    assert isinstance(result.schemes["0"], PQ)
    assert result.schemes["0"].dim == 1
