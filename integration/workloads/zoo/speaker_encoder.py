"""The speaker encoder of resemblyzer: an LSTM of three layers, 1.4 M parameters.

Only the weights come from the package, since importing it asks for libraries of audio. The
network is that of Wan et al. 2017, arXiv 1710.10467.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from integration.workloads.zoo import recordings
from integration.workloads.zoo.network import Network, Split, cosine, package_file

_FRAMES, _HOP, _WINDOW, _MELS = 160, 160, 400, 40
_COUNTS: dict[Split, int] = {"calibration": 256, "selection": 128, "untouched": 512}


class SpeakerEncoder(nn.Module):
    """Embeds 1.6 s of speech by the last hidden state of an LSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(_MELS, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    def forward(self, mels: Tensor) -> Tensor:
        """Maps mel spectrograms `(N, frames, 40)` to embeddings of length one, `(N, 256)`."""
        _, (hidden, _) = self.lstm(mels)
        return nn.functional.normalize(self.linear(hidden[-1]).relu())


def load() -> Network:
    """The network; pieces of 1.6 s of five speakers, at 0.8 to 1.25 times their speed."""
    model = SpeakerEncoder()
    file = package_file("resemblyzer", "pretrained.pt")
    weights = torch.load(file, "cpu", weights_only=True)["model_state"]
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return Network(
        model.eval(),
        _batches,
        agree=cosine,
        metric="mean cosine",
    )


def _batches(split: Split) -> list[Tensor]:
    pieces = recordings.excerpts(split, _COUNTS[split], _FRAMES * _HOP, speeds=(0.8, 1.25))
    sounds = torch.from_numpy(np.stack(list(pieces)))
    # As loud as the network was trained with: -30 dB of the full scale.
    sounds = sounds / sounds.square().mean(1, keepdim=True).sqrt().clamp(min=1e-4) * 10**-1.5
    return list(mel_spectrograms(sounds).split(128))


def mel_spectrograms(sounds: Tensor) -> Tensor:
    """Mel spectrograms `(N, frames, 40)` of sounds `(N, samples)`: power, no logarithm."""
    spectra = torch.stft(
        sounds, _WINDOW, _HOP, window=torch.hann_window(_WINDOW), return_complex=True,
        pad_mode="constant",
    )  # fmt: skip
    power = spectra.abs().square()[..., :_FRAMES]
    return (torch.from_numpy(mel_filters()) @ power).transpose(1, 2).contiguous()


def mel_filters() -> npt.NDArray[np.float32]:
    """Slaney's triangles (Auditory Toolbox, 1998) of equal area, float32 `(40, 201)`."""
    frequencies = np.linspace(0, recordings.RATE / 2, _WINDOW // 2 + 1)
    # Linear up to 1 kHz (mel 15), logarithmic above.
    top = 15 + 27 * np.log(recordings.RATE / 2 / 1000) / np.log(6.4)
    mels = np.linspace(0, top, _MELS + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    rising = (frequencies - low) / (middle - low)
    falling = (high - frequencies) / (high - middle)
    triangles = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    return triangles.astype(np.float32)
