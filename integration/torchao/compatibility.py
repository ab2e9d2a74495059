"""The tests of hosts, layers and operators with several releases of torch, each by itself.

    python -m integration.torchao.compatibility [--versions 2.13.0 2.15.0] [--folder DIR]

Every environment gets a release of torch and the newest torchao that pip finds for it. They stay in
DIR and are brought up to date by the next run. pip decides where torch comes from: a build for CUDA
runs on a CPU too, and takes 8 GB of disk; PIP_FIND_LINKS or PIP_INDEX_URL can lead it to a CPU
build.

The exit code is 1 if a test fails with any release, or none passes.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import venv
from collections import Counter
from pathlib import Path
from typing import Any

from integration.benchmarks.harness import Check, Report, Table
from integration.inc.compatibility import ROOT, TOOLS, FailedError, execute, run_tests, versions
from integration.inc.junit import Outcome

VERSIONS = ("2.10.0", "2.11.0", "2.12.0", "2.13.0", "2.14.0", "2.15.0")
TESTS = (
    "tests/torchao", "tests/torch_ao", "tests/hosting", "tests/nn", "tests/ops",
    "vq_plugin/torchao", "vq_plugin/torch_ao",
)  # fmt: skip
_NAMED = 3


def build(folder: Path, torch: str) -> Path:
    """An environment with this project and one release of torch; its Python.

    Raises:
        FailedError: If pip cannot install it.
    """
    venv.create(folder, symlinks=os.name != "nt", with_pip=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    # AOTInductor builds with setuptools.
    packages = ("--editable", f"{ROOT}[torchao]", f"torch=={torch}", "setuptools", *TOOLS)
    execute(python, "-m", "pip", "install", "--quiet", *packages)
    return python


def try_version(folder: Path, torch: str) -> tuple[dict[str, Any], dict[str, Outcome]]:
    """The row of one release, and its tests; without an environment, one test that failed."""
    row: dict[str, Any] = {"torch": torch}
    start = time.perf_counter()
    try:
        python = build(folder, torch)
        row |= versions(python)
    except FailedError as error:
        tests = {"installation": Outcome("errors", str(error))}
    else:
        row["build s"] = time.perf_counter() - start
        tests = run_tests(python, folder / "junit.xml", TESTS)
    counts = Counter(outcome.kind for outcome in tests.values())
    failed = [name for name, outcome in tests.items() if outcome.kind in ("failed", "errors")]
    row |= {kind: counts[kind] for kind in ("passed", "skipped")}
    row |= {"failed": len(failed)}
    row["first failures"] = ", ".join(name.rpartition("::")[2] for name in failed[:_NAMED])
    return row, tests


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--versions", nargs="+", default=VERSIONS, metavar="VERSION")
    parser.add_argument("--folder", type=Path, default=Path("runs/torch_releases"))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report = Report("torch_releases", {"quick": False, "versions": list(options.versions)})
    formats = {
        **dict.fromkeys(("torch", "torchao", "python"), ""),
        **dict.fromkeys(("passed", "failed", "skipped"), "d"),
        **{"build s": ".0f", "first failures": ""},
    }
    table = Table("Releases of torch", formats)
    others = Table("Failed", dict.fromkeys(("torch", "test", "reason"), ""))
    for version in options.versions:
        row, tests = try_version(options.folder.resolve() / version, version)
        table.rows.append(row)
        for test, outcome in tests.items():
            if outcome.kind in ("failed", "errors"):
                others.rows.append({"torch": version, "test": test, "reason": outcome.reason})
        report.checks += [
            Check(f"torch {version}: tests that fail", row["failed"], 0),
            Check(f"torch {version}: tests that pass", row["passed"], 1, at_least=True),
        ]
        print(f"torch {version} done", file=sys.stderr, flush=True)
    report.add(table)
    if others.rows:
        report.add(others)
    report.finish(options.output)
    sys.exit(not all(check.holds for check in report.checks))


if __name__ == "__main__":
    main()
