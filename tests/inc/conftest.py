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
def assert_same() -> Callable[..., None]:
    """Codes, codebooks, scales and outputs are equal bit for bit."""

    def check(one: nn.Module, other: nn.Module, *inputs: Tensor) -> None:
        ours, theirs = layers(one), layers(other)
        assert ours.keys() == theirs.keys() != set()
        for name, layer in ours.items():
            assert type(layer) is type(theirs[name])
            state, reference = layer.state_dict(), theirs[name].state_dict()
            assert state.keys() == reference.keys()
            for key, value in state.items():
                assert torch.equal(value, reference[key]), (name, key)
        with torch.no_grad():
            assert torch.equal(one(*inputs), other(*inputs))

    return check


def layers(model: nn.Module) -> dict[str, CodebookLayer]:
    return {n: m for n, m in model.named_modules() if isinstance(m, CodebookLayer)}


@pytest.fixture
def schemes() -> Callable[[nn.Module], dict[str, str]]:
    """The scheme of every codebook layer, as text."""
    return lambda model: {name: str(layer.scheme) for name, layer in layers(model).items()}
