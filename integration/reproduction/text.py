"""Tables as they are published: with the machine and the versions that made them."""

from __future__ import annotations

from integration.benchmarks.harness import Table, environment


def published(*tables: Table) -> str:
    """Tables, and below them the facts of the run."""
    facts = ", ".join(f"{name} {value}" for name, value in environment().items())
    return "\n\n".join([*map(str, tables), facts]) + "\n"
