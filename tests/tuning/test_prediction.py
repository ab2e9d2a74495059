"""Predicted harm against the truth: the accuracy that a trained network loses, layer by layer."""

from collections.abc import Iterator, Sequence
from itertools import combinations

import torch

import vq_plugin as vq
from vq_plugin.tuning.candidates import Fits
from vq_plugin.tuning.deadline import Deadline
from vq_plugin.tuning.layers import layers_of, observed
from vq_plugin.tuning.result import LayerCandidate
from vq_plugin.tuning.space import search_space
from vq_plugin.workloads import digits
from vq_plugin.workloads.training import correct


def lost_alone(fits: Fits) -> Iterator[tuple[LayerCandidate, float]]:
    """Every candidate with the accuracy lost on 1,078 images that calibration did not see."""
    model, data = digits.model(), digits.load()
    images, labels = (torch.cat(parts) for parts in zip(data.tuning, data.test, strict=True))
    baseline = correct(model, images, labels).double().mean()
    for layer in fits.ladders(fits.fitted):
        for candidate in layer.candidates:
            if candidate.scheme is not None:
                small = vq.compress(model, {layer.name: candidate.scheme}, digits.calibration())
                hits = correct(small, images, labels).double().mean()
                yield candidate, float(baseline - hits)


def ordered(predictions: Sequence[float], losses: Sequence[float]) -> float:
    """The share of pairs that a prediction orders as their losses, where chance does not decide.

    Losses of 11 images or fewer apart are within two standard errors of each other: which of them
    is larger depends on the processor that the network was trained on.
    """
    pairs = [
        (a - b) * (x - y) > 0
        for (a, x), (b, y) in combinations(zip(predictions, losses, strict=True), 2)
        if abs(x - y) > 0.01
    ]
    assert len(pairs) > 25
    return sum(pairs) / len(pairs)


def test_harm_ranks_candidates_of_all_layers_better_than_the_error_of_their_weights() -> None:
    ladder = [
        *(vq.KM(k=k) for k in (2, 3, 4, 8)),
        *(vq.PQ(k=k, dim=8, axis="out") for k in (4, 8, 16)),
        *(vq.PQ(k=k, dim=4, codebooks="tensor") for k in (4, 8, 16, 32)),
    ]
    model = digits.model()
    space = search_space(model, ladder)
    calibration = list(digits.calibration())
    layers, _ = observed(layers_of(model, space), model, calibration, 0, Deadline())
    fits = Fits(layers)
    assert not fits.fitted
    every = range(len(ladder))
    assert fits.fit([(i,) * len(fits.layers) for i in every], Deadline())
    candidates, losses = zip(*lost_alone(fits), strict=True)
    assert len(candidates) > 25
    harm = ordered([c.harm for c in candidates], losses)
    error = ordered([c.error for c in candidates], losses)
    assert harm > 0.95, (harm, error)
    assert harm > error
