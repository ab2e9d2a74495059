"""Every evaluation on disk as it ends, so that a killed run goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock
import torch

from vq_plugin.atomic import naming
from vq_plugin.tuning.metric import Metric

_NAME, _LOCK, _FILES = "journal.jsonl", "journal.lock", "journal.files"
_FORMAT = 1


@dataclass(frozen=True)
class Evaluation:
    """What a call of the user's function came to: a metric, or the error of one that failed."""

    metric: Metric | None
    seconds: float
    error: str | None = None


class Journal:
    """The evaluations of one run, in a folder that no other run may use meanwhile.

    A context manager. Every line of the file is one evaluation as JSON; one that a kill cut short
    is dropped. :meth:`finish` removes the files. A key names the weights of the model and the
    function, so that what another model left is of no use and does no harm. It cannot see that the
    function's data or code have changed since the run was interrupted: delete the file then.
    ``files`` is a folder for what is too large for a line, ``None`` without a folder; ``found`` are
    the keys of an interrupted run, ``resumed`` counts those that were of use; ``spent`` is the
    seconds of new evaluations.
    """

    def __init__(self, folder: Path | None) -> None:
        """Opens nothing yet; the folder is made if it is missing, ``None`` keeps all in memory."""
        self.spent = 0.0
        self.files = None if folder is None else folder / _FILES
        self._folder = folder
        self._known: dict[str, Evaluation] = {}
        self.found: set[str] = set()
        self._used: set[str] = set()

    @property
    def resumed(self) -> int:  # noqa: D102 - see the class
        return len(self._used)

    def __enter__(self) -> Self:
        """Takes the folder and reads what is there; ValueError if it is in use or damaged."""
        if self._folder is None:
            return self
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(self._folder / _LOCK)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise ValueError(
                f"another run is using {self._folder}: wait for it, or choose another folder"
            ) from None
        try:
            self._known = _read(self._folder / _NAME)
        except BaseException:
            self._lock.release()
            raise
        self.found = set(self._known)
        if not self.found:
            self._remove_files()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Gives the folder back; what a signal or the disk ended says how it goes on."""
        if self._folder is not None:
            ended = isinstance(error, OSError) or not isinstance(error, Exception)
            if error is not None and ended and self._known:
                error.add_note(
                    f"{len(self._known)} evaluations are in {self._folder}: to go on from there, "
                    "start the same again"
                )
            (self._folder / _LOCK).unlink(missing_ok=True)
            self._lock.release()

    def get(self, key: str) -> Evaluation | None:
        """The evaluation of that name, if there is one."""
        if key in self.found:
            self._used.add(key)
        return self._known.get(key)

    def add(self, key: str, evaluation: Evaluation) -> None:
        """Keeps an evaluation; it is on the disk when this returns."""
        if self._folder is not None:
            record = {"format": _FORMAT, "key": key, **_as_json(evaluation)}
            path = self._folder / _NAME
            with naming(path), path.open("ab") as file:
                file.write(json.dumps(record).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        self._known[key] = evaluation
        self.spent += evaluation.seconds

    def finish(self) -> None:
        """Removes the files: its run has left its results."""
        if self._folder is not None:
            (self._folder / _NAME).unlink(missing_ok=True)
        self._remove_files()

    def _remove_files(self) -> None:
        if self.files is not None and self.files.exists():
            shutil.rmtree(self.files)


def _read(path: Path) -> dict[str, Evaluation]:
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
        os.truncate(path, sum(map(len, lines[:-1])))
        del lines[-1]
    try:
        records = list(map(json.loads, lines))
        return {r["key"]: _from_json(r) for r in records if r["format"] == _FORMAT}
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): delete it to start again") from None


def _as_json(evaluation: Evaluation) -> dict[str, Any]:
    metric = evaluation.metric
    samples = None if metric is None or metric.samples is None else metric.samples.tolist()
    return {
        "mean": None if metric is None else metric.mean,
        # Mostly right or wrong: a digit each then.
        "samples": samples and [int(x) if x in (0.0, 1.0) else x for x in samples],
        "seconds": evaluation.seconds,
        "error": evaluation.error,
    }


def _from_json(record: Mapping[str, Any]) -> Evaluation:
    mean, samples = record["mean"], record["samples"]
    if samples is not None:
        samples = torch.tensor(samples, dtype=torch.float64, device="cpu")
    metric = None if mean is None else Metric(mean, samples)
    return Evaluation(metric, record["seconds"], record["error"])
