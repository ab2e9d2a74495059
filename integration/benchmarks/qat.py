"""What an epoch of quantization-aware training brings back, on the Fashion-MNIST CNN.

    python -m integration.benchmarks.qat [--quick]

By torch.ao's own calls, on the two large layers with one shared codebook each: cross-entropy with
the labels of the training split, Adam whose learning rate falls along a cosine. Accuracies are
those of the untouched test split. About six minutes on two cores.
"""

from __future__ import annotations

import copy
import warnings
from types import ModuleType

import torch
from torch import nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx
from torch.nn import functional

import vq_plugin as vq
from integration.benchmarks.harness import Report, Table, parse_arguments
from integration.workloads import fashion_mnist, fashion_mnist_cnn
from vq_plugin.torch_ao import check_converted, get_backend_config, get_qat_qconfig_mapping
from vq_plugin.workloads import digits
from vq_plugin.workloads.data import Samples

_SCHEME = vq.PQ(k=16, dim=8, codebooks="tensor")
_BATCH = 128


def train(prepared: nn.Module, samples: Samples, seed: int) -> None:
    """One epoch, in place."""
    torch.manual_seed(seed)
    images, labels = samples
    optimizer = torch.optim.Adam(prepared.parameters(), lr=1e-3)
    steps = len(images) // _BATCH
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for batch in torch.split(torch.randperm(len(images)), _BATCH)[:steps]:
        optimizer.zero_grad()
        functional.cross_entropy(prepared(images[batch]), labels[batch]).backward()
        optimizer.step()
        schedule.step()


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0])
    warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated")
    seeds = (0,) if arguments.quick else (0, 1, 2)
    report = Report("qat", {"quick": arguments.quick, "seeds": list(seeds)})
    workload: ModuleType = digits if arguments.quick else fashion_mnist_cnn
    data = (digits if arguments.quick else fashion_mnist).load()
    layers = ("classifier.0",) if arguments.quick else ("classifier.0", "classifier.3")
    schemes: dict[str, vq.Scheme] = dict.fromkeys(layers, _SCHEME)
    model, backend = workload.model(), get_backend_config()
    table = Table(
        f"{workload.__name__.rpartition('.')[2]}, {' and '.join(layers)} as {_SCHEME}: accuracy on "
        f"the test split, float {workload.test(model):.2%}",
        {"seed": "d", "layer rate": ".1f", "fitted": ".2%", "1 epoch": ".2%"},
    )
    for seed in seeds:
        trained = copy.deepcopy(model).train()
        mapping = get_qat_qconfig_mapping(trained, schemes, seed=seed)
        example = (data.train.images[:1],)
        prepared = prepare_qat_fx(trained, mapping, example, backend_config=backend)
        train(prepared, data.train, seed)
        small = check_converted(convert_fx(prepared.eval(), backend_config=backend), schemes)
        table.rows.append({
            "seed": seed, "layer rate": vq.summary(small).layer_rate,
            "fitted": workload.test(vq.compress(model, schemes, seed=seed)),
            "1 epoch": workload.test(small),
        })  # fmt: skip
    report.add(table)
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
