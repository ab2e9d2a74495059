"""Whole files after pruning, codebooks, training and coding, stage by stage, beside others.

The training images are used without labels: the float model teaches. Sparsity and k were chosen on
the tuning split with seed 0; losses are absolute, in points of accuracy. P is the pruned model with
its nonzeros as float32 and their positions at their entropy, P+Q the codebooks with codes of fixed
length, P+Q+E the file on disk; biases and norms are float32 in P and float16 after it. Deep
Compression has its own coding of positions (:mod:`integration.benchmarks.deep_compression`) and
learns from labels for as many passes; coremltools compresses without training, and DKM with it.
Their sizes are counted as :mod:`integration.benchmarks.peers` says, with all else as float16.

Pruned models are kept where the trained ones are, so that a killed run goes on; delete them to
prune again.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks import deep_compression, peers, settings
from integration.benchmarks.deep_compression import LayerSetting
from integration.benchmarks.harness import Check, Report, Table, missing_peer
from integration.workloads import fashion_mnist, fashion_mnist_resnet20
from vq_plugin.nn import layer_slot
from vq_plugin.select import Pattern
from vq_plugin.workloads import digits
from vq_plugin.workloads.cache import trained
from vq_plugin.workloads.data import Batches, Samples


@dataclass(frozen=True)
class Setting:
    """How one network is compressed.

    Attributes:
        sparsity: Share of zeros.
        k: Centers of a layer, zero among them.
        others: Centers of layers that have others, by name.
        batch: Images of a batch.
        lr: Of pruning.
        epochs: Of pruning and of training the codebooks.
        augment: Maps a batch of images to another, at random: that of the float model's training.
        bound: Least file rate that the project promises.
        paper: Deep Compression's choices, by layer; none where it has none.
        dkm: Whether coremltools' DKM ends within minutes.
    """

    sparsity: float
    k: int
    others: Mapping[str, int] = field(default_factory=dict)
    batch: int = 64
    lr: float = 2e-3
    epochs: tuple[int, int] = (5, 1)
    augment: Callable[[Tensor], Tensor] | None = None
    bound: float | None = None
    paper: Mapping[str, LayerSetting] | None = None
    dkm: bool = False

    @property
    def schemes(self) -> dict[Pattern, vq.Scheme]:
        ks = {"*": self.k, **self.others}
        return {name: vq.KM(k=k, keep_zeros=True) for name, k in ks.items()}

    def batches(self, samples: Samples, labels: bool = False) -> Batches:
        """Training batches, with their labels if asked for."""
        return Batches(samples, self.batch, labels, self.augment)


SETTINGS = {
    # Densities, bits and index bits: tables 2 and 3 of the paper for LeNets, table 4's for AlexNet
    # where layers are alike in the CNN, which it does not have.
    "lenet_300_100": Setting(
        0.96, 7, batch=32, lr=3e-3, bound=80,
        paper={
            "classifier.1": LayerSetting(0.08, 6, 5), "classifier.3": LayerSetting(0.09, 6, 5),
            "classifier.5": LayerSetting(0.26, 6, 5),
        },
    ),
    "lenet5": Setting(
        0.966, 5, {"features.0": 33, "features.2": 9, "classifier.2": 9}, batch=32, epochs=(5, 0),
        bound=110,
        paper={
            "features.0": LayerSetting(0.66, 8, 5), "features.2": LayerSetting(0.12, 8, 5),
            "classifier.0": LayerSetting(0.08, 5, 5), "classifier.2": LayerSetting(0.19, 5, 5),
        },
    ),
    "fashion_mnist_cnn": Setting(
        0.9875, 5, bound=200,
        paper={
            "features.0": LayerSetting(0.84, 8, 4), "features.3": LayerSetting(0.38, 8, 4),
            "classifier.0": LayerSetting(0.09, 5, 4), "classifier.3": LayerSetting(0.09, 5, 4),
            "classifier.6": LayerSetting(0.25, 5, 4),
        },
    ),
    "resnet20": Setting(
        0.87, 5, batch=128, epochs=(3, 1), bound=20,
        augment=fashion_mnist_resnet20.shift_and_flip,
    ),
    "digits": Setting(0.8, 5, lr=5e-3, dkm=True),
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One model: who made it, at which stage, with which seed, and its bytes."""

    by: str
    stage: str
    seed: int
    nbytes: int
    model: nn.Module


def pruned(name: str, setting: Setting, data: Samples, seed: int) -> nn.Module:
    """The pruned model of one seed."""

    def train(model: nn.Module) -> None:
        sparse = vq.prune(
            float_model().train(), setting.batches(data), setting.sparsity, teacher=float_model(),
            epochs=setting.epochs[0], lr=setting.lr, seed=seed,
        )  # fmt: skip
        model.load_state_dict(sparse.state_dict())

    float_model = settings.WORKLOADS[name].model
    how = f"{setting.sparsity}_{setting.epochs[0]}x{setting.batch}_{setting.lr}_{seed}"
    return trained(f"{name}_pruned_{how}", float_model(), train)


def ours(name: str, setting: Setting, data: Samples, seed: int) -> Iterator[Row]:
    """Prune, quantize and train, code."""
    sparse = pruned(name, setting, data, seed)
    yield Row("vq_plugin", "P", seed, _pruned_nbytes(sparse), sparse)
    workload, loader = settings.WORKLOADS[name], setting.batches(data)
    calibration = workload.calibration()
    small = vq.compress(sparse, setting.schemes, calibration, seed)
    vq.finetune(small, loader, teacher=workload.model(), epochs=setting.epochs[1], seed=seed)
    fixed = vq.summary(small).nbytes + 2 * _others(small)
    yield Row("vq_plugin", "P+Q", seed, fixed, small)
    with tempfile.TemporaryDirectory() as folder:
        nbytes = vq.save(small, Path(folder) / "model.vq", rest="float16")
        loaded = vq.load(Path(folder) / "model.vq", workload.model())
    yield Row("vq_plugin", "P+Q+E", seed, nbytes, loaded)


def paper(workload: ModuleType, setting: Setting, data: Samples) -> Iterator[Row]:
    """Deep Compression, with as many passes, once."""
    if setting.paper is None:
        return
    found = deep_compression.run(
        workload.model(), setting.batches(data, labels=True), setting.paper,
        rounds=setting.epochs[0], epochs=setting.epochs[1], seed=0,
    )  # fmt: skip
    for stage, nbytes in found.nbytes.items():
        yield Row("Deep Compression", stage, 0, nbytes, found.models[stage])


def coremltools(workload: ModuleType, setting: Setting, data: Samples) -> Iterator[Row]:
    """Its palettization after training, and DKM, at two bits a weight."""
    model = workload.model()
    layers = [name for name, module in model.named_modules() if layer_slot(module)]
    small = peers.coremltools(model, layers, 2, 1)
    nbytes = small.nbytes + 2 * _others(model)
    yield Row("coremltools", "Q", 0, nbytes, small.model)
    if not setting.dkm:
        return
    loader = setting.batches(data, labels=True)
    small = peers.coremltools_dkm(model, layers, 2, loader, sum(setting.epochs))
    nbytes = small.nbytes + 2 * _others(model)
    yield Row("coremltools DKM", "Q", 0, nbytes, small.model)


def _others(model: nn.Module) -> int:
    """Values that are of no weight: biases and norms."""
    own = ("weight", "codes", "codebooks", "scale")
    kinds = {n for n, m in model.named_modules() if layer_slot(m) or hasattr(m, "codebooks")}
    return sum(
        value.numel()
        for key, value in model.state_dict().items()
        if not (key.rpartition(".")[0] in kinds and key.rpartition(".")[2] in own)
    )


def _pruned_nbytes(model: nn.Module) -> int:
    bits = 32.0 * _others(model)
    for module in model.modules():
        if layer_slot(module) is None:
            continue
        weight = module.weight
        assert isinstance(weight, Tensor)
        kept, count = int((weight != 0).sum()), weight.numel()
        entropy = sum(-n * math.log2(n / count) for n in (kept, count - kept) if n)
        bits += 32 * kept + entropy
    return math.ceil(bits / 8)


def measure(report: Report, name: str, seeds: int) -> None:
    """Adds the table of a network, and its bounds, to a report.

    Args:
        report: Where to.
        name: Of :data:`SETTINGS`.
        seeds: Runs of ours; the others have one each.
    """
    workload, setting = settings.WORKLOADS[name], SETTINGS[name]
    data = (digits if name == "digits" else fashion_mnist).load().train
    model = workload.model()
    tuning, test = workload.evaluate(model), workload.test(model)
    nbytes = sum(value.nbytes for value in model.state_dict().values())
    schemes = ", ".join(dict.fromkeys(map(str, setting.schemes.values())))
    passes = " + ".join(map(str, setting.epochs))
    table = Table(
        f"{name}: sparsity {setting.sparsity}, {schemes}, {passes} passes; float "
        f"{nbytes} bytes, {100 * tuning:.2f} % tuning, {100 * test:.2f} % test",
        {
            "by": "", "stage": "", "seed": "d", "bytes": "d", "rate": ".1f",
            "loss (tuning)": ".2f", "loss (test)": ".2f",
        },
    )  # fmt: skip
    rows = [ours(name, setting, data, seed) for seed in range(seeds)]
    rows.append(paper(workload, setting, data))
    if missing_peer("coremltools"):
        report.note("coremltools is not installed: left out")
    else:
        rows.append(coremltools(workload, setting, data))
    for row in itertools.chain.from_iterable(rows):
        table.rows.append({
            "by": row.by, "stage": row.stage, "seed": row.seed, "bytes": row.nbytes,
            "rate": nbytes / row.nbytes,
            "loss (tuning)": 100 * (tuning - workload.evaluate(row.model)),
            "loss (test)": 100 * (test - workload.test(row.model)),
        })  # fmt: skip
        # The next takes minutes.
        print(table.rows[-1], flush=True)
    report.add(table)
    files = [r for r in table.rows if (r["by"], r["stage"]) == ("vq_plugin", "P+Q+E")]
    if setting.bound is not None:
        rate = statistics.mean(row["rate"] for row in files)
        loss = statistics.mean(row["loss (test)"] for row in files)
        report.checks += [
            Check(f"file rate, mean of {seeds} seeds", rate, setting.bound, at_least=True),
            Check(f"points lost by these files, mean of {seeds} seeds", loss, 1),
        ]
