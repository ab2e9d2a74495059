"""``vq-plugin layers``: what of a model can be coded, and by which host."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from vq_plugin.commands.command import WITHIN_BUDGET, add_command, add_json, as_json
from vq_plugin.console import say
from vq_plugin.table import format_bytes, format_table

if TYPE_CHECKING:
    from torch import nn

# Those that take every slot.
_ALWAYS = ("compress", "tune", "INC", "torchao quantize_")


def add_layers(commands: Any) -> None:
    """Adds ``layers`` to a parser's sub-commands."""
    parser = add_command(
        commands,
        "layers",
        _layers,
        summary="show what of a model can be coded, and by which host",
        description="Shows the weights of a model by the names that --layer, recipes and mappings "
        "of schemes take, with shapes and bytes, and what can code them.",
        example="vq-plugin layers my_package:model",
        reads="model",
    )
    parser.add_argument(
        "model", metavar="MODULE:FUNCTION", help="function that returns the trained float model"
    )
    add_json(parser)


def _layers(options: argparse.Namespace) -> int:
    from vq_plugin.recipe.references import call
    from vq_plugin.select import check_model
    from vq_plugin.sizes import stored_nbytes

    model: Any = call(options.model)
    check_model(model)
    rows = _rows(model)
    if options.json:
        say(as_json(rows))
        return WITHIN_BUDGET
    total = stored_nbytes(model.state_dict().values())
    table = [
        [
            row["name"] or "(model)",
            row["kind"],
            "x".join(map(str, row["shape"])),
            format_bytes(row["nbytes"]),
            f"{100 * row['nbytes'] / max(total, 1):.1f} %",
            f"tied to {row['tied_to']}" if row["tied_to"] else _coded_by(row),
        ]
        for row in rows
    ]
    rest = total - sum(row["nbytes"] for row in rows)
    say(format_table(["layer", "kind", "shape", "bytes", "share", "coded by"], table, right=(3, 4)))
    say(f"{len(rows)} weights; everything else: {format_bytes(rest)}")
    return WITHIN_BUDGET


def _rows(model: nn.Module) -> list[dict[str, Any]]:
    """A row for each weight that can be coded, also for one that has to be named for that."""
    from torch import nn
    from torch.nn.utils.parametrize import type_before_parametrizations

    from vq_plugin.nn import find_slots
    from vq_plugin.ties import sharing

    slots, rows = find_slots(model), []
    for name, owners in sharing(model).items():
        slot = next(each for each in owners if each.name == name)
        kind, first = type_before_parametrizations(slot.module), owners[0].name
        hosts = list(_ALWAYS)
        if slot.kind.layer is not None or isinstance(slot.host, nn.MultiheadAttention):
            hosts.append("PT2E")
        if slot.kind.layer is not None and slot.kind.layer.float_type is kind:
            hosts.append("torch.ao")
        rows.append(
            {
                "name": name,
                "kind": kind.__name__,
                "shape": list(slot.value.shape),
                "nbytes": slot.value.nbytes if name == first else 0,
                "by_name_only": name not in slots,
                "hosts": hosts,
                "tied_to": None if name == first else first,
            }
        )
    return rows


def _coded_by(row: dict[str, Any]) -> str:
    alone = "; by its name alone" if row["by_name_only"] else ""
    return f"{', '.join(row['hosts'])}{alone}"
