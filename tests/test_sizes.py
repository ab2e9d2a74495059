"""Counts of bytes, by hand."""

from torch import nn

from vq_plugin.sizes import account


def test_every_tensor_counts_once_and_searched_weights_not_among_the_others() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Linear(8, 4))
    model[2].weight = model[0].weight
    # Weights of 0 and 2 are one; biases, four vectors of the norm, its counter of 8 bytes.
    others = 8 * 4 + 8 * 4 + 4 * 8 * 4 + 8 + (4 * 8 + 4) * 4
    assert account(model, ["0"], None) == (others, others + 256)
    halved = account(model, ["0"], "float16")
    assert halved == ((others - 8) // 2 + 8, others + 256)
