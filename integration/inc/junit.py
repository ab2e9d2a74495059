"""How the tests of a run of pytest ended, from the XML file that it writes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from xml.etree import ElementTree

# The worst last: it counts where a test has two, its own and that of its teardown.
OUTCOMES = ("passed", "skipped", "failed", "errors")
_TAGS = {"skipped": "skipped", "failure": "failed", "error": "errors"}


@dataclass(frozen=True)
class Outcome:
    """How a test ended.

    Attributes:
        kind: One of ``OUTCOMES``.
        reason: First line of what the test says if it did not pass.
    """

    kind: str
    reason: str = ""


def read_outcomes(xml: Path) -> dict[str, Outcome]:
    """Every test of a run, by the names of its file and its own."""
    outcomes: dict[str, Outcome] = {}
    for case in ElementTree.parse(xml).iter("testcase"):
        test = "::".join(filter(None, (case.get("classname"), case.get("name"))))
        ends = [
            Outcome(_TAGS[child.tag], _first_line(child)) for child in case if child.tag in _TAGS
        ] or [Outcome("passed")]
        if test in outcomes:
            ends.append(outcomes[test])
        outcomes[test] = max(ends, key=lambda end: OUTCOMES.index(end.kind))
    return outcomes


def _first_line(problem: ElementTree.Element) -> str:
    message = problem.get("message", "")
    if message == "collection failure":
        # The exception comes last, after the traceback.
        lines = [line for line in (problem.text or "").splitlines() if line.startswith("E  ")]
        message = lines[-1][1:] if lines else message
    first = message.removeprefix("failed on setup with ").strip('" \n').partition("\n")[0]
    # Addresses that the tests could not reach are nobody's business.
    return shorten(re.sub(r"https?://[\w./-]+", "[address]", first), 120)
