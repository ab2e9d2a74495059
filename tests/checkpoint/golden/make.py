"""What the golden files hold, and how format1.vq was made: `python make.py format1.vq`.

It was run with the last code that wrote only format 1. The files of formats 2 to 4 are what saving
format1.vq again gave when those were new, and state.safetensors the loaded model's state_dict.
"""

import sys

import torch
from torch import nn

import vq_plugin as vq

SCHEMES: dict[str, vq.Scheme] = {
    "layer": vq.KM(k=5, keep_zeros=True),
    "row": vq.KM(k=4, keep_zeros=True, scale="row"),
    "subspace": vq.KM(k=4, keep_zeros=True),
    "stage": vq.RQ(k=4, stages=2, dim=2, codebooks="tensor"),
    "previous": vq.RQ(k=4, stages=2, dim=2, codebooks="tensor"),
    "packed": vq.PQ(k=3, dim=4),
}


class Model(nn.Module):
    """A layer for every way to code, one for none, and two that share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(16, 32, 3)
        self.row = nn.Linear(128, 64)
        self.subspace = nn.Linear(64, 128, bias=False)
        self.stage = nn.Linear(64, 64, bias=False)
        self.previous = nn.Linear(64, 64, bias=False)
        self.packed = nn.Linear(16, 8)
        self.norm = nn.BatchNorm1d(8)
        self.tied = nn.Linear(128, 64, bias=False)
        self.tied.weight = self.row.weight


def compressed() -> nn.Module:
    torch.manual_seed(0)
    model = Model()
    with torch.no_grad():
        model.layer.weight *= torch.rand(model.layer.weight.shape) < 0.1
        model.row.weight[::2] *= torch.rand(32, 128) < 0.02
        model.subspace.weight[:, ::2] *= torch.rand(128, 32) < 0.02
    small = vq.compress(model, {**SCHEMES, "tied": SCHEMES["row"]})
    state = small.state_dict()
    plain = torch.randint(4, (64, 32))
    rare = (torch.rand(64, 32) < 0.1).long()
    state["stage.codes"] = torch.stack([plain, rare])
    state["previous.codes"] = torch.stack([plain, (plain + rare) % 4])
    small.load_state_dict(state)
    return small


if __name__ == "__main__":
    vq.save(compressed(), sys.argv[1])
