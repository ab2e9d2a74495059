"""What an epoch of training the codebooks brings back, on the Fashion-MNIST CNN.

    python -m integration.benchmarks.finetune [--quick]

The two large layers get one shared codebook each. The float model teaches, on the training split
without its labels; accuracies are those of the untouched test split. About five minutes on two
cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import torch
from torch import Tensor

import vq_plugin as vq
from integration.benchmarks.harness import Report, Table, parse_arguments
from vq_plugin.workloads import digits, fashion_mnist, fashion_mnist_cnn
from vq_plugin.workloads.data import Samples

_SCHEMES = ("pq(k=16,dim=8,codebooks=tensor)", "km(k=4)")
_SEEDS = (0, 1)


class Shuffled:
    """Batches of images, in an order that torch's generator draws."""

    def __init__(self, samples: Samples, size: int = 128) -> None:
        self._images, self._size = samples.images, size

    def __len__(self) -> int:
        return len(self._images) // self._size

    def __iter__(self) -> Iterator[Tensor]:
        for batch in torch.split(torch.randperm(len(self._images)), self._size)[: len(self)]:
            yield self._images[batch]


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0])
    report = Report("finetune", {"quick": arguments.quick, "seeds": _SEEDS})
    workload: ModuleType = digits if arguments.quick else fashion_mnist_cnn
    data = (digits if arguments.quick else fashion_mnist).load()
    layers = ("classifier.0",) if arguments.quick else ("classifier.0", "classifier.3")
    model = workload.model()
    table = Table(
        f"{workload.__name__.rpartition('.')[2]}, {' and '.join(layers)}: accuracy on the test "
        f"split, float {workload.test(model):.2%}",
        {
            "scheme": "", "seed": "d", "layer rate": ".1f", "fitted": ".2%", "1 epoch": ".2%",
        },
    )  # fmt: skip
    for text in _SCHEMES[:1] if arguments.quick else _SCHEMES:
        for seed in (0,) if arguments.quick else _SEEDS:
            small = vq.compress(model, dict.fromkeys(layers, vq.parse_scheme(text)), seed=seed)
            fitted = workload.test(small)
            vq.finetune(small, Shuffled(data.train), teacher=model, seed=seed)
            table.rows.append({
                "scheme": text, "seed": seed, "layer rate": vq.summary(small).layer_rate,
                "fitted": fitted, "1 epoch": workload.test(small),
            })  # fmt: skip
    report.add(table)
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
