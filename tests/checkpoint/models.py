"""A model with every kind of layer, and whether two are the same."""

import torch
from torch import Tensor, nn

import vq_plugin as vq


class Net(nn.Module):
    """Every kind of layer, a norm with buffers, and layers left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 12, padding_idx=0)
        self.conv1 = nn.Conv1d(12, 8, 3, padding="same", padding_mode="circular")
        self.norm = nn.BatchNorm1d(8)
        self.conv2 = nn.Conv2d(1, 6, 3, groups=1, bias=False)
        self.conv3 = nn.Conv3d(1, 2, (1, 3, 3))
        self.fc = nn.Linear(2 * 5 * 4 * 6, 10)
        self.left = nn.Linear(10, 3)
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("flags", torch.tensor([True, False]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv1(self.embed(x).transpose(1, 2))).relu()  # 8 x 6
        x = self.conv2(x.unsqueeze(1))  # 6 x 6 x 4
        x = torch.nn.functional.pad(x, (1, 1, 1, 1))  # 6 x 8 x 6
        x = self.conv3(x[:, :, :7].unsqueeze(1)).flatten(1)  # 2 x 6 x 5 x 4
        return self.left(self.fc(x))


INDEX = torch.arange(18).reshape(3, 6)


def compressed(scheme: vq.Scheme | None = None, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return vq.compress(Net(), {"left": None, "*": scheme or vq.KM(k=5)})


def assert_same_state(one: nn.Module, two: nn.Module) -> None:
    first, second = one.state_dict(), two.state_dict()
    assert list(first) == list(second)
    for key, value in first.items():
        assert value.dtype == second[key].dtype, key
        assert torch.equal(value, second[key]), key
