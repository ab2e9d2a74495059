"""What int8 codebooks give beside those of float16: rates and losses of the same settings.

python -m integration.benchmarks.codebook_dtype [--workload digits|fashion_mnist_cnn] [--quick]

Losses are in points of the untouched test split: of fits to the weights alone (plain) and to the
layers' outputs (calibrated), the latter with different sets of 512 unlabelled images.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from statistics import mean

import vq_plugin as vq
from integration.benchmarks import settings
from integration.benchmarks.calibrated import Bench
from integration.benchmarks.harness import Check, Report, Table, parse_arguments
from integration.workloads import fashion_mnist
from vq_plugin.workloads import digits

_DTYPES = ("float16", "int8")
_SETTINGS = {
    # The two large dense layers.
    "fashion_mnist_cnn": {
        r"re:classifier\.[03]": (
            "pq(k=16,dim=4)",
            "pq(k=16,dim=4,axis=out)",
            "pq(k=8,dim=4,axis=out)",
            "pq(k=8,dim=8,axis=out)",
            "pq(k=16,dim=8,axis=out)",
            "pq(k=16,dim=8)",
            "pq(k=256,dim=8,axis=out)",
            "pq(k=256,dim=8,codebooks=tensor)",
            "rq(k=256,stages=2,dim=none)",
        )
    },
    "digits": {
        "*": (
            "pq(k=16,dim=4)",
            "pq(k=16,dim=4,axis=out)",
            "pq(k=16,dim=8,axis=out)",
            "rq(k=16,stages=2,dim=8,axis=out)",
            "rq(k=16,stages=2,dim=4,codebooks=tensor)",
        )
    },
}
_QUICK = {"*": ("pq(k=16,dim=4,axis=out)",)}


def compare(bench: Bench, pattern: str, text: str, sets: int) -> dict[str, object]:
    row: dict[str, object] = {"scheme": text}
    for dtype in _DTYPES:
        scheme = replace(vq.parse_scheme(text), codebook_dtype=dtype)  # type: ignore[arg-type]
        layers = bench.layers({pattern: str(scheme)})
        plain = bench.fit(layers, 0, lambda _: None)
        row[f"rate, {dtype}"] = vq.summary(plain).layer_rate
        row[f"plain, {dtype}"] = bench.loss(plain, "test")
        losses = [
            bench.loss(bench.fit(layers, number, lambda moments: moments), "test")
            for number in range(sets)
        ]
        row[f"calibrated, {dtype}"] = mean(losses)
    return row


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0], _options)
    quick = arguments.quick
    name = "digits" if quick else arguments.workload
    sets = 1 if quick else arguments.sets
    report = Report(f"codebook_dtype_{name}", {"quick": quick, "workload": name, "sets": sets})
    data = (digits if name == "digits" else fashion_mnist).load()
    bench = Bench(settings.WORKLOADS[name], data.train.images, sets)
    formats = {"rate": ".1f", "plain": ".2f", "calibrated": ".2f"}
    table = Table(
        f"{name}: layer rates, and losses in points of {100 * bench.test:.2f} %",
        {"scheme": "", **{f"{what}, {d}": f for what, f in formats.items() for d in _DTYPES}},
    )
    for pattern, texts in (_QUICK if quick else _SETTINGS[name]).items():
        for text in texts:
            table.rows.append(compare(bench, pattern, text, sets))
            print(table.rows[-1], flush=True)
    report.add(table)
    if not quick:
        more = [row["calibrated, int8"] - row["calibrated, float16"] for row in table.rows]
        report.checks.append(Check("mean points beyond float16, calibrated", mean(more), 0.1))
    report.finish(arguments.output)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workload", choices=("digits", "fashion_mnist_cnn"), default="fashion_mnist_cnn"
    )
    parser.add_argument("--sets", type=int, default=2, help="sets of images (2)")


if __name__ == "__main__":
    main()
