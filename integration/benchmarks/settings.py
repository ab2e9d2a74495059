"""Which settings the benchmarks of accuracy measure, of ours and of the peers, and on what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

from torch import nn

import vq_plugin as vq
from integration.benchmarks import peers
from integration.workloads import (
    fashion_mnist,
    fashion_mnist_cnn,
    fashion_mnist_lenet5,
    fashion_mnist_lenet_300_100,
    fashion_mnist_resnet20,
)
from vq_plugin.workloads import digits
from vq_plugin.workloads.data import Samples

WORKLOADS: dict[str, ModuleType] = {
    "fashion_mnist_cnn": fashion_mnist_cnn,
    "digits": digits,
    "resnet20": fashion_mnist_resnet20,
    "lenet_300_100": fashion_mnist_lenet_300_100,
    "lenet5": fashion_mnist_lenet5,
}
# The dense layers that hold nearly all weights; the ResNet has none, all its layers are compressed.
DENSE = {
    "fashion_mnist_cnn": ("classifier.0", "classifier.3"),
    "digits": ("classifier.0",),
    "lenet_300_100": ("classifier.1", "classifier.3"),
    "lenet5": ("classifier.0",),
}


@dataclass(frozen=True)
class Peer:
    """One setting of a peer.

    Attributes:
        compress: Function of :mod:`integration.benchmarks.peers`.
        module: What must be installed.
        n_bits: Bits of a code.
        dim: Length of a sub-vector.
        axis: The side along which the peer's sub-vectors run.
    """

    compress: Callable[..., peers.Compressed]
    module: str
    n_bits: int
    dim: int = 1
    axis: str = "out"

    @property
    def name(self) -> str:
        return self.compress.__name__

    def takes(self, kinds: set[type[nn.Module]]) -> bool:
        """Whether the peer compresses layers of these types; torchao's takes Linear only."""
        return self.module != "torchao" or kinds == {nn.Linear}

    @property
    def counterpart(self) -> vq.Scheme:
        """Our scheme with the same codes and codebook: the same size, up to the peer's scales."""
        k = 1 << self.n_bits
        if self.dim == 1:
            return vq.KM(k=k)
        return vq.PQ(k=k, dim=self.dim, axis=self.axis, codebooks="tensor")  # type: ignore[arg-type]


SCHEMES: tuple[vq.Scheme, ...] = (
    vq.KM(k=2),
    vq.KM(k=4),
    vq.KM(k=8),
    vq.KM(k=16),
    vq.Binary(),
    vq.PQ(k=16, dim=4, axis="out"),
    vq.PQ(k=16, dim=4, axis="in"),
    vq.PQ(k=8, dim=4, axis="out"),
    vq.PQ(k=16, dim=8, axis="out"),
    vq.PQ(k=256, dim=4, codebooks="tensor"),
    vq.PQ(k=256, dim=8, codebooks="tensor"),
    vq.PQ(k=64, dim=8, codebooks="tensor"),
    vq.PQ(k=16, dim=8, codebooks="tensor"),
    vq.PQ(k=256, dim=8, axis="out", codebooks="tensor"),
    vq.RQ(k=256, stages=2),
    vq.RQ(k=16, stages=2, dim=8, codebooks="tensor"),
    vq.RQ(k=256, stages=2, dim=8, codebooks="tensor"),
)
CALIBRATED: tuple[vq.Scheme, ...] = (
    vq.KM(k=4),
    vq.PQ(k=16, dim=4, axis="out"),
    vq.PQ(k=8, dim=4, axis="out"),
    vq.PQ(k=16, dim=8, axis="out"),
    vq.PQ(k=256, dim=8, codebooks="tensor"),
    vq.PQ(k=16, dim=8, codebooks="tensor"),
)
PEERS: tuple[Peer, ...] = (
    *(Peer(peers.coremltools, "coremltools", bits) for bits in (1, 2, 3, 4)),
    Peer(peers.coremltools, "coremltools", 2, 2),
    Peer(peers.coremltools, "coremltools", 4, 2),
    Peer(peers.coremltools, "coremltools", 4, 4),
    Peer(peers.coremltools, "coremltools", 6, 4),
    Peer(peers.torchao_coreml, "torchao", 2),
    Peer(peers.torchao_coreml, "torchao", 4),
    Peer(peers.torchao_codebook, "torchao", 2),
    Peer(peers.torchao_codebook, "torchao", 4),
    Peer(peers.torchao_codebook, "torchao", 4, 4, axis="in"),
)

QUICK_SCHEMES = (vq.KM(k=4), vq.PQ(k=16, dim=4, axis="out"), vq.PQ(k=8, dim=4, axis="out"))
QUICK_CALIBRATED = (vq.PQ(k=8, dim=4, axis="out"),)
QUICK_PEERS = (
    Peer(peers.coremltools, "coremltools", 2),
    Peer(peers.coremltools, "coremltools", 1, 4),
    Peer(peers.torchao_codebook, "torchao", 1, 4, axis="in"),
)

# Of ``tuning`` and ``tuning_confidence``.
QUICK_LADDER: tuple[vq.Scheme | None, ...] = (
    vq.PQ(k=8, dim=8, axis="out"),
    vq.PQ(k=16, dim=4, codebooks="tensor"),
    vq.KM(k=4),
    vq.KM(k=16),
    None,
)


@dataclass(frozen=True)
class Prediction:
    """On how much the prediction of a layer's harm is compared with its real loss.

    Attributes:
        images: Images of the tuning split.
        candidates: Candidates of each layer, spread evenly from the largest to the smallest.
    """

    images: int
    candidates: int


PREDICTION = {
    "digits": Prediction(images=539, candidates=100),
    "fashion_mnist_cnn": Prediction(images=10_000, candidates=12),
    "resnet20": Prediction(images=1_000, candidates=4),
}
QUICK_PREDICTION = Prediction(images=200, candidates=3)


def tuning_images(workload: str) -> Samples:
    """The tuning split of a workload; the first half of it where an evaluation takes long."""
    images, labels = (digits if workload == "digits" else fashion_mnist).load().tuning
    count = 5_000 if workload == "resnet20" else len(labels)
    return Samples(images[:count], labels[:count])


def test_images(workload: str) -> Samples:
    """The test split of a workload."""
    return (digits if workload == "digits" else fashion_mnist).load().test


def target_layers(workload: str, model: nn.Module) -> tuple[str, ...]:
    """The layers to compress: the large dense ones, or all where there are none."""
    return DENSE.get(workload) or tuple(
        name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)
    )
