"""A trained CNN as Core ML packages whose weights are palettes: sizes, and the values on the disk.

    python -m integration.benchmarks.coreml [--quick]

Nothing is predicted: that needs macOS. Half a minute.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import coremltools as ct
import numpy as np
import torch
from coremltools.converters.mil.frontend.milproto import load as milproto

import vq_plugin as vq
from integration.benchmarks.harness import Check, Report, Table, parse_arguments
from integration.workloads import fashion_mnist_cnn
from vq_plugin.nn import coded_weights
from vq_plugin.select import Schemes

_LARGE = r"re:classifier\.[03]"
_SETTINGS: dict[str, Schemes] = {
    "km(k=16)": vq.KM(k=16),
    "pq(k=16,dim=4), km": {_LARGE: vq.PQ(k=16, dim=4), "*": vq.KM(k=16)},
    "the same, one book a layer": {
        _LARGE: vq.PQ(k=16, dim=4, codebooks="tensor"),
        "*": vq.KM(k=16),
    },
}


def stored(path: Path) -> list[np.ndarray]:
    """The palettes of a package, as coremltools decodes them."""
    package = ct.models.MLModel(str(path), skip_model_load=True)
    spec = package.get_spec()
    program = milproto.load(
        spec, specification_version=spec.specificationVersion, file_weights_dir=package.weights_dir
    )
    return [
        operation.materialized_val_inference()
        for operation in program.functions["main"].operations
        if operation.op_type == "constexpr_lut_to_dense"
    ]


@torch.no_grad()
def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0])
    warnings.simplefilter("ignore")
    report = Report("coreml", {"quick": arguments.quick})
    model = fashion_mnist_cnn.model()
    table = Table(
        "Fashion-MNIST CNN as Core ML packages for iOS18",
        {"scheme": "", "weights kB": ".1f", "packed kB": ".1f", "ratio": ".3f", "wrong bits": "d"},
    )
    settings = dict(list(_SETTINGS.items())[: 1 if arguments.quick else None])
    with tempfile.TemporaryDirectory() as folder:
        for label, schemes in settings.items():
            small, path = vq.compress(model, schemes), Path(folder) / "small.mlpackage"
            vq.export_coreml(small, path, torch.zeros(1, 1, 28, 28))
            (weights,) = path.rglob("weight.bin")
            found = {each.shape: each for each in stored(path)}
            wrong = 0
            for coded in coded_weights(small).values():
                value = coded.codebook_weight.decode().half().numpy()
                other = found[value.shape]
                wrong += int((value.view(np.uint16) != other.view(np.uint16)).sum())
            packed, nbytes = vq.summary(small).nbytes, weights.stat().st_size
            row = {"scheme": label, "weights kB": nbytes / 1e3, "packed kB": packed / 1e3}
            table.rows.append({**row, "ratio": nbytes / packed, "wrong bits": wrong})
            report.checks += [
                Check(f"{label}: weights over packed codes", nbytes / packed, 1.25),
                Check(f"{label}: values that differ", wrong, 0),
            ]
    report.add(table)
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
