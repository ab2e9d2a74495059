"""Small models, and INC without its log."""

import copy
import logging
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from vq_plugin.nn import CodebookLayer


class Net(nn.Module):
    """One layer of each kind, and a name that is the beginning of another."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.conv1d = nn.Conv1d(16, 8, 3, padding=1)
        self.conv2d = nn.Conv2d(8, 8, (1, 3))
        self.conv3d = nn.Conv3d(8, 8, 1)
        self.fc1 = nn.Linear(32, 32)
        self.fc10 = nn.Linear(32, 24)
        self.out = nn.Linear(24, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.conv1d(self.embed(tokens).transpose(1, 2)).relu()
        hidden = self.conv2d(hidden.unsqueeze(2)).relu()
        hidden = self.conv3d(hidden.unsqueeze(2)).relu()
        hidden = self.fc1(hidden.flatten(1)).relu()
        return self.out(self.fc10(hidden).relu())


@pytest.fixture(autouse=True)
def _without_log() -> Iterator[None]:
    logger = logging.getLogger("neural_compressor")
    level = logger.level
    logger.setLevel(logging.ERROR)
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session")
def trained() -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


@pytest.fixture
def net(trained: Net) -> Net:
    return copy.deepcopy(trained)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(20, (32, 6), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.Linear(32, 8)).eval()


@pytest.fixture
def schemes() -> Callable[[nn.Module], dict[str, str]]:
    """The scheme of every codebook layer, as text."""
    return lambda model: {
        name: str(module.scheme)
        for name, module in model.named_modules()
        if isinstance(module, CodebookLayer)
    }
