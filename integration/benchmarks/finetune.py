"""What an epoch of training the codebooks brings back, on the Fashion-MNIST CNN.

    python -m integration.benchmarks.finetune [--quick]

The two large layers get one shared codebook each. The float model teaches, on the training split
without its labels; accuracies are those of the untouched test split. About five minutes on two
cores.
"""

from __future__ import annotations

from types import ModuleType

import vq_plugin as vq
from integration.benchmarks.harness import Report, Table, parse_arguments
from integration.workloads import fashion_mnist, fashion_mnist_cnn
from vq_plugin.workloads import digits
from vq_plugin.workloads.data import Batches

_SCHEMES = ("pq(k=16,dim=8,codebooks=tensor)", "km(k=4)")
_SEEDS = (0, 1)


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
            vq.finetune(small, Batches(data.train, 128), teacher=model, seed=seed)
            table.rows.append({
                "scheme": text, "seed": seed, "layer rate": vq.summary(small).layer_rate,
                "fitted": fitted, "1 epoch": workload.test(small),
            })  # fmt: skip
    report.add(table)
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
