"""Models that read the weight of a layer beside, or without, calling it."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class Tied(nn.Module):
    """A head that is the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(20, 8), nn.Linear(8, 8)

    def forward(self, rows: Tensor) -> Tensor:
        return functional.linear(self.linear(self.table(rows)), self.table.weight)


class Functions(nn.Module):
    """One layer that is called and read, one that is read alone, one that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.both, self.read, self.called = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, rows: Tensor) -> Tensor:
        value = functional.linear(self.both(self.table(rows)), self.both.weight)
        result: Tensor = self.called(functional.linear(value, self.read.weight, self.read.bias))
        return result


class Attention(nn.Module):
    """Reads its output projection; in eval mode torch may read all of it for a fused one."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, rows: Tensor) -> Tensor:
        result: Tensor = self.block(self.table(rows))
        return result


def coded(model: type[nn.Module]) -> nn.Module:
    """One of them, compressed."""
    import vq_plugin as vq

    torch.manual_seed(0)
    return vq.compress(model().eval(), vq.KM(k=4))
