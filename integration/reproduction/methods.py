"""Every method of the package on one network, to the end: a file, an ONNX model, a row."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks.harness import Table
from integration.reproduction import text
from integration.reproduction.journal import Journal
from integration.workloads import fashion_mnist
from vq_plugin.select import Schemes
from vq_plugin.workloads.data import Batches

_ROUNDS = 15


@dataclass(frozen=True)
class Few:
    """The first batches of every pass."""

    batches: Batches
    count: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[object]:
        return itertools.islice(iter(self.batches), self.count)


@dataclass(frozen=True)
class Network:
    """A trained network with its data."""

    model: nn.Module
    calibration: Sequence[Tensor]
    batches: Batches | Few
    test: Callable[[nn.Module], float]


@dataclass(frozen=True)
class Method:
    """What becomes of a network.

    Attributes:
        start: The float model that is coded.
        schemes: How.
        passes: Of training by the float model after that, codes fixed.
        calibrated: Whether fits see data.
    """

    start: Callable[[Network], nn.Module]
    schemes: Schemes
    passes: int = 0
    calibrated: bool = True


def network(seed: int) -> Network:
    """The CNN of Fashion-MNIST."""
    from integration.workloads import fashion_mnist_cnn

    batches = fashion_mnist.training_batches()
    return Network(
        fashion_mnist_cnn.model(seed),
        fashion_mnist.calibration(),
        Few(batches, len(batches) // 2),
        fashion_mnist.test,
    )


def residual_network() -> Network:
    """ResNet-20 of Fashion-MNIST."""
    from integration.workloads import fashion_mnist_resnet20

    batches = fashion_mnist.training_batches()
    return Network(
        fashion_mnist_resnet20.model(),
        fashion_mnist.calibration(),
        Few(batches, len(batches) // 2),
        fashion_mnist.test,
    )


def whole(net: Network) -> nn.Module:
    """As it is."""
    return net.model


def factorized(net: Network, factors: Any) -> nn.Module:
    """Products in the places of layers."""
    return vq.factorize(net.model, factors, net.calibration)


def merged(net: Network, keep: float) -> nn.Module:
    """Similar neurons as one."""
    with warnings.catch_warnings():
        # Of layers that stay, such as the last.
        warnings.simplefilter("ignore")
        return vq.merge_neurons(net.model, keep, net.calibration)


def zeroed(net: Network, sparsity: float, passes: int) -> nn.Module:
    """Most weights zero."""
    return vq.prune(deepcopy(net.model).train(), net.batches, sparsity, epochs=passes).eval()


def penni(net: Network, factors: Any, passes: int, deviations: float = 1.0) -> nn.Module:
    """Products, most coefficients of which are zero, without the channels that then are empty."""
    small = vq.factorize(net.model, factors, net.calibration)
    # Norms learn new statistics.
    sparse = vq.prune_factors(
        small.train(), net.batches, teacher=net.model, deviations=deviations, epochs=passes
    )
    return vq.remove_empty_channels(sparse.eval())


def narrow(net: Network, ratio: float, passes: int) -> nn.Module:
    """Channels chosen by torch-pruning go, what is left learns from the float model."""
    import torch_pruning

    small = deepcopy(net.model)
    *_, last = (layer for layer in small.modules() if isinstance(layer, nn.Linear))
    torch_pruning.pruner.BasePruner(
        small,
        net.calibration[0][:1],
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        pruning_ratio=ratio,
        ignored_layers=[last],
    ).step()
    # A sparsity of 0: training alone.
    return vq.prune(small.train(), net.batches, 0.0, teacher=net.model, epochs=passes).eval()


def dense_layers(scheme: Any) -> Schemes:
    """One scheme for the two large layers, k-means of 64 centers for all else."""
    return {"re:classifier.[03].*": scheme, "*": vq.KM(k=64)}


# As Wu et al. 2016 (arXiv 1512.06473): positions of a kernel share codebooks, and so look-ups.
_SHARED_TABLES: Schemes = {
    "features.3": vq.PQ(k=32, dim=8, layout="channels"),
    **dense_layers(vq.PQ(k=32, dim=4)),
}
_KERNELS = {"features.3": vq.Basis(d=5)}
_LOW_RANK = {"re:classifier.[03]": vq.SVD(rate=4)}
_ZEROS = vq.KM(k=9, keep_zeros=True)

METHODS: dict[str, Method] = {
    "k-means": Method(whole, dense_layers(vq.KM(k=4))),
    "binary": Method(whole, dense_layers(vq.Binary()), calibrated=False),
    "product": Method(whole, dense_layers(vq.PQ(k=16, dim=4, axis="out"))),
    "Quantized CNN": Method(whole, _SHARED_TABLES),
    "Quantized CNN, uncorrected": Method(whole, _SHARED_TABLES, calibrated=False),
    "residual": Method(whole, dense_layers(vq.RQ(k=16, stages=2, dim=8))),
    "signs": Method(whole, dense_layers(vq.Signs(levels=4, block=4))),
    "low rank": Method(partial(factorized, factors=_LOW_RANK), vq.KM(k=64)),
    "low rank, fitted together": Method(
        whole, dense_layers(vq.Factored(vq.SVD(rate=4), vq.Uniform(step=1.0)))
    ),
    "basis of kernels": Method(partial(factorized, factors=_KERNELS), dense_layers(vq.KM(k=4))),
    "merged neurons": Method(partial(merged, keep=0.5), dense_layers(vq.KM(k=4))),
    "product, trained": Method(whole, dense_layers(vq.PQ(k=16, dim=4, axis="out")), passes=1),
    "channels, then codes": Method(
        partial(narrow, ratio=0.4, passes=2), dense_layers(vq.KM(k=4)), passes=1
    ),
    "PENNI, then codes": Method(
        partial(penni, factors={**_KERNELS, **_LOW_RANK}, passes=2), _ZEROS, passes=1
    ),
    "zeros, then codes": Method(partial(zeroed, sparsity=0.97, passes=3), _ZEROS, passes=1),
}
# Those of equal form have the same mixes.
_SHARED_MIXES = {
    f"re:{layers}": vq.Basis(d=5, shared=True)
    for layers in (
        r"features\.3\..*conv.", r"features\.4\.(0\.conv2|[12]\.conv.)",
        r"features\.5\.(0\.conv2|[12]\.conv.)",
    )
}  # fmt: skip
# PENNI on it is a part of its own; zeros are among the benchmarks.
RESIDUAL_METHODS: dict[str, Method] = {
    "k-means": Method(whole, vq.KM(k=16)),
    # Without a cut, training alone.
    "mixes of several layers": Method(
        partial(penni, factors=_SHARED_MIXES, passes=2, deviations=0.0), vq.KM(k=16)
    ),
}

_FORMATS = {
    "method": "", "start lost": ".2f", "lost": ".2f", "bytes": ",d", "rate": ".1f",
    "weights gone": ".1f", "run": ".1f", "nonzero": ".1f", "dense time": ".2f",
    "codes time": ".2f", "onnx gap": ".1e",
}  # fmt: skip


#: What each part is of.
PARTS: dict[str, tuple[str, Callable[[int], Network], dict[str, Method]]] = {
    "methods": ("Fashion-MNIST CNN", network, METHODS),
    "residual_methods": ("ResNet-20", lambda _: residual_network(), RESIDUAL_METHODS),
}


def published(folder: Path, part: str, seed: int) -> str:
    """The table of a network, of what a journal in the folder has not got yet measured."""
    title, build, known = PARTS[part]
    journal = Journal(folder / f"{part}.jsonl")
    net = None
    for name, method in known.items():
        key = f"{seed} {name}"
        if key in journal.rows:
            continue
        net = net or build(seed)
        journal.add(key, {"method": name, **row_of(method, net)})
        print(title, key, flush=True)
    rows = [journal.rows[f"{seed} {name}"] for name in known]
    return text.published(journal, Table(f"{title}, seed {seed}", _FORMATS, rows))


def row_of(method: Method, net: Network) -> dict[str, float]:
    """A method's row."""
    start = method.start(net)
    small = vq.compress(start, method.schemes, net.calibration if method.calibrated else None)
    if method.passes:
        vq.finetune(small, net.batches, teacher=net.model, epochs=method.passes)
    return ended(start, small, net)


def ended(start: nn.Module, small: nn.Module, net: Network) -> dict[str, float]:
    """The row of a coded model; it has to load, and to run, or there is none.

    Args:
        start: The float model that was coded.
        small: It, coded.
        net: The network that both come from.
    """
    model, example = net.model, net.calibration[0]
    before = vq.count_work(model, [example])
    baseline = net.test(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        nbytes = vq.save(small, path / "model.vq", rest="float16")
        fresh = deepcopy(start)
        for parameter in fresh.parameters():
            nn.init.zeros_(parameter)
        loaded = vq.load(path / "model.vq", fresh).eval()
        vq.export_onnx(loaded, path / "model.onnx", example[:1])
        gap = onnx_gap(path / "model.onnx", loaded, example)
    work = vq.count_work(loaded, [example])
    bytes_before = sum(4 * value.numel() for value in model.state_dict().values())
    times = ratios({"float": model, "dense": start, "codes": loaded}, example[:1])
    return {
        "start lost": 100 * (baseline - net.test(start)),
        "lost": 100 * (baseline - net.test(loaded)),
        "bytes": nbytes,
        "rate": bytes_before / nbytes,
        "weights gone": 100 * (1 - work.nonzero_weights / before.nonzero_weights),
        "run": 100 * (1 - work.multiplications / before.multiplications),
        "nonzero": 100 * (1 - work.nonzero_multiplications / before.multiplications),
        "dense time": times["dense"],
        "codes time": times["codes"],
        "onnx gap": gap,
    }


@torch.no_grad()
def onnx_gap(path: Path, model: nn.Module, images: Tensor) -> float:
    """The largest difference of a score in ONNX Runtime, over the scores' root mean square."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    expected = model(images)
    (scores,) = session.run(None, {given.name: images.numpy()})
    gap = (torch.from_numpy(scores) - expected).abs().max() / expected.square().mean().sqrt()
    return float(gap)


@torch.no_grad()
def ratios(models: dict[str, nn.Module], example: Tensor) -> dict[str, float]:
    """Processor time of a pass over that of the first model: medians of passes in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(_ROUNDS):
        for name, model in models.items():
            model(example)
            began = time.process_time()
            for _ in range(5):
                model(example)
            seconds[name].append(time.process_time() - began)
    first, *_ = (statistics.median(values) for values in seconds.values())
    return {name: statistics.median(values) / first for name, values in seconds.items()}
