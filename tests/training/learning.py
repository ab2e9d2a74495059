"""Models, batches and files that tests of ``vq.learn`` share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vq_plugin as vq


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4)).eval()


def inputs(count: int = 10, size: int = 16) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return [torch.randn(64, size, generator=draw) for _ in range(count)]


def saved(small: nn.Module, folder: Path) -> int:
    return vq.save(small, folder / "model.vq", rest="float16")


class Everything(nn.Module):
    """Slots of all kinds, and one weight for two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8, padding_idx=0, sparse=True)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up = nn.ConvTranspose1d(8, 6, 3)
        self.conv = nn.Conv1d(6, 8, 3)
        self.head = nn.Linear(8, 20)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.lstm(self.table(tokens))[0]
        x = x + self.attention(x, x, x, need_weights=False)[0]
        logits: Tensor = self.head(self.conv(self.up(x.mT)).mT)
        return logits


class Killed(list[Tensor]):
    """Batches whose third pass is interrupted."""

    passes = 0

    def __iter__(self) -> Any:
        self.passes += 1
        if self.passes == 3:
            raise KeyboardInterrupt
        return super().__iter__()
