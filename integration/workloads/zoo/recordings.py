"""Recorded speech that Debian's packages ship, in three sets of other speakers.

Prompts of telephone exchanges, 8 kHz, read by five people: one speaker a package.
"""

import hashlib
import wave
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.signal import resample_poly

from integration.workloads.zoo.network import SPLITS, Split

RATE = 16_000
SPEAKERS: dict[Split, tuple[str, ...]] = {
    "calibration": ("en_US_f_Allison", "it_IT_m_Carlo"),
    "selection": ("fr_CA_f_June",),
    "untouched": ("ru_RU_f_IvrvoiceRU", "it_IT_f_Menardi"),
}

ROOT = Path("/usr/share/asterisk/sounds")
PACKAGES = (
    "asterisk-core-sounds-en-wav", "asterisk-core-sounds-fr-wav", "asterisk-core-sounds-it-wav",
    "asterisk-core-sounds-ru-wav", "asterisk-prompt-it-menardi-wav",
)  # fmt: skip
# Prompts are read until a speaker has spoken for so long: five minutes.
_MOST = 300 * RATE
Sound = npt.NDArray[np.float32]


@lru_cache(maxsize=8)
def speech(speaker: str) -> Sound:
    """Five minutes of prompts of one speaker, one after the other, 16 kHz, from -1 to 1.

    Pauses at the ends of prompts are cut off; tones are left out. The order is shuffled, the same
    every time.

    Raises:
        FileNotFoundError: The recordings are not installed; the message says how to get them.
    """
    files = sorted((ROOT / speaker).rglob("*.wav"), key=_shuffled)
    if not files:
        raise FileNotFoundError(
            f"{ROOT / speaker} has no recordings; run `apt install {' '.join(PACKAGES)}`"
        )
    found, length = [], 0
    for file in files:
        if any(word in file.name for word in ("beep", "tone", "silence", "music")):
            continue
        sound = _trimmed(_read(file))
        found.append(sound)
        length += len(sound)
        if length >= _MOST:
            break
    return np.concatenate(found)[:_MOST]


def excerpts(split: Split, count: int, length: int, speeds: tuple[float, float]) -> Iterator[Sound]:
    """Pieces at random places, played at random speeds, which moves the pitch as well.

    Args:
        split: Whose speakers, taken in turn.
        count: How many pieces.
        length: Samples of a piece.
        speeds: The slowest and the fastest, 1 as recorded.

    Yields:
        float32 `(length,)`.
    """
    draw = np.random.default_rng(SPLITS.index(split))
    speakers = SPEAKERS[split]
    for number in range(count):
        whole = speech(speakers[number % len(speakers)])
        speed = round(20 * draw.uniform(*speeds))
        # Some samples more, as the filter rings at the ends.
        needed = length * speed // 20 + 200
        start = draw.integers(len(whole) - needed)
        piece = resample_poly(whole[start : start + needed], 20, speed)
        yield piece[:length].astype(np.float32)


def _shuffled(file: Path) -> str:
    return hashlib.sha256(file.name.encode()).hexdigest()


def _read(file: Path) -> Sound:
    with wave.open(str(file)) as opened:
        rate = opened.getframerate()
        samples = np.frombuffer(opened.readframes(opened.getnframes()), "<i2")
    return resample_poly(samples / 32768, RATE, rate).astype(np.float32)


def _trimmed(sound: Sound) -> Sound:
    loud = np.flatnonzero(np.abs(sound) > 0.02)
    return sound[loud[0] : loud[-1] + 1] if len(loud) else sound[:0]
