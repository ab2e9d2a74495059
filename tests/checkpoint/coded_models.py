"""Models whose files hold every way to code, a tie, and every kind of int8 codebook."""

import torch
from torch import nn

import vq_plugin as vq

WAYS = ["layer", "stage", "row", "subspace", "previous", "class"]
SCHEMES: dict[str, vq.Scheme] = {
    "layer": vq.KM(k=5, keep_zeros=True),
    "row": vq.KM(k=4, keep_zeros=True, scale="row"),
    "subspace": vq.KM(k=4, keep_zeros=True),
    "classes": vq.KM(k=4, keep_zeros=True),
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
        self.classes = nn.Linear(128, 64, bias=False)
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
        model.classes.weight[::2] *= torch.rand(32, 128) < 0.02
    small = vq.compress(model, {**SCHEMES, "tied": SCHEMES["row"]})
    state = small.state_dict()
    plain = torch.randint(4, (64, 32))
    rare = (torch.rand(64, 32) < 0.1).long()
    state["stage.codes"] = torch.stack([plain, rare])
    state["previous.codes"] = torch.stack([plain, (plain + rare) % 4])
    # Each line has another commonest code: classes cannot tell them apart.
    seldom = (torch.rand(1, 64, 128) < 0.1).long()
    state["row.codes"] = state["tied.codes"] = (seldom + torch.arange(64)[:, None]) % 4
    state["subspace.codes"] = (seldom.reshape(1, 128, 64) + torch.arange(64)) % 4
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


class Various(nn.Module):
    """Weights that have no codebook layer of their own, and dimensions in other orders."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 16, num_layers=2, bidirectional=True)
        self.up = nn.ConvTranspose2d(8, 6, 3, groups=2)
        self.attention = nn.MultiheadAttention(16, 2)
        self.bag = nn.EmbeddingBag(30, 8)
        self.bilinear = nn.Bilinear(6, 5, 4)


def compressed_various() -> nn.Module:
    torch.manual_seed(0)
    model = Various()
    with torch.no_grad():
        for weight in model.parameters():
            weight *= torch.rand(weight.shape) < 0.1
    return vq.compress(model, vq.KM(k=5, keep_zeros=True))


class Scaled(nn.Module):
    """Layers whose row scales are coded, one by classes of rows; two share theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.even = nn.Linear(24, 96)
        self.uneven = nn.Linear(128, 128, bias=False)
        self.table = nn.Embedding(90, 16)
        self.tied = nn.Linear(24, 96)
        self.tied.weight = self.even.weight


def compressed_scaled() -> nn.Module:
    torch.manual_seed(0)
    model = Scaled()
    with torch.no_grad():
        model.even.weight *= torch.rand(96, 1) ** 3
        model.even.weight[7] = 0
        # Half of each row is short.
        model.uneven.weight[:64, 3:] *= 0.05
    return vq.compress(model, vq.Uniform(step=0.3, scale="row"))
