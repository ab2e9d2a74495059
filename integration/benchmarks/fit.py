"""Speed, error and memory of the fits, beside scikit-learn, faiss, kmeans1d and coremltools.

python -m integration.benchmarks.fit [--parts km pq] [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from integration.benchmarks.compress_memory import SCHEMES, peak_memory
from integration.benchmarks.fit_model import large_model
from integration.benchmarks.fit_scalar import against_optimum, against_sklearn, large_layer
from integration.benchmarks.fit_vector import (
    VGG_DENSE,
    large_product,
    model_product,
    product,
    residual,
    shared_product,
)
from integration.benchmarks.harness import Report, parse_arguments, powers_of_two
from integration.benchmarks.import_time import import_time

PARTS: dict[str, Callable[[Report, int, bool], None]] = {
    "km": lambda report, rounds, quick: against_sklearn(
        report, (128, 64) if quick else (4096, 1024), (4, 16) if quick else (4, 16, 256), rounds
    ),
    "km-large": lambda report, rounds, quick: large_layer(
        report, (128, 64) if quick else (4096, 25088), 16, rounds
    ),
    "optimum": lambda report, rounds, quick: against_optimum(
        report, 5_000 if quick else 200_000, powers_of_two(8 if quick else 256)
    ),
    "pq": lambda report, rounds, quick: product(
        report, (64, 32) if quick else (1024, 4096), 16, 4, rounds
    ),
    "pq-shared": lambda report, rounds, quick: shared_product(
        report, (64, 64) if quick else (4096, 4096), 4 if quick else 256, 4, rounds
    ),
    "pq-large": lambda report, rounds, quick: large_product(
        report, (64, 32) if quick else (4096, 4096), 16, 4, rounds
    ),
    "dense": lambda report, rounds, quick: model_product(
        report, ((64, 128), (64, 64), (32, 64)) if quick else VGG_DENSE, 16, 4, rounds
    ),
    "rq": lambda report, rounds, quick: residual(
        report, (64, 32) if quick else (4096, 1024), 16 if quick else 256, 2, rounds
    ),
    "memory": lambda report, rounds, quick: peak_memory(
        report, *((64, 128) if quick else (4096, 25088)), SCHEMES[:1] if quick else SCHEMES
    ),
    "model": lambda report, rounds, quick: large_model(
        report, *((2, (64, 64)) if quick else (72, (4096, 1024))), 4 if quick else 256, 4
    ),
    "import": lambda report, rounds, quick: import_time(report, 1 if quick else 10),
}


def main() -> None:
    arguments = parse_arguments(__doc__ or "", _options)
    rounds = 1 if arguments.quick else arguments.rounds
    settings: dict[str, Any] = {"quick": arguments.quick, "rounds": rounds}
    report = Report("fit", settings)
    for part in arguments.parts:
        PARTS[part](report, rounds, arguments.quick)
    report.finish(arguments.output)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5, help="calls of each contender (5)")


if __name__ == "__main__":
    main()
