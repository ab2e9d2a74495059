"""Runs the host's own unit tests without the plugin and with it imported first: does any differ?

    python -m integration.inc.host_tests CHECKOUT [--json FILE] [--exclude PATTERN ...]

CHECKOUT is a clone of the host's repository at the version that is installed: the tests are those
of the clone, the host is the installed one. Every test file runs in a process and a folder of its
own, so that none sees what another left. Nothing is downloaded: a test that asks for a model which
is not in the local cache fails both ways, and then says nothing about the plugin.

The exit code is 1 if an outcome differs, or if no test passes both ways.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import metadata
from pathlib import Path
from textwrap import shorten

from integration.benchmarks.harness import Check, Report, Table
from integration.inc.junit import OUTCOMES, Outcome, read_outcomes

FOLDERS = ("common", "torch")
# What a machine with nothing but a CPU cannot run; the host's CI for CPUs leaves out the same.
ELSEWHERE = (
    "*/fp8_quant/*",  # the conftest.py there imports the driver of an HPU; fp8_quant_cpu stays
    "*hpu*",
    "*xpu*",
    "*distributed*",  # wants several devices
)
# Of a test that ran the other way only.
ABSENT = "did not run"
WAYS = ("without", "with")
# Besides torch and python: they decide which tests run.
PACKAGES = (
    "neural_compressor_pt", "transformers", "accelerate", "auto-round", "compressed-tensors",
    "datasets", "peft", "pytest"
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Run:
    """One test file, one way.

    Attributes:
        outcomes: How its tests ended, by test.
        seconds: How long its process took.
    """

    outcomes: Mapping[str, Outcome]
    seconds: float


def find_files(tests: Path, only: Sequence[str], exclude: Sequence[str]) -> list[str]:
    """Test files that a CPU can run.

    Args:
        tests: The folder of the tests.
        only: Patterns of paths, one of which has to match; none: every path will do.
        exclude: Patterns of paths to leave out, besides ``ELSEWHERE``.

    Returns:
        Sorted paths, relative to the folder, with forward slashes.
    """
    found = (
        path.relative_to(tests).as_posix()
        for folder in FOLDERS
        for path in (tests / folder).rglob("test_*.py")
    )
    return sorted(
        path
        for path in found
        if _matches(path, only or ["*"]) and not _matches(path, [*ELSEWHERE, *exclude])
    )


def _matches(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


def run_file(tests: Path, file: str, module: str | None, timeout: float) -> Run:
    """Runs one test file in a process of its own, in a copy of the tests.

    Args:
        tests: The folder of the tests.
        file: Path of the file in it.
        module: What to import before anything else.
        timeout: Seconds until the process is killed.

    Returns:
        What came out. A file that did not come to its end counts as one test, with an error.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        copy, xml, log = Path(place, "test"), Path(place, "junit.xml"), Path(place, "log")
        for folder in FOLDERS:
            shutil.copytree(tests / folder, copy / folder)
        command = (
            *_python(module, "import sys, pytest; sys.exit(pytest.main())"),
            *(file, f"--rootdir={copy}", f"--junitxml={xml}", "-p", "no:cacheprovider", "-q"),
        )
        code = _execute(command, copy, log, timeout)
        if code is None:
            outcomes = {file: Outcome("errors", f"timed out after {timeout:g} s")}
        elif xml.exists():
            outcomes = read_outcomes(xml)
        else:
            last = log.read_text(errors="replace").strip().rpartition("\n")[2]
            outcomes = {file: Outcome("errors", shorten(f"exit code {code}: {last}", 120))}
    return Run(outcomes, time.perf_counter() - start)


def _python(module: str | None, code: str) -> tuple[str, ...]:
    return sys.executable, "-c", f"import {module}\n{code}" if module else code


def _execute(command: Sequence[str], folder: Path, log: Path, timeout: float) -> int | None:
    """The exit code, or ``None`` if the time was up."""
    # Goes away with the copy, so that caches of compiled code are as empty the second time.
    temporary = folder.with_name("tmp")
    temporary.mkdir()
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=_environment() | {"TMPDIR": str(temporary)},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # The group: a test may have left processes behind.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _environment() -> dict[str, str]:
    """The same both ways, with as little as possible that lets outcomes vary."""
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [str(ROOT), *(str(Path(path).resolve()) for path in inherited if path)]
    kept = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"}
    return kept | {
        "CUDA_VISIBLE_DEVICES": "",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
        "MKL_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(paths),
        "TRANSFORMERS_OFFLINE": "1",
    }


def by_file(runs: Mapping[str, Sequence[Run]]) -> Table:
    """How many tests of each file ended how, without and with the plugin, and the sums."""
    titles = {kind: (kind, f"{WAYS[1]}: {kind}") for kind in ("seconds", *OUTCOMES)}
    formats = {
        titles[kind][way]: ".0f" if kind == "seconds" else "d"
        for way in range(len(WAYS))
        for kind in (*OUTCOMES, "seconds")
    }
    table = Table("Test files", {"file": "", **formats})
    for file, both in runs.items():
        row: dict[str, object] = {"file": file}
        for way, run in enumerate(both):
            counts = Counter(outcome.kind for outcome in run.outcomes.values())
            row |= {titles[kind][way]: counts[kind] for kind in OUTCOMES}
            row[titles["seconds"][way]] = run.seconds
        table.rows.append(row)
    sums = {title: sum(row[title] for row in table.rows) for title in formats}
    table.rows.append({"file": "all", **sums})
    return table


def by_test(runs: Mapping[str, Sequence[Run]]) -> Table:
    """How each test ended, without and with the plugin, and why it did not pass."""
    table = Table("Tests", dict.fromkeys(("test", *WAYS, "reason"), ""))
    for both in runs.values():
        for test in dict.fromkeys(test for run in both for test in run.outcomes):
            ends = [run.outcomes.get(test, Outcome(ABSENT)) for run in both]
            reason = next((end.reason for end in ends if end.reason), "")
            kinds = {way: end.kind for way, end in zip(WAYS, ends, strict=True)}
            table.rows.append({"test": test, **kinds, "reason": reason})
    return table


def why_not(tests: Table) -> Table:
    """What the tests say that do not pass without the plugin, the most frequent first."""
    table = Table("Not passed without the plugin", {"tests": "d", "outcome": "", "reason": ""})
    counts = Counter(
        (row["without"], row["reason"])
        for row in tests.rows
        if row["without"] not in ("passed", ABSENT)
    )
    for (outcome, reason), count in counts.most_common():
        table.rows.append({"tests": count, "outcome": outcome, "reason": reason})
    return table


def versions(checkout: Path) -> dict[str, str]:
    """Versions that the report does not give by itself, and the commit of the clone."""
    found = {"platform": platform.platform(), "tests": "no git clone"}
    if (checkout / ".git").exists():
        describe = ("git", "-C", str(checkout), "describe", "--tags", "--always", "--dirty")
        found["tests"] = subprocess.run(
            describe, capture_output=True, text=True, check=True
        ).stdout.strip()
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="clone of the host's repository")
    parser.add_argument("--json", type=Path, help="file (runs/benchmarks/host_tests.json)")
    parser.add_argument("--module", default="vq_plugin.inc", help="what is imported (%(default)s)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds a file (%(default)g)")
    for name in ("only", "exclude"):
        text = f"{name} these paths below the folder of the tests: 'torch/quantization/*'"
        parser.add_argument(f"--{name}", nargs="+", default=[], metavar="PATTERN", help=text)
    options = parser.parse_args()
    tests = options.checkout.resolve() / "test"
    files = find_files(tests, options.only, options.exclude)
    if not files:
        parser.error(f"{tests} has no such test files: is it a clone of the host's repository?")
    tried = subprocess.run(_python(options.module, ""), env=_environment(), check=False)
    if tried.returncode:
        parser.error(f"{options.module} cannot be imported")

    settings = {
        **{"quick": False, "module": options.module, "timeout": options.timeout},
        **{"only": options.only, "exclude": options.exclude},
    }
    report = Report("host_tests", settings)
    found = versions(options.checkout)
    report.settings["versions"] = found
    runs: dict[str, list[Run]] = {}
    for number, file in enumerate(files, 1):
        modules = (None, options.module)
        runs[file] = [run_file(tests, file, module, options.timeout) for module in modules]
        seconds = sum(run.seconds for run in runs[file])
        print(f"{number}/{len(files)} {file}: {seconds:.0f} s", file=sys.stderr, flush=True)

    every = by_test(runs)
    different = [row for row in every.rows if row["without"] != row["with"]]
    report.add(by_file(runs))
    report.add(why_not(every))
    report.add(Table("Tests with another outcome", every.formats, different))
    report.tables.append(every)  # hundreds of lines: only for the file
    report.note(f"with: {options.module} is imported first")
    report.note(", ".join(f"{name} {version}" for name, version in found.items()))
    both_pass = sum(row["without"] == row["with"] == "passed" for row in every.rows)
    report.checks += [
        Check("tests with another outcome", len(different), 0),
        Check("tests that pass both ways", both_pass, 1, at_least=True),
    ]
    report.finish(options.json)
    sys.exit(not all(check.holds for check in report.checks))


if __name__ == "__main__":
    main()
