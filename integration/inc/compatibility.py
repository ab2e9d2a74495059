"""The tests of ``vq_plugin.inc`` with several releases of the host, each in its own environment.

    python -m integration.inc.compatibility [--versions 3.9 3.10] [--folder DIR] [--output FILE]

The environments stay in DIR (1.3 GB each) and are brought up to date by the next run. They hold
what ``constraints.txt`` says, but for the host: all of these releases work with the same torch, and
the tests need nothing that the releases do not ask for. pip decides where torch comes from: on a
machine without a GPU, PIP_FIND_LINKS or PIP_INDEX_URL should lead it to a CPU build, or else it
takes gigabytes of CUDA libraries for every environment.

The exit code is 1 if a test fails with any release, or none passes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

from integration.benchmarks.harness import Check, Report, Table
from integration.inc.junit import Outcome, read_outcomes

ROOT = Path(__file__).resolve().parents[2]
HOST = "neural-compressor-pt"
# The last bug fix of every minor release that the extra allows.
VERSIONS = ("3.7.1", "3.8.1", "3.9", "3.10")
# The second: its examples.
TESTS = ("tests/inc", "vq_plugin/inc")
# What they need besides the package and the host; no benchmarks, trackers or linters.
TOOLS = ("pytest", "hypothesis")
# Only for the file: what a difference between releases may come from.
PACKAGES = ("numpy", "pydantic", "torchao", "neural_compressor_pt", "pytest")
# Failing tests named in the table; the file has all of them.
NAMED = 3


class FailedError(Exception):
    """A command did not do its work; the text has its exit code and the last line it printed."""


def execute(*command: str | Path) -> str:
    """Runs a command in the root of the project; shows what it printed only if it fails.

    Args:
        command: Program and arguments.

    Returns:
        What it printed to its standard output.

    Raises:
        FailedError: If its exit code is not 0, or there is no such program.
    """
    # Whatever is put in front of the environment would be tested in its place.
    own = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=own, capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise FailedError(str(error)) from error
    if done.returncode:
        printed = (done.stdout + done.stderr).strip()
        print(printed, file=sys.stderr)
        last = printed.rpartition("\n")[2]
        raise FailedError(shorten(f"exit code {done.returncode}: {last}", 120))
    return done.stdout


def build(folder: Path, version: str) -> Path:
    """An environment with this project and one release of the host; its Python.

    Building again what is there takes seconds, heals what was interrupted, and follows the project.

    Args:
        folder: Where it is, or will be.
        version: Release of the host.

    Raises:
        FailedError: If pip cannot install it.
    """
    venv.create(folder, symlinks=os.name != "nt", with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    kept = [line for line in lines if line.partition("==")[0] != HOST]
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join(kept) + "\n")
    # Editable: what is tested is the checkout, however old the environment.
    packages = ("--editable", f"{ROOT}[inc]", f"{HOST}=={version}", *TOOLS)
    execute(python, "-m", "pip", "install", "--quiet", "--constraint", constraints, *packages)
    return python


def run_tests(python: Path, xml: Path, tests: Sequence[str]) -> dict[str, Outcome]:
    """Runs the tests in an environment.

    Args:
        python: Its Python.
        xml: Where pytest writes what came out.
        tests: Which tests.

    Returns:
        Every test. A run that did not come to its end counts as one that failed.
    """
    xml.unlink(missing_ok=True)
    options = ("-q", "-p", "no:cacheprovider", f"--junitxml={xml}")
    try:
        execute(python, "-m", "pytest", *tests, *options)
    except FailedError as error:
        # Exit code 1 has a file with tests that failed.
        if not xml.exists():
            return {"pytest": Outcome("errors", str(error))}
    return read_outcomes(xml)


def versions(python: Path) -> dict[str, str]:
    """Versions in an environment, of Python and of packages."""
    code = (
        "import json, platform, sys; from importlib import metadata;"
        "found = {d.name.lower(): d.version for d in metadata.distributions()};"
        "print(json.dumps({'python': platform.python_version()}"
        " | {name: found[name] for name in sys.argv[1:] if name in found}))"
    )
    found: dict[str, str] = json.loads(execute(python, "-c", code, "torch", *PACKAGES))
    return found


@dataclass(frozen=True)
class Releases:
    """What is tried, release by release.

    Attributes:
        name: Of what has releases, in tables and checks.
        title: Of the table.
        report: Name of the report, and of the folder of the environments, in ``runs``.
        versions: All of them.
        build: Makes the environment of one, see :func:`build`.
        tests: Which tests run in it.
        keep: Whether it stays, for the next run.
    """

    name: str
    title: str
    report: str
    versions: Sequence[str]
    build: Callable[[Path, str], Path]
    tests: Sequence[str]
    keep: bool = True


def try_version(
    folder: Path, version: str, releases: Releases
) -> tuple[dict[str, Any], dict[str, Outcome]]:
    """Builds the environment of one release and runs the tests in it.

    Args:
        folder: Of the environment.
        version: The release.
        releases: What is tried.

    Returns:
        Its row of the table, and its tests; without an environment, one test that failed.
    """
    start = time.perf_counter()
    row: dict[str, Any] = {releases.name: version}
    try:
        python = releases.build(folder, version)
        row |= versions(python)
    except FailedError as error:
        tests = {"installation": Outcome("errors", str(error))}
    else:
        row["build s"] = time.perf_counter() - start
        start = time.perf_counter()
        tests = run_tests(python, folder / "junit.xml", releases.tests)
        row["tests s"] = time.perf_counter() - start
    counts = Counter(outcome.kind for outcome in tests.values())
    row |= {kind: counts[kind] for kind in ("passed", "skipped")}
    failed = [name for name, outcome in tests.items() if outcome.kind in ("failed", "errors")]
    row["failed"] = len(failed)
    row["first failures"] = ", ".join(name.rpartition("::")[2] for name in failed[:NAMED])
    return row, tests


def compare(folder: Path, chosen: Sequence[str], releases: Releases, report: Report) -> None:
    """Tries one release after the other; the report gets the tables and the checks.

    Args:
        folder: Of the environments.
        chosen: The releases.
        releases: What is tried.
        report: What is to be filled.
    """
    name = releases.name
    formats = {
        **dict.fromkeys(dict.fromkeys((name, "python", "torch")), ""),
        **dict.fromkeys(("passed", "failed", "skipped"), "d"),
        **{"build s": ".0f", "tests s": ".0f", "first failures": ""},
    }
    table = Table(releases.title, formats)
    others = Table("Not passed", dict.fromkeys((name, "test", "kind", "reason"), ""))
    for number, version in enumerate(chosen, 1):
        place = folder / version.replace(":", "-")
        row, tests = try_version(place, version, releases)
        if not releases.keep:
            shutil.rmtree(place, ignore_errors=True)
        table.rows.append(row)
        for test, outcome in tests.items():
            if outcome.kind != "passed":
                others.rows.append({name: version, "test": test, **vars(outcome)})
        report.checks += [
            Check(f"{name} {version}: tests that fail", row["failed"], 0),
            Check(f"{name} {version}: tests that pass", row["passed"], 1, at_least=True),
        ]
        # At once: the next takes minutes, and may not come to its end.
        counts = f"{row['passed']} passed, {row['failed']} failed {row['first failures']}"
        print(f"{number}/{len(chosen)} {name} {version}: {counts}", file=sys.stderr, flush=True)
    report.add(table)
    if others.rows:
        report.add(others)


def main() -> None:
    title = "Releases of Intel Neural Compressor"
    run(__doc__, Releases("INC", title, "compatibility", VERSIONS, build, TESTS))


def run(description: str | None, releases: Releases) -> None:
    """The command line of a comparison of releases."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--versions",
        nargs="+",
        default=releases.versions,
        help="releases (%(default)s)",
        metavar="VERSION",
    )
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("runs") / releases.report,
        help="where the environments are (%(default)s)",
    )
    parser.add_argument(
        "--output", type=Path, help=f"JSON file (runs/benchmarks/{releases.report}.json)"
    )
    options = parser.parse_args()
    report = Report(releases.report, {"quick": False, "versions": list(options.versions)})
    compare(options.folder.resolve(), options.versions, releases, report)
    report.finish(options.output)
    sys.exit(not all(check.holds for check in report.checks))


if __name__ == "__main__":
    main()
