"""Deep Compression as its paper has it (Han et al. 2015, arXiv 1510.00149), brought to one form.

Magnitude pruning with retraining on labels in several rounds, each layer to its own density;
k-means from linearly spaced centers on the weights that are left; training of the centers on
labels; positions as differences of indices, with a filler zero where a difference does not fit; a
Huffman code for the centers and one for the differences. Centers and biases stay float32, as there.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.codebook import CodebookWeight
from vq_plugin.replace import assemble
from vq_plugin.schemes import torch_code_dtype
from vq_plugin.seeded import seeded


@dataclass(frozen=True)
class LayerSetting:
    """What the paper chooses by hand for each layer.

    Attributes:
        density: Share of weights that stay.
        bits: Of a shared weight.
        index_bits: Of a difference of positions: 5 for dense layers, 8 for convolutions.
    """

    density: float
    bits: int
    index_bits: int


@dataclass(frozen=True)
class Result:
    """The three stages.

    Attributes:
        models: After pruning (P), and after sharing and training the centers (P+Q, P+Q+E).
        nbytes: Of the whole model after each stage, by its name.
    """

    models: dict[str, nn.Module]
    nbytes: dict[str, int]


def run(
    model: nn.Module,
    loader: Iterable[object],
    layers: Mapping[str, LayerSetting],
    *,
    rounds: int,
    epochs: int,
    seed: int,
) -> Result:
    """All stages.

    Args:
        model: Float model; it is not changed.
        loader: Pairs of images and labels.
        layers: Settings by layer.
        rounds: Of pruning, with one epoch of retraining each; the density falls by one factor.
        epochs: Of training the centers.
        seed: Of training.
    """
    pruned = assemble(model, {})
    modules = {name: pruned.get_submodule(name) for name in layers}
    for turn in range(1, rounds + 1):
        for name, setting in layers.items():
            _keep_largest(_weight(modules[name]), setting.density ** (turn / rounds))
        _retrain(pruned, list(modules.values()), loader, seed + turn)
    small = assemble(pruned, {n: _shared(_weight(m), layers[n]) for n, m in modules.items()})
    if epochs:
        vq.finetune(small, loader, loss=functional.cross_entropy, epochs=epochs, seed=seed)
    rest = sum(4 * p.numel() for p in model.parameters()) - sum(
        4 * _weight(m).numel() for m in modules.values()
    )
    sizes = {"P": rest, "P+Q": rest, "P+Q+E": rest}
    for name, setting in layers.items():
        codes = small.get_submodule(name).codes.flatten().numpy()  # type: ignore[union-attr,operator]
        entries, gaps = _relative(codes, setting.index_bits)
        table = 4 * (1 << setting.bits)
        sizes["P"] += math.ceil(len(gaps) * (32 + setting.index_bits) / 8)
        sizes["P+Q"] += table + math.ceil(len(gaps) * (setting.bits + setting.index_bits) / 8)
        sizes["P+Q+E"] += table + math.ceil((_huffman(entries) + _huffman(gaps)) / 8)
    return Result({"P": pruned, "P+Q": small, "P+Q+E": small}, sizes)


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


@torch.no_grad()
def _keep_largest(weight: Tensor, density: float) -> None:
    count = weight.numel() - round(density * weight.numel())
    if count:
        weight.masked_fill_(weight.abs() <= weight.abs().flatten().kthvalue(count).values, 0)


def _retrain(
    model: nn.Module, layers: Iterable[nn.Module], loader: Iterable[object], seed: int
) -> None:
    """One epoch on labels; zeros stay."""
    masks = {layer: _weight(layer) == 0 for layer in layers}
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    with seeded(seed):
        for images, labels in loader:  # type: ignore[misc]
            loss = functional.cross_entropy(model(images), labels)  # type: ignore[has-type]
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                for layer, mask in masks.items():
                    _weight(layer).masked_fill_(mask, 0)


def _shared(weight: Tensor, setting: LayerSetting) -> CodebookWeight:
    """K-means from linearly spaced centers on the weights that are not zero; code 0 is zero."""
    flat = weight.detach().flatten()
    kept = flat[flat != 0].numpy().reshape(-1, 1)
    k = min(1 << setting.bits, len(np.unique(kept)))
    start = np.linspace(kept.min(), kept.max(), k, dtype=np.float32).reshape(-1, 1)
    found = KMeans(k, init=start, n_init=1, max_iter=100).fit(kept)
    codes = torch.zeros(flat.shape, dtype=torch_code_dtype(k + 1))
    codes[flat != 0] = torch.from_numpy(found.labels_ + 1).to(codes.dtype)
    centers = np.concatenate([[[0.0]], found.cluster_centers_]).astype(np.float32)
    return CodebookWeight(
        codes=codes.reshape(1, weight.shape[0], -1),
        codebooks=torch.from_numpy(centers).reshape(1, 1, 1, k + 1, 1),
        scale=None,
        scheme=vq.KM(k=k + 1, keep_zeros=True, codebook_dtype="float32"),
        shape=tuple(weight.shape),
        dtype=weight.dtype,
    )


def _relative(codes: NDArray[np.uint8], bits: int) -> tuple[list[int], list[int]]:
    """Codes that are not zero and fillers, each with its difference to the position before."""
    longest, entries, gaps, last = (1 << bits) - 1, [], [], -1
    for position in np.flatnonzero(codes).tolist():
        gap = position - last - 1
        while gap > longest:
            entries.append(0)
            gaps.append(longest)
            gap -= longest + 1
        entries.append(int(codes[position]))
        gaps.append(gap)
        last = position
    return entries, gaps


def _huffman(symbols: list[int]) -> int:
    """Bits of the symbols under their own Huffman code, with a table of a byte for each."""
    counts = Counter(symbols)
    if len(counts) < 2:
        return len(symbols) + 8 * len(counts)
    order = itertools.count()
    heap = [(count, next(order)) for count in counts.values()]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        first, second = heapq.heappop(heap), heapq.heappop(heap)
        # Every merge makes the codes below it one bit longer.
        total += first[0] + second[0]
        heapq.heappush(heap, (first[0] + second[0], next(order)))
    return total + 8 * len(counts)
