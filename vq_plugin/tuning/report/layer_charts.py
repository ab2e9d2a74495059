"""Small charts, one a layer: how much harm each of its candidates does."""

from __future__ import annotations

from dataclasses import dataclass

from vq_plugin.tuning.report import wording
from vq_plugin.tuning.report.plot import Mark, Panel, Plot
from vq_plugin.tuning.report.scales import Axis, decade_label, power_axis, power_ticks
from vq_plugin.tuning.report.schema import Candidate, Layer, Report

_HEIGHT = 130.0
_MOST_PANELS = 24


@dataclass(frozen=True)
class Sensitivity:
    """The charts of the layers.

    Attributes:
        panels: The largest layers, in the order of their bytes.
        hidden: Number of layers that are not shown.
    """

    panels: list[Panel]
    hidden: int


def sensitivity_charts(report: Report) -> Sensitivity:
    """Harm against bits per weight, both on the same axes for all layers."""
    layers = sorted(
        (layer for layer in report.layers if layer.candidates),
        key=lambda layer: -layer.float_nbytes,
    )
    shown = layers[:_MOST_PANELS]
    drawn = [candidate for layer in shown for candidate, _ in _drawn(layer)]
    if not drawn:
        return Sensitivity([], 0)
    x = power_axis([candidate.bits_per_weight for candidate in drawn], 2, 0, 100)
    y = power_axis([harm for layer in shown for _, harm in _drawn(layer)], 10, _HEIGHT, 0)
    panels = [
        Panel(wording.layer_text(layer.name), _caption(layer), _plot(layer, x, y))
        for layer in shown
    ]
    return Sensitivity(panels, len(layers) - len(shown))


def _drawn(layer: Layer) -> list[tuple[Candidate, float]]:
    """The candidates that a logarithmic axis can show: not the float weight, it does no harm."""
    return [(c, c.harm) for c in layer.candidates if c.harm and c.harm > 0 and c.nbytes]


def _plot(layer: Layer, x: Axis, y: Axis) -> Plot | None:
    points = _drawn(layer)
    if not points:
        return None
    return Plot(
        label=f"Harm of {len(points)} candidates of {wording.layer_text(layer.name)}",
        top=0,
        bottom=_HEIGHT,
        x_ticks=power_ticks(x, 2, 5, lambda bits: f"{bits:g}"),
        y_ticks=power_ticks(y, 10, 4, decade_label),
        marks=[
            Mark(
                x=x.at(candidate.bits_per_weight),
                y=y.at(harm),
                kind="candidate",
                title=_title(candidate),
                chosen=layer.chosen is not None and candidate.scheme == layer.chosen.scheme,
            )
            for candidate, harm in points
        ],
        line=[(x.at(candidate.bits_per_weight), y.at(harm)) for candidate, harm in points],
    )


def _title(candidate: Candidate) -> str:
    bits, harm = candidate.bits_per_weight, wording.harm_text(candidate.harm)
    return f"{wording.scheme_text(candidate.scheme)}\n{bits:.2f} bits per weight, harm {harm}"


def _caption(layer: Layer) -> str:
    if layer.chosen is None:
        return f"{len(layer.candidates)} candidates"
    if layer.chosen.scheme is None:
        return "left in float"
    return f"{layer.chosen.scheme}, {layer.chosen.bits_per_weight:.2f} bits"
