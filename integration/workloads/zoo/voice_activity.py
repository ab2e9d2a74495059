"""Silero VAD, speech or not: convolutions over a learned spectrum and an LSTM cell, 0.3 M weights.

Package `silero-vad` ships the weights for 16 kHz; the network is written down in its sources.
"""

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from integration.workloads.zoo import recordings
from integration.workloads.zoo.network import SPLITS, Network, Split, package_file

_CHUNK, _CONTEXT = 512, 64
_SECONDS = 3
_COUNTS: dict[Split, int] = {"calibration": 128, "selection": 64, "untouched": 128}


class VoiceActivity(nn.Module):
    """The odds of speech of every 32 ms."""

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, sounds: Tensor) -> Tensor:
        """Maps sounds of 16 kHz `(N, 512 chunks)` to the odds of speech `(N, chunks)`."""
        # Each chunk sees the end of the one before it.
        pieces = nn.functional.pad(sounds, (_CONTEXT, 0)).unfold(1, _CHUNK + _CONTEXT, _CHUNK)
        x = nn.functional.pad(pieces.flatten(0, 1), (0, 64), "reflect").unsqueeze(1)
        real, imaginary = self.stft_conv(x).chunk(2, 1)
        x = (real.square() + imaginary.square()).sqrt()
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = conv(x).relu()
        x = x.squeeze(-1).unflatten(0, pieces.shape[:2])
        state = None
        hidden = []
        for step in x.unbind(1):
            state = self.lstm_cell(step, state)
            hidden.append(state[0])
        odds: Tensor = self.final_conv(torch.stack(hidden, 2).relu()).sigmoid().squeeze(1)
        return odds


def load() -> Network:
    """The network; 3 s of speech of five speakers that noise drowns more and more."""
    model = VoiceActivity()
    model.load_state_dict(load_file(package_file("silero_vad", "data/silero_vad_16k.safetensors")))
    return Network(
        model.eval(),
        _batches,
        agree=same_decision,
        metric="same decision, speech or not",
        patience=120,
    )


def same_decision(expected: Tensor, found: Tensor) -> Tensor:
    """Whether chunks are on the same side of even odds: `(N * chunks,)`."""
    return ((expected > 0.5) == (found > 0.5)).float().flatten()


def _batches(split: Split) -> list[Tensor]:
    length = _SECONDS * recordings.RATE // _CHUNK * _CHUNK
    pieces = recordings.excerpts(split, _COUNTS[split], length, speeds=(0.8, 1.25))
    draw = np.random.default_rng(SPLITS.index(split))
    noisy = []
    for piece in pieces:
        # From 20 dB below the speech to 20 dB above it: the network has to doubt.
        loudness = piece.std() * 10 ** draw.uniform(-1, 1)
        slow = np.interp(np.arange(length), np.linspace(0, length, 12), draw.uniform(0, 1, 12))
        noisy.append(piece + loudness * slow * draw.standard_normal(length))
    return list(torch.from_numpy(np.stack(noisy)).float().split(32))
