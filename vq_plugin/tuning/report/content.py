"""What a report holds: the result of a search as it is, the sizes of its model, the run."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import torch

from vq_plugin.factorize import FactorizedLayer
from vq_plugin.summary import LayerRow, Summary, summary
from vq_plugin.tuning.result import TuneResult

REPORT_VERSION: Final = 3


@dataclass(frozen=True)
class Sizes:
    """Bytes of the whole model, and how many times smaller they got.

    Attributes:
        float_nbytes: The float32 `state_dict`.
        nbytes: The compressed model in a file, without its header: codes, entropy-coded where
            that is smaller, codebooks and everything else; null if the budget was not reached.
        other_nbytes: The part of `nbytes` that belongs to none of the report's `layers`: biases,
            norms, other layers.
        file_nbytes: The compressed file; null if none was written.
        layer_rate: Float32 bytes over compressed bytes of the compressed weights alone, in a file;
            of factors, the bytes of the layer they make.
        file_rate: `float_nbytes` over `file_nbytes`.
    """

    float_nbytes: int
    nbytes: int | None
    other_nbytes: int | None
    file_nbytes: int | None
    layer_rate: float | None
    file_rate: float | None


@dataclass(frozen=True)
class Recipe:
    """The recipe of the run.

    Attributes:
        name: Name of the file.
        text: Its text, unchanged.
    """

    name: str
    text: str


@dataclass(frozen=True)
class Environment:
    """What the search ran on.

    Attributes:
        vq_plugin: Version of vq_plugin.
        torch: Version of PyTorch.
        python: Version of Python.
        machine: Architecture of the processor.
        threads: Threads that PyTorch used.
    """

    vq_plugin: str
    torch: str
    python: str
    machine: str
    threads: int


@dataclass(frozen=True)
class Report:
    """The result of a search for a small model within a loss budget.

    Attributes:
        report_version: Version of these keys. Keys may be added to a version, never removed or
            redefined.
        result: What the search came to. If the budget was not reached, `score`, `loss`, `interval`
            and `rate` are null: nothing there looks like a success.
        chosen_trial: Index of the chosen setting in the result's `trials`, counted from 0 (people
            are shown it from 1); null if the budget was not reached.
        sizes: Bytes of the whole model.
        layers: How the chosen model stores its layers: those of the search, or the two layers that
            one has become, then codebook layers that the search did not touch; empty if the budget
            was not reached.
        recipe: The recipe; null where the search was called from Python.
        environment: What the search ran on.
    """

    report_version: Literal[3]
    result: TuneResult
    chosen_trial: int | None
    sizes: Sizes
    layers: tuple[LayerRow, ...]
    recipe: Recipe | None
    environment: Environment


def build_report(
    result: TuneResult, model_path: Path | None = None, *, recipe: Path | None = None
) -> Report:
    """The facts of a report.

    Args:
        result: The result of the search.
        model_path: The compressed file, or ``None`` if none was written.
        recipe: The recipe of the run; its text goes into the report.

    Returns:
        The report.
    """
    model_sizes = summary(result.model, rest=result.rest)
    layers = tuple(_layers(result, model_sizes)) if result.passed else ()
    if not result.passed:
        # It speaks of the float model then: a loss of 0 would look like a success.
        result = replace(result, score=math.nan, loss=math.nan, interval=None, rate=math.nan)
    return Report(
        report_version=REPORT_VERSION,
        result=result,
        chosen_trial=result.chosen_trial,
        sizes=_sizes(result, model_sizes, layers, model_path),
        layers=layers,
        recipe=None if recipe is None else Recipe(recipe.name, recipe.read_bytes().decode()),
        environment=_environment(),
    )


def _sizes(
    result: TuneResult, sizes: Summary, layers: tuple[LayerRow, ...], model_path: Path | None
) -> Sizes:
    nbytes = sizes.model_file_nbytes if result.passed else None
    inside = sum(layer.file_nbytes for layer in layers)
    return Sizes(
        float_nbytes=sizes.model_float_nbytes,
        nbytes=nbytes,
        # A weight left in float under two names counts twice in the layers, once in the model.
        other_nbytes=None if nbytes is None else max(nbytes - inside, 0),
        file_nbytes=None if model_path is None else model_path.stat().st_size,
        layer_rate=sizes.file_layer_rate if result.passed else None,
        file_rate=None if model_path is None else sizes.file_rate(model_path),
    )


def _layers(result: TuneResult, sizes: Summary) -> Iterator[LayerRow]:
    rows = {row.name: row for row in sizes.rows}
    products = {
        name: module
        for name, module in result.model.named_modules(remove_duplicate=False)
        if isinstance(module, FactorizedLayer)
    }
    for ladder in result.layers:
        if ladder.name in products:
            prefix = f"{ladder.name}." if ladder.name else ""
            parts = [f"{prefix}{part}" for part in products[ladder.name].parts]
            yield from (rows.pop(part) for part in parts if part in rows)
            continue
        row = rows.pop(ladder.name, None)
        if row is None:
            # Left in float.
            stored = (c.nbytes for c in ladder.candidates if c.scheme is None)
            nbytes = next(stored, ladder.float_nbytes)
            row = LayerRow(
                name=ladder.name,
                kind=type(result.model.get_submodule(ladder.name)).__name__,
                shape=ladder.shape,
                scheme="float",
                bits_per_weight=8 * nbytes / math.prod(ladder.shape),
                nbytes=nbytes,
                file_nbytes=nbytes,
                float_nbytes=ladder.float_nbytes,
                note="",
            )
        yield row
    yield from rows.values()


def _environment() -> Environment:
    from vq_plugin import __version__

    return Environment(
        vq_plugin=__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        machine=platform.machine(),
        threads=torch.get_num_threads(),
    )
