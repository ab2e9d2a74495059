"""Error against rate, as Gong et al.'s figures 1 to 4 have it, in one picture."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from integration.benchmarks.pictures import svg
from integration.reproduction.journal import Row

# To be told apart on light and dark ground.
_SERIES = (
    ("SVD", "#7d8590", "v"),
    ("binary", "#c9921b", "*"),
    ("KM", "#a06bd6", "^"),
    ("PQ, x axis", "#e0701a", "s"),
    ("PQ, y axis", "#17a2a2", "D"),
    ("RQ", "#b04a4a", "P"),
    ("SVD, coded", "#2f7de1", "o"),
)
_TICKS = (2, 4, 8, 16, 32, 64, 128, 256)
# Of one center for all weights there are no codes, and nothing is left.
_MOST = 1000


def curves(rows: Sequence[Row]) -> str:
    """SVG of points lost and of retrieval against the rate, plain fits left, calibrated right."""
    return svg(lambda: _drawn(rows))


def _drawn(rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(9, 7), layout="constrained")
    panels = [(value, fit) for value in ("lost@1", "mAP lost") for fit in ("plain", "calibrated")]
    words = {"lost@1": "points of accuracy lost", "mAP lost": "points of mAP lost"}
    for place, (value, fit) in enumerate(panels, start=1):
        axes = figure.add_subplot(2, 2, place)
        for method, colour, marker in _SERIES:
            points = sorted(
                (row["rate"], max(row[value], 0.0))
                for row in rows
                if row["method"] == method and row["fit"] == fit and row["rate"] < _MOST
            )
            best = _best(points)
            for some, line, alpha, label in ((points, "", 0.45, None), (best, "-", 1, method)):
                axes.plot(
                    [rate for rate, _ in some], [lost for _, lost in some], line + marker,
                    color=colour, ms=5, alpha=alpha, label=label,
                )  # fmt: skip
        axes.set_title(f"{fit} fits", loc="left")
        axes.set_xscale("log")
        axes.set_xticks(_TICKS)
        axes.set_yscale("symlog", linthresh=1, linscale=1.2)
        axes.set_ylim(-0.06, 100)
        axes.set_yticks([0, 0.5, 1, 3, 10, 30, 100])
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
            axis.set_minor_formatter(NullFormatter())
        if place > 2:
            axes.set_xlabel("times smaller")
        if fit == "plain":
            axes.set_ylabel(words[value])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def _best(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that lose less than all that are smaller."""
    return [
        one for one in points if all(one[1] < other[1] for other in points if other[0] > one[0])
    ]
