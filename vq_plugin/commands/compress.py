"""``vq-plugin compress``: a model with given schemes."""

from __future__ import annotations

import argparse
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vq_plugin.commands.command import WITHIN_BUDGET, add_command, add_json, as_json
from vq_plugin.console import say

_log = logging.getLogger(__name__)


def add_compress(commands: Any) -> None:
    """Adds ``compress`` to a parser's sub-commands."""
    parser = add_command(
        commands,
        "compress",
        _compress,
        summary="compress a model with given schemes",
        example="vq-plugin compress my_package:model --scheme 'pq(k=16,dim=4)' --output model.vq",
        reads="model",
    )
    parser.add_argument(
        "model", metavar="MODULE:FUNCTION", help="function that returns the trained float model"
    )
    parser.add_argument(
        "--scheme",
        help="scheme for all layers, such as 'pq(k=16,dim=4)', or a preset: 'auto', 'small'",
    )
    parser.add_argument(
        "--layer",
        nargs=2,
        action="append",
        default=[],
        metavar=("PATTERN", "SCHEME"),
        help="scheme or preset for a layer's name or 're:…'; 'none' leaves it; may be repeated",
    )
    parser.add_argument(
        "--calibration", metavar="MODULE:FUNCTION", help="function that returns input batches"
    )
    parser.add_argument(
        "--evaluate", metavar="MODULE:FUNCTION", help="metric, printed before and after"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the fits (default 0)")
    parser.add_argument(
        "--rest",
        choices=["float16", "int8"],
        help="round biases, norms and layers left as they are in the file",
    )
    parser.add_argument(
        "--fold", action="store_true", help="fold batch norms into the layers before them first"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="compressed file")
    add_json(parser)


def _compress(options: argparse.Namespace) -> int:
    from torch import nn

    from vq_plugin.atomic import check_target
    from vq_plugin.checkpoint import save
    from vq_plugin.compress import compress
    from vq_plugin.nn import coded_weights
    from vq_plugin.recipe.references import batches, call
    from vq_plugin.select import Choice, as_choices, check_model
    from vq_plugin.summary import summary

    schemes: dict[str | type[nn.Module], Choice | None] = {}
    everywhere = [] if options.scheme is None else [("*", options.scheme)]
    for pattern, text in [*options.layer, *everywhere]:
        if pattern in schemes:
            raise ValueError(f"--layer {pattern!r} is given twice; --scheme is that of '*'")
        schemes[pattern] = None if text.lower() == "none" else text
    if not schemes:
        raise ValueError("nothing to do: give --scheme or --layer")
    if not any(as_choices(schemes).values()):
        raise ValueError("nothing to do: all that is named is left; give a layer a scheme")
    check_target(Path(options.output))
    model = call(options.model)
    check_model(model)
    calibration: Any = None if options.calibration is None else batches(options.calibration)
    metric = None
    if options.evaluate is not None:
        _log.info("evaluate the float model")
        metric = {"float": _metric(options.evaluate, model)}
    _log.info("compress")
    small = compress(model, schemes, calibration, options.seed, fold=options.fold)
    if not coded_weights(small):
        raise ValueError("nothing to write: every layer is left; give one a scheme")
    save(small, options.output, rest=options.rest)
    sizes = summary(small, rest=options.rest)
    rate = sizes.file_rate(options.output)
    if metric is not None:
        _log.info("evaluate the compressed model")
        metric["compressed"] = _metric(options.evaluate, small)
    if options.json:
        facts: dict[str, object] = {
            "file": options.output,
            "file_nbytes": Path(options.output).stat().st_size,
            "file_rate": rate,
            "layers": list(map(asdict, sizes.rows)),
            "other_nbytes": sizes.other_nbytes,
            "left_float": list(map(asdict, sizes.left)),
        }
        if metric is not None:
            facts["metric"] = metric
        say(as_json(facts))
        return WITHIN_BUDGET
    say(str(sizes))
    say(f"file: {options.output} (file rate {rate:.1f}x)")
    if metric is not None:
        say(f"metric: {metric['float']:.4f} -> {metric['compressed']:.4f}")
    return WITHIN_BUDGET


def _metric(reference: str, model: Any) -> float:
    """What a user's function says of a model; ValueError for what is no metric."""
    from vq_plugin.recipe.references import call
    from vq_plugin.tuning.metric import read_metric

    return read_metric(call(reference, model), repr(reference)).mean
