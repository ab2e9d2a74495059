"""The pictures of docs/benchmarks.md, drawn from what the published runs printed.

The same bytes every time: no dates, fixed identifiers. A picture brings its own ground and follows
the reader's choice of light or dark.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from statistics import mean

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from integration.benchmarks.published import published
from integration.benchmarks.summaries import (
    MACHINES,
    NETWORKS,
    SPEEDS,
    average,
    fits,
    rate_rows,
    speeds,
    whole_files,
)

_GROUND, _INK, _GRID = "#ffffff", "#1a1f24", "#d8dee4"
_DARK = {_GROUND: "#151b23", _INK: "#e6edf3", _GRID: "#3a424c"}
# To be told apart on both grounds.
_OURS, _OURS_TOO, _PEER, _OTHER, _FIFTH, _SIXTH = (
    "#2f7de1", "#17a2a2", "#e0701a", "#a06bd6", "#c9921b", "#7d8590",
)  # fmt: skip
_STYLE = {
    "svg.hashsalt": "vq_plugin",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "figure.facecolor": _GROUND,
    "axes.facecolor": _GROUND,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _INK,
    "axes.titlesize": 11,
    "axes.titlecolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _GRID,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.minor.bottom": False,
    "ytick.minor.left": False,
    "legend.frameon": False,
}


def svg(draw: Callable[[], Figure]) -> str:
    """One picture as the text of an SVG file."""
    file = io.StringIO()
    with mpl.rc_context(_STYLE):
        draw().savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    rules = "".join(
        f'[style*="fill: {light}"]{{fill:{dark}!important}}'
        f'[style*="stroke: {light}"]{{stroke:{dark}!important}}'
        for light, dark in _DARK.items()
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>"
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    return "\n".join(lines).replace(" <defs>", f" {style}\n <defs>", 1) + "\n"


def _rate_against_loss() -> Figure:
    figure = Figure(figsize=(9, 6.6), layout="constrained")
    series = (
        ("vq_plugin", "vq_plugin", False, _OURS, "o"),
        ("vq_plugin, 512 unlabelled images", "vq_plugin", True, _OURS_TOO, "D"),
        ("coremltools", "coremltools", False, _PEER, "s"),
        ("torchao", "torchao", False, _OTHER, "^"),
    )
    for place, (network, name) in enumerate(NETWORKS.items(), start=1):
        axes = figure.add_subplot(2, 2, place)
        for label, by, calibrated, colour, marker in series:
            points = sorted(
                (float(row["layer rate"]), max(float(row["loss (test)"]), 0.0))
                for row in rate_rows(network, by, calibrated)
                if float(row["layer rate"]) > 3
            )
            for some, line, size, alpha, name_of in (
                (points, "", 4, 0.45, None), (_not_beaten(points), "-", 5, 1, label)
            ):  # fmt: skip
                rates, losses = [rate for rate, _ in some], [loss for _, loss in some]
                axes.plot(
                    rates, losses, line + marker, color=colour, ms=size, alpha=alpha, label=name_of
                )
        axes.axhline(1, color=_SIXTH, lw=1, ls="--")
        axes.set_title(name, loc="left")
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=1, linscale=1.2)
        axes.set_ylim(-0.06, 100)
        axes.set_xticks([4, 8, 16, 32, 64])
        axes.set_yticks([0, 0.5, 1, 3, 10, 30, 100])
        _plain_numbers(axes)
        if place > 2:
            axes.set_xlabel("times smaller (compressed layers)")
        if place % 2:
            axes.set_ylabel("points of accuracy lost")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=4)
    return figure


def _speed() -> Figure:
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    colours = dict(zip(SPEEDS, (_OURS, _OURS_TOO, _OTHER, _PEER, _FIFTH, _SIXTH), strict=True))
    batches = (1, 8, 32, 128)
    shared = None
    for place, (machine, name) in enumerate(MACHINES.items(), start=1):
        axes = shared = figure.add_subplot(1, 3, place, sharey=shared)
        for layer, row in speeds(machine).items():
            if layer in SPEEDS:
                values = [float(row[f"batch {batch}"]) for batch in batches]
                dashes = "--" if layer.startswith("torch.ao") else "-"
                label = SPEEDS[layer].replace("`", "")
                axes.plot(batches, values, f"o{dashes}", color=colours[layer], ms=4, label=label)
        axes.axhline(1, color=_INK, lw=1)
        axes.set_title(name, loc="left")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(batches)
        axes.set_yticks([0.5, 1, 2, 4, 8, 16, 32, 64])
        _plain_numbers(axes)
        axes.set_xlabel("batch")
        axes.tick_params(labelleft=place == 1)
    figure.axes[0].set_ylabel("times as fast as nn.Linear float32")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=3)
    return figure


def _calibration() -> Figure:
    figure = Figure(figsize=(9, 4.4), layout="constrained")
    for place, network in enumerate(("fashion_mnist_cnn", "resnet20"), start=1):
        axes = figure.add_subplot(1, 2, place)
        rows = published(f"calibrated_{network}").table("")
        for height, row in enumerate(reversed(rows)):
            plain = float(row["plain"])
            calibrated = mean(map(float, row["calibrated"].split()))
            axes.plot([plain, calibrated], [height] * 2, color=_GRID, lw=3, zorder=1)
            axes.plot(plain, height, "o", color=_PEER, label="plain fit")
            axes.plot(calibrated, height, "D", color=_OURS, label="calibrated")
        names = [f"{float(row['layer rate']):.0f}x  {_short(row['schemes'])}" for row in rows]
        axes.set_yticks(range(len(rows)), names[::-1])
        axes.axvline(1, color=_SIXTH, lw=1, ls="--")
        axes.set_xscale("symlog", linthresh=1, linscale=1.2)
        axes.set_xlim(-0.15, 40)
        axes.set_xticks([0, 0.5, 1, 3, 10, 30])
        _plain_numbers(axes)
        axes.set_title(NETWORKS[network], loc="left")
        axes.set_xlabel("points of accuracy lost")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles[:2], labels[:2], loc="outside upper left", ncols=2)
    return figure


def _whole_files() -> Figure:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.add_subplot()
    colours = {"vq_plugin": _OURS, "Deep Compression": _PEER, "coremltools": _OTHER}
    for group, network in enumerate(NETWORKS):
        for shift, (by, rows) in enumerate(whole_files(network).items()):
            rate, loss = average(rows, "rate"), average(rows, "loss (test)")
            height = -group + 0.27 - 0.27 * shift
            axes.barh(height, rate, 0.25, color=colours[by], label=by if group == 0 else None)
            axes.text(rate + 4, height, f"{rate:.0f}x, {loss:.2f} lost", va="center", size=9)
    axes.set_yticks([-group for group in range(len(NETWORKS))], list(NETWORKS.values()))
    axes.set_xlim(0, 360)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("times smaller (whole file), and points of accuracy lost")
    figure.legend(loc="outside upper left", ncols=3)
    return figure


def _tuning() -> Figure:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    shared = None
    for place, network in enumerate(("fashion_mnist_cnn", "resnet20"), start=1):
        axes = shared = figure.add_subplot(1, 2, place, sharey=shared)
        rows = published(f"tuning_{network}").table(network)[::-1]
        rates = [float(row["file rate"]) for row in rows]
        ours = [row["method"].startswith("vq.tune") for row in rows]
        bars = axes.barh(
            range(len(rows)), rates, color=[_OURS if mine else _SIXTH for mine in ours]
        )
        losses = [f"{row['file rate']}x, {row['loss (test) %']} % lost" for row in rows]
        axes.bar_label(bars, losses, padding=4, size=9, color=_INK)
        axes.set_yticks(range(len(rows)), [row["method"] for row in rows])
        axes.tick_params(labelleft=place == 1)
        axes.set_xlim(0, 1.5 * max(rates))
        axes.grid(visible=False, axis="y")
        axes.set_title(NETWORKS[network], loc="left")
        axes.set_xlabel("times smaller (whole file)")
    return figure


def _fit() -> Figure:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.add_subplot()
    colours = {"vq_plugin": _OURS, "sklearn": _PEER, "coremltools": _OTHER, "faiss": _OURS_TOO}
    groups = {what: [row for row in fits() if row[0] == what] for what, *_ in fits()}
    for group, rows in enumerate(groups.values()):
        for shift, (_, who, seconds, _) in enumerate(rows):
            height = -group + 0.27 - 0.27 * shift
            name = who.split()[0]
            axes.barh(height, seconds, 0.25, color=colours[name], label=name)
            axes.text(seconds * 1.06, height, f"{seconds:.2f} s", va="center", size=9)
    axes.set_yticks([-group for group in range(len(groups))], list(groups))
    axes.set_xscale("log")
    axes.set_xticks([0.1, 1, 10, 100])
    _plain_numbers(axes)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("seconds, logarithmic")
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    figure.legend(once.values(), once.keys(), loc="outside upper left", ncols=4)
    return figure


PICTURES: dict[str, Callable[[], Figure]] = {
    "rate_against_loss": _rate_against_loss,
    "calibration": _calibration,
    "whole_files": _whole_files,
    "tuning": _tuning,
    "speed": _speed,
    "fit": _fit,
}


def _not_beaten(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points than which no other is both smaller and better."""
    kept: list[tuple[float, float]] = []
    for rate, loss in reversed(points):
        if not kept or loss < kept[-1][1]:
            kept.append((rate, loss))
    return kept[::-1]


def _plain_numbers(axes: Axes) -> None:
    for axis in (axes.xaxis, axes.yaxis):
        if axis.get_scale() != "linear":
            axis.set_minor_formatter(NullFormatter())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _short(schemes: str) -> str:
    return schemes.replace(",codebooks=tensor", ", shared").replace(" + ", "\n+ ")
