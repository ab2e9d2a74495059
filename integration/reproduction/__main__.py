"""Figures 1 to 4 and the retrieval test of Gong et al. 2014 on networks that fit here.

    python -m integration.reproduction [PART …] [--seeds 0 1 2] [--quick] [--folder FOLDER]

Parts; without any, all of them, in two processes:

- dense: the dense layers of the Fashion-MNIST CNN by every method, plain and, of the first seed,
  calibrated on 512 unlabelled images; nothing is trained after;
- large: the same methods on a VGG-like network of 16.8 M dense weights, of the first seed;
- pretrained: and on EfficientNet-Lite0 of ImageNet;
- methods: the methods of the package on the whole CNN, each to a file and an ONNX model, of the
  first seed;
- residual_methods: and on ResNet-20;
- learned: codebooks learned in training beside those fitted after it, of the first seed;
- penni: PENNI before training that pays for bits, on the digits' CNN;
- penni_resnet20: the same on ResNet-20 of Fashion-MNIST, of the first seed.

What was measured is in FOLDER (runs/reproduction): a run that is killed goes on from there. Tables
and the picture go to docs/reproduction; with ``--quick``, which takes the digits and three settings
of dense layers, to FOLDER.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from integration.benchmarks.harness import Table
from integration.reproduction import large, learned, methods, penni, pretrained, text
from integration.reproduction.journal import Journal, Row
from integration.reproduction.measured import Head, compressed, measure, nbytes
from integration.reproduction.picture import curves
from integration.reproduction.settings import PLAIN_ONLY, QUICK, SETTINGS, Setting

_DOCS = Path(__file__).parents[2] / "docs" / "reproduction"
# What each of two processes does; a network that is not there yet is trained in one of them.
_LINES = (
    ("penni_resnet20", "residual_methods"),
    ("dense", "methods", "learned", "large", "pretrained", "penni"),
)
_NAMES = {"large": "large_layers"}
_FORMATS = {
    "method": "", "setting": "", "fit": "", "seeds": "d", "rate": ".1f", "error@1": ".2f",
    "lost@1": ".2f", "lost@5": ".2f", "mAP": ".2f", "mAP lost": ".2f", "mAP, 1 bit": ".2f",
}  # fmt: skip


@torch.no_grad()
def head_of(seed: int, quick: bool) -> Head:
    """The dense layers of a trained network with what reaches them."""
    from integration.workloads import fashion_mnist, fashion_mnist_cnn
    from vq_plugin.workloads import digits

    model: Any = digits.model() if quick else fashion_mnist_cnn.model(seed)
    data = digits.load().test if quick else fashion_mnist.load().test
    calibration = (digits if quick else fashion_mnist).calibration()

    def features(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([model.features(some).flatten(1) for some in images.split(500)])

    layers = model.classifier.eval()
    *inner, _ = (name for name, layer in layers.named_modules() if isinstance(layer, nn.Linear))
    known = [features(batch) for batch in calibration]
    return Head(layers, features(data.images), data.labels, known, tuple(inner))


def run(journal: Journal, seed: int, quick: bool, *, slow: bool = True) -> None:
    """Measures what is not in the journal; calibrated fits and RQ are the ``slow`` ones."""
    head = None
    for method, settings in {"float": (None,), **(QUICK if quick else SETTINGS)}.items():
        if method == "RQ" and not slow:
            continue
        for setting in settings:
            for calibrated in (False, True) if slow and method not in PLAIN_ONLY else (False,):
                key = f"{seed} {setting} {'calibrated' if calibrated else 'plain'}"
                if key in journal.rows:
                    continue
                head = head or head_of(seed, quick)
                row = measured(head, setting, calibrated=calibrated)
                fit = "calibrated" if calibrated else "plain"
                named = {"seed": seed, "method": method, "setting": str(setting or ""), "fit": fit}
                journal.add(key, {**named, **row})
                print(key, {name: round(value, 2) for name, value in row.items()}, flush=True)


def measured(head: Head, setting: Setting | None, *, calibrated: bool) -> dict[str, float]:
    """One row; the rate is of the layers that are compressed."""
    whole = sum(4 * head.layers.get_submodule(n).weight.numel() for n in head.compressed)
    if setting is None:
        return {"rate": 1.0, **measure(head, head.layers)}
    with warnings.catch_warnings():
        # Of codes far off without calibration: that is what is measured.
        warnings.simplefilter("ignore")
        small = compressed(head, setting, calibrated=calibrated)
    return {"rate": whole / nbytes(small, head.compressed), **measure(head, small)}


def means(rows: Sequence[Row]) -> list[Row]:
    """Of the seeds, with what is lost against the float network of each."""
    floats = {row["seed"]: row for row in rows if not row["setting"]}
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        before = floats[row["seed"]]
        lost = {
            "error@1": 100 - row["accuracy@1"],
            "lost@1": before["accuracy@1"] - row["accuracy@1"],
            "lost@5": before["accuracy@5"] - row["accuracy@5"],
            "mAP lost": before["mAP"] - row["mAP"],
        }
        groups.setdefault((row["method"], row["setting"], row["fit"]), []).append({**row, **lost})
    return [
        dict(zip(("method", "setting", "fit"), key, strict=True))
        | {
            n: statistics.mean(row[n] for row in some)
            for n in _FORMATS
            if n in some[0] and isinstance(some[0][n], float | int)
        }
        | {"seeds": len(some)}
        for key, some in groups.items()
    ]


def dense(folder: Path, target: Path, seeds: Sequence[int], quick: bool) -> None:
    """The dense layers of the CNN: a table, and a picture."""
    journal = Journal(folder / ("quick.jsonl" if quick else "dense.jsonl"))
    for seed in seeds:
        run(journal, seed, quick, slow=seed == seeds[0])
    rows = means([row for row in journal.rows.values() if row["seed"] in seeds])
    name = "Dense layers of the " + ("digits' CNN" if quick else "Fashion-MNIST CNN")
    title = f"{name}, seeds {', '.join(map(str, seeds))}"
    keep(target / "dense_layers.txt", text.published(journal, Table(title, _FORMATS, rows)))
    (target / "error_against_rate.svg").write_text(curves(rows), encoding="utf-8")


def keep(path: Path, found: str) -> None:
    """Writes a table, and says it."""
    path.write_text(found, encoding="utf-8")
    print(found)


def make(part: str, folder: Path, seeds: Sequence[int]) -> None:
    """One part: its tables, and the picture, in the docs."""
    match part:
        case "dense":
            dense(folder, _DOCS, seeds, quick=False)
            return
        case "large":
            found = large.published(folder)
        case "pretrained":
            found = pretrained.published(folder)
        case "methods" | "residual_methods":
            found = methods.published(folder, part, seeds[0])
        case "learned":
            found = learned.published(folder, seeds[:1])
        case "penni":
            found = penni.published(folder, part, seeds)
        case _:
            found = penni.published(folder, part, seeds[:1])
    keep(_DOCS / f"{_NAMES.get(part, part)}.txt", found)


def side_by_side(folder: Path, seeds: Sequence[int]) -> int:
    """All parts in two processes; 0 if both have come to their end."""
    command = [sys.executable, "-m", "integration.reproduction"]
    settings = ["--seeds", *map(str, seeds), "--folder", str(folder)]
    running = [subprocess.Popen([*command, *line, *settings]) for line in _LINES]
    return max(abs(each.wait()) for each in running)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parts = [part for line in _LINES for part in line]
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(parts)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="the digits, to see that it runs")
    parser.add_argument("--folder", type=Path, default=Path("runs/reproduction"))
    options = parser.parse_args()
    if unknown := set(options.parts) - set(parts):
        parser.error(f"there is no {min(unknown)!r}; parts are {', '.join(parts)}")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="torch.ao.quantization is deprecated")
    if options.quick:
        options.folder.mkdir(parents=True, exist_ok=True)
        dense(options.folder, options.folder, [0], quick=True)
    elif options.parts:
        for part in options.parts:
            make(part, options.folder, options.seeds)
    else:
        sys.exit(side_by_side(options.folder, options.seeds))
