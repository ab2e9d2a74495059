"""What every benchmark shares: interleaved timing, facts about the machine, tables and JSON."""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata, util
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.codebook import CodebookWeight
from vq_plugin.nn import CodebookLayer, find_slots
from vq_plugin.replace import holder_of
from vq_plugin.table import format_table

R = TypeVar("R")

PACKAGES = (
    "vq-plugin", "torch", "numpy", "scikit-learn", "faiss-cpu", "kmeans1d", "coremltools",
    "torchao", "onnx", "onnxruntime", "executorch", "nncodec",
)  # fmt: skip
# What keeps torch, by one of its libraries each, from instructions that the processor has.
_CONFINING = ("ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")


@dataclass
class Timed(Generic[R]):
    """What a contender returned last and how long each of its calls took, in seconds."""

    result: R
    seconds: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def race(
    contenders: Mapping[str, Callable[[], R]],
    rounds: int,
    once: Collection[str] = (),
    *,
    clock: Callable[[], float] = time.perf_counter,
    untimed: int = 0,
    repeats: int = 1,
) -> dict[str, Timed[R]]:
    """Calls A, B, C, A, B, C, ... so that a slow minute of the machine hits all alike.

    Args:
        contenders: What to call, by name.
        rounds: Times of each.
        once: Contenders too slow for more than the first round.
        clock: In seconds.
        untimed: Calls before each time. Without them the caller warms up (imports, thread pools).
        repeats: Calls of which each time is the mean; the shorter a call, the more it needs.

    Returns:
        Results and times by name, in the order given.
    """
    timed: dict[str, Timed[R]] = {}
    for turn in range(rounds):
        for name, call in contenders.items():
            if turn and name in once:
                continue
            for _ in range(untimed):
                call()
            start = clock()
            for _ in range(repeats):
                result = call()
            seconds = (clock() - start) / repeats
            before = timed[name].seconds if name in timed else []
            timed[name] = Timed(result, [*before, seconds])
    return timed


def race_of_processors(
    contenders: Mapping[str, Callable[[], R]], turns: int, repeats: int = 1
) -> dict[str, Timed[R]]:
    """As :func:`race`, in seconds of the processor, so that other work on the machine counts less.

    Each contender is called once more in every turn, before it is timed.
    """
    return race(contenders, turns, clock=time.process_time, untimed=1, repeats=repeats)


def medians(
    contenders: Mapping[str, Callable[[], object]],
    seconds: float,
    evict: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of short calls: in turns, as many as fit, but 5 turns at least.

    Args:
        contenders: What to call, by name.
        seconds: For all together.
        evict: Called before every timed call, to empty the caches. Without it each turn is two
            untimed calls and three timed ones, as when a model runs again and again.
        clock: In seconds.

    Returns:
        Medians by name.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    untimed, timed, turns = (2, 3, 0) if evict is None else (0, 1, 0)
    started = clock()
    while clock() - started < seconds or turns < 5:
        for name, call in contenders.items():
            for _ in range(untimed):
                call()
            for _ in range(timed):
                if evict is not None:
                    evict()
                start = clock()
                call()
                times[name].append(clock() - start)
        turns += 1
    return {name: statistics.median(found) for name, found in times.items()}


@dataclass
class Table:
    """Rows of values under titled columns.

    Attributes:
        title: Heading.
        formats: Format specification by column; a row may lack a column.
        rows: Values by column.
    """

    title: str
    formats: Mapping[str, str]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __str__(self) -> str:
        def cell(row: Mapping[str, Any], name: str) -> str:
            value = row.get(name)
            return "" if value is None else format(value, self.formats[name])

        cells = [[cell(row, name) for name in self.formats] for row in self.rows]
        right = [i for i, spec in enumerate(self.formats.values()) if spec]
        return f"## {self.title}\n{format_table(list(self.formats), cells, right=right)}"


@dataclass(frozen=True)
class Check:
    """A bound that the project promises, and what was measured."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def holds(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        verdict = "holds " if self.holds else "MISSED"
        return f"{verdict}  {self.name}: {self.value:.4g} {sign} {self.limit:.4g}"


@dataclass
class Report:
    """Everything that one run of a benchmark found."""

    name: str
    settings: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    _printed: list[str] = field(default_factory=list)

    def add(self, table: Table) -> None:
        """Keeps a finished table and prints it at once: the next may take minutes."""
        self.tables.append(table)
        self._print(f"\n{table}")

    def note(self, text: str) -> None:
        self.notes.append(text)
        self._print(f"note: {text}")

    def finish(self, output: Path | None) -> None:
        """Prints the checks and the environment and writes the JSON file."""
        facts = environment()
        tiny = " (of tiny sizes: they mean nothing)" * self.settings["quick"]
        self._print(f"\n## Bounds{tiny}")
        self._print("\n".join(map(str, self.checks)) or "none checked")
        self._print("\n" + ", ".join(f"{key} {value}" for key, value in facts.items()))
        path = output or Path("runs/benchmarks") / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "benchmark": self.name,
            "environment": facts,
            "settings": self.settings,
            "tables": {table.title: table.rows for table in self.tables},
            "checks": [{**vars(check), "holds": check.holds} for check in self.checks],
            "notes": self.notes,
            "printed": "\n".join(self._printed).strip(),
        }
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"written to {path}")

    def _print(self, text: str) -> None:
        self._printed.append(text)
        print(text, flush=True)


def parse_arguments(description: str, add: Callable[[argparse.ArgumentParser], object] | None = None
                    ) -> argparse.Namespace:  # fmt: skip
    """Command line with the options of every benchmark (``--quick``, ``--output``) and more."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--output", type=Path, help="JSON file (runs/benchmarks/<name>.json)")
    if add is not None:
        add(parser)
    return parser.parse_args()


@contextmanager
def quiet() -> Iterator[None]:
    """For hosts that log every step, above INFO too, and print beside it."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def missing_peer(module: str) -> bool:
    """Whether a peer is not installed."""
    return util.find_spec(module) is None


def environment() -> dict[str, Any]:
    """Machine and versions, as they belong beside every number."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "torch threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: version for name in PACKAGES if (version := _version(name))},
        **{name: os.environ[name] for name in _CONFINING if name in os.environ},
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        # A clone that is not installed is still on the path.
        own = sys.modules.get(package.replace("-", "_"))
        return getattr(own, "__version__", None)


def squared_error(weight: torch.Tensor, other: torch.Tensor) -> float:
    """Sum of squared differences, in float64."""
    difference = weight.detach().double() - other.detach().double()
    return float(difference.square().sum())


def normal_weight(*shape: int) -> torch.Tensor:
    """Normal weights of a trained layer's usual size, the same in every run."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 0.02


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch on so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def random_codes(layer: nn.Module, scheme: vq.Scheme) -> CodebookLayer:
    """A codebook layer with random codes and centers: for what does not depend on their values."""
    weight = layer.weight
    assert isinstance(weight, torch.Tensor)
    small = random_weight(tuple(weight.shape), scheme)
    slot = find_slots(layer)[""]
    holder = holder_of(slot, small, slot.view, stays=False)
    assert isinstance(holder, CodebookLayer)
    return holder


def random_weight(
    shape: tuple[int, ...], scheme: vq.Scheme, *, deviation: float = 1.0, seed: int = 0
) -> CodebookWeight:
    """A weight of random codes, and centers that deviate so far from 0."""
    geometry = scheme.geometry(shape)
    # As a fit has it: no more centers than sub-vectors that share them.
    geometry = geometry.with_centers(min(scheme.k, geometry.sub_vectors))
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(geometry.k, geometry.code_shape, generator=generator, dtype=torch.uint8)
    centers = deviation * torch.randn(geometry.codebook_shape, generator=generator)
    return CodebookWeight(
        codes=codes, codebooks=centers.half(), scale=None, scheme=scheme, shape=shape
    )


def powers_of_two(last: int) -> Sequence[int]:
    """2, 4, ..., ``last``."""
    return [1 << bits for bits in range(1, last.bit_length())]
