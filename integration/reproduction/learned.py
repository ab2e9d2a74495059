"""Codebooks learned in training beside those fitted after it, at equal bytes.

Every layer of the Fashion-MNIST CNN in one setting, the two large ones 64 times smaller: codes
fitted to the trained network, trained after that with codes fixed, or learned with it by the calls
of torch.ao, from its weights or from random ones.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR

import vq_plugin as vq
from integration.benchmarks.harness import Table
from integration.reproduction import text
from integration.reproduction.journal import Journal
from integration.reproduction.methods import Network, dense_layers, ended, network
from integration.workloads import fashion_mnist
from integration.workloads.fashion_mnist_cnn import FashionCNN
from vq_plugin.seeded import seeded
from vq_plugin.select import Schemes
from vq_plugin.torch_ao import (
    check_converted,
    commitment_loss,
    get_backend_config,
    get_qat_qconfig_mapping,
)
from vq_plugin.workloads.data import Samples

_BATCH = 128
SCHEMES = dense_layers(vq.PQ(k=16, dim=8, codebooks="tensor"))
_FORMATS = {
    "method": "", "passes": "d", "seeds": "d", "lost": ".2f", "least": ".2f", "most": ".2f",
    "bytes": ",d", "rate": ".1f", "dense time": ".2f", "codes time": ".2f", "onnx gap": ".1e",
}  # fmt: skip

#: A float model, and the model that comes out of it.
Made = tuple[nn.Module, nn.Module]


def fitted(net: Network, seed: int, *, calibrated: bool, passes: int = 0) -> Made:
    """By ``compress``, and ``finetune`` with the float model as teacher: codes stay."""
    with warnings.catch_warnings():
        # Of codes far off without calibration: that is what is measured.
        warnings.simplefilter("ignore")
        small = vq.compress(net.model, SCHEMES, net.calibration if calibrated else None, seed=seed)
    if passes:
        batches = fashion_mnist.training_batches()
        vq.finetune(small, batches, teacher=net.model, epochs=passes, seed=seed)
    return net.model, small


def learned(net: Network, seed: int, *, passes: int, beta: float, scratch: bool = False) -> Made:
    """By ``prepare_qat_fx`` and labels: codes and codebooks follow the weights."""
    with seeded(seed):
        start = FashionCNN() if scratch else net.model
        trained = deepcopy(start).train()
        train = fashion_mnist.load().train
        small = learn(trained, SCHEMES, train, passes=passes, beta=beta, seed=seed)
    return start, small


def learn(
    model: nn.Module, schemes: Schemes, samples: Samples, *, passes: int, beta: float, seed: int
) -> nn.Module:
    """The usual loop: cross-entropy and Adam, whose rate falls along a cosine."""
    images, labels = samples
    backend = get_backend_config()
    mapping = get_qat_qconfig_mapping(model, schemes, seed=seed)
    prepared = prepare_qat_fx(model, mapping, (images[:1],), backend_config=backend)
    optimizer = torch.optim.Adam(prepared.parameters(), lr=1e-3)
    steps = len(labels) // _BATCH
    schedule = CosineAnnealingLR(optimizer, passes * steps)
    for _ in range(passes):
        for batch in torch.split(torch.randperm(len(labels)), _BATCH)[:steps]:
            loss = functional.cross_entropy(prepared(images[batch]), labels[batch])
            if beta:
                loss = loss + commitment_loss(prepared, beta)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return check_converted(convert_fx(prepared.eval(), backend_config=backend), schemes)


METHODS: dict[str, tuple[int, Callable[[Network, int], Made]]] = {
    "fitted": (0, partial(fitted, calibrated=False)),
    "fitted, calibrated": (0, partial(fitted, calibrated=True)),
    "fitted, then finetune": (1, partial(fitted, calibrated=True, passes=1)),
    "learned": (1, partial(learned, passes=1, beta=0.0)),
    "learned, beta 0.001": (1, partial(learned, passes=1, beta=0.001)),
    "learned, beta 0.01": (1, partial(learned, passes=1, beta=0.01)),
    "from scratch": (2, partial(learned, passes=2, beta=0.0, scratch=True)),
    "from scratch, beta 0.001": (2, partial(learned, passes=2, beta=0.001, scratch=True)),
    "from scratch, beta 0.01": (2, partial(learned, passes=2, beta=0.01, scratch=True)),
}


def table(journal: Journal) -> Table:
    """Means over the seeds that were run, with the least and the most that was lost."""
    rows = []
    for name, (passes, _) in METHODS.items():
        some = [row for row in journal.rows.values() if row["method"] == name]
        if some:
            lost = [row["lost"] for row in some]
            spread = {"lost": statistics.mean(lost), "least": min(lost), "most": max(lost)}
            rows.append({**some[0], "passes": passes, "seeds": len(some), **spread})
    return Table("Fashion-MNIST CNN, codebooks fitted and learned", _FORMATS, rows)


def published(folder: Path, seeds: Sequence[int]) -> str:
    """The table, of what a journal in the folder has not got yet measured."""
    journal, net = Journal(folder / "learned.jsonl"), network(0)
    for method, (_, make) in METHODS.items():
        for seed in seeds:
            named = {"seed": seed, "method": method}
            journal.measured(named, lambda make=make, seed=seed: ended(*make(net, seed), net))
    return text.published(journal, table(journal))
