"""Tables as they are published: with the machine and the versions that made them."""

from __future__ import annotations

from integration.benchmarks.harness import Table, environment
from integration.reproduction.journal import Journal


def published(journal: Journal, *tables: Table) -> str:
    """Tables, and below them the facts of the run."""
    facts = ", ".join(f"{name} {value}" for name, value in environment().items())
    cost = f"{journal.minutes:.1f} minutes of processor time"
    return "\n\n".join([*map(str, tables), f"{facts}, {cost}"]) + "\n"
