"""What the golden files hold, and how they were made: `python make.py format1.vq`, and int8.vq.

format1.vq is of the last code that wrote only format 1. The files of formats 2 to 4 are what saving
it again gave when those were new, and state.safetensors the loaded model's state_dict. int8.vq is
of the first code that wrote int8 codebooks, int8_state.safetensors the model's state_dict.
"""

import sys
from pathlib import Path

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


INT8: dict[str, vq.Scheme] = {
    "coded": vq.KM(k=5, keep_zeros=True, codebook_dtype="int8"),
    "books": vq.PQ(k=4, dim=4, codebook_dtype="int8"),
    "sum": vq.RQ(k=4, stages=2, dim=4, axis="out", scale="row", codebook_dtype="int8"),
}


class Int8Model(nn.Module):
    """Layers with int8 codebooks: codes coded, a codebook per subspace, stages, and a tie."""

    def __init__(self) -> None:
        super().__init__()
        self.coded = nn.Linear(64, 64, bias=False)
        self.books = nn.Linear(30, 16)
        self.sum = nn.Conv2d(4, 8, 3)
        self.tied = nn.Linear(64, 64, bias=False)
        self.tied.weight = self.coded.weight


def compressed_int8() -> nn.Module:
    torch.manual_seed(0)
    model = Int8Model()
    with torch.no_grad():
        model.coded.weight *= torch.rand(64, 64) < 0.1
        model.books.weight[:, :4] = 0  # a codebook of zeros
        model.books.weight[:, 4:8] *= 1e-5  # of float16's smallest numbers
    return vq.compress(model, {**INT8, "tied": INT8["coded"]})


if __name__ == "__main__":
    path = Path(sys.argv[1])
    vq.save(compressed_int8() if path.stem == "int8" else compressed(), path)
