"""The report's small drawings: curves, points, estimates with intervals, on matplotlib's axes.

Colours are those of Okabe and Ito (2008), which people with any colour vision tell apart; each arm also has a
dash and a marker of its own. A panel is drawn for the width of a phone, and pages lay panels out in a grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

Array = NDArray[np.float64]

INK, MUTED, GRID = "#1b1f24", "#5c6670", "#dde2e7"
# Okabe and Ito: blue, vermillion, bluish green, reddish purple, orange, sky blue; then grey.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#767676")
DASHES: tuple[Any, ...] = ((4, 1.6), (None, None), (1.2, 1.4), (6, 1.5, 1.2, 1.5), (None, None), (3, 1), (1, 1))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH, HEIGHT = 3.4, 2.35  # inches, of a panel: 245 points wide, so that its text is legible at a phone's width
LEFT = 0.58  # inches, left of a panel's axes
PAPER = "#fffffe"  # inside of an open marker: the page


@dataclass(frozen=True)
class Style:
    """How an arm looks in every figure: `index` into COLOURS, DASHES and MARKERS."""

    label: str
    index: int

    @property
    def colour(self) -> str:
        """The colour on a light page."""
        return COLOURS[self.index % len(COLOURS)]

    @property
    def dash(self) -> Any:
        """The dash of its lines, as matplotlib's `dashes`."""
        return DASHES[self.index % len(DASHES)]

    @property
    def marker(self) -> str:
        """The marker of its points."""
        return MARKERS[self.index % len(MARKERS)]


@dataclass(frozen=True)
class Panel:
    """One small drawing; several of them make a figure."""

    key: str
    alt: str  # what it shows, for those who cannot see it
    draw: Callable[[Axes], None]
    width: float = WIDTH  # inches
    height: float = HEIGHT
    left: float = LEFT  # inches, for what stands left of the axes


class Line(NamedTuple):
    """A curve with its interval, each (points,); NaN where there is none."""

    style: Style
    steps: Array
    mean: Array
    low: Array
    high: Array


def draw_curves(
    axes: Axes,
    title: str,
    curves: Sequence[Line],
    label: str,
    *,
    end: float,
    origin: bool = False,
) -> None:
    """Draw curves with their intervals, from step 0 to `end`.

    With `origin`, the axis begins at 0 and a dotted line shows where each curve began.
    """
    for style, steps, mean, low, high in curves:
        axes.fill_between(steps, low, high, color=style.colour, alpha=0.18, linewidth=0)
        axes.plot(steps, mean, color=style.colour, dashes=style.dash, solid_capstyle="round")
        if origin and np.isfinite(mean).any():
            axes.axhline(mean[np.isfinite(mean)][0], color=style.colour, linewidth=0.9, dashes=(1, 2))
    axes.set_title(title)
    axes.set_ylabel(label)
    axes.set_xlabel("steps")
    axes.set_xlim(0, end)
    axes.set_xticks(np.linspace(0, end, 5))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(short))
    axes.yaxis.set_major_formatter(FuncFormatter(short))
    axes.margins(y=0.08)
    if origin:
        axes.set_ylim(bottom=0)
    if not any(np.isfinite(line.mean).any() for line in curves):
        _say_empty(axes)


def draw_points(
    axes: Axes,
    title: str,
    sides: Sequence[tuple[Style, Array, tuple[float, float, float] | None]],
    label: str,
) -> None:
    """Draw every value of each side (style, values, (mean, low, high)) as a point, its mean and interval beside."""
    for place, (style, values, interval) in enumerate(sides):
        jitter = ((np.arange(len(values)) * 0.618) % 1 - 0.5) * 0.3
        axes.plot(
            place - 0.12 + jitter,
            values,
            linestyle="none",
            marker=style.marker,
            color=style.colour,
            alpha=0.55,
            markeredgewidth=0,
        )
        if interval is not None:
            mean, low, high = interval
            axes.plot([place + 0.24] * 2, [low, high], color=style.colour, linewidth=1.6, solid_capstyle="butt")
            axes.plot(place + 0.24, mean, marker=style.marker, color=style.colour, markersize=6.5)
    axes.set_title(title)
    axes.set_ylabel(label)
    axes.set_xticks(range(len(sides)), [style.label for style, _, _ in sides])
    axes.set_xlim(-0.6, len(sides) - 0.4)
    axes.grid(False, axis="x")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(short))
    axes.margins(y=0.1)
    if not any(len(values) for _, values, _ in sides):
        _say_empty(axes)


def _say_empty(axes: Axes) -> None:
    """Say that there is nothing to draw, instead of an axis around 0."""
    axes.set_yticks([])
    axes.text(0.5, 0.5, "nothing yet", transform=axes.transAxes, ha="center", va="center", color=MUTED)


@dataclass(frozen=True)
class ForestRow:
    """A line of a forest plot: an estimate with its interval."""

    label: str
    style: Style
    estimate: float
    low: float  # NaN without an interval
    high: float
    shown: bool  # whether it counts as shown; an open marker where it does not
    summary: bool = False  # over all games


def draw_forest(
    axes: Axes,
    rows: Sequence[ForestRow],
    neutral: float | None,
    label: str,
    *,
    limits: tuple[float, float] | None = None,
    title: str = "",
) -> None:
    """Draw estimates with intervals, one below the other, with a line where there is no difference."""
    places: list[float] = []
    for row in rows:
        places.append((places[-1] if places else 0.0) + (1.5 if row.summary and places else 1.0))
    if neutral is not None:
        axes.axvline(neutral, color=MUTED, linewidth=0.9)
    for place, row in zip(places, rows, strict=True):
        axes.plot([row.low, row.high], [place] * 2, color=row.style.colour, linewidth=2.4 if row.summary else 1.5)
        axes.plot(
            row.estimate,
            place,
            marker="D" if row.summary else row.style.marker,
            markersize=6.5 if row.summary else 5,
            color=row.style.colour,
            markerfacecolor=row.style.colour if row.shown else PAPER,
            markeredgewidth=1.3,
        )
    axes.set_yticks(places, [row.label for row in rows], color=INK)
    for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
        tick.set_fontweight("bold" if row.summary else "normal")
    axes.set_ylim((places[-1] if places else 0) + 0.7, 0.3)
    axes.grid(False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel(label)
    if limits is not None:
        axes.set_xlim(limits[0] - 0.02, limits[1] + 0.02)
    if title:
        axes.set_title(title)
    axes.spines["left"].set_visible(False)


def draw_profile(
    axes: Axes, thresholds: Array, curves: Sequence[tuple[Style, Array, Array | None, Array | None]]
) -> None:
    """Draw the share of runs above each score, for each (style, share, low, high)."""
    for style, share, low, high in curves:
        if low is not None and high is not None:
            axes.fill_between(thresholds, low, high, color=style.colour, alpha=0.18, linewidth=0)
        axes.plot(thresholds, share, color=style.colour, dashes=style.dash)
    axes.set_ylim(0, 1.02)
    if thresholds[-1] > 2:  # a few games far above 1 would press all others against the left
        axes.set_xscale("symlog", linthresh=1, linscale=1)
        ticks = [tick for tick in (-1, -0.5, 0, 0.5, 1, 2, 5, 10, 20, 50) if thresholds[0] <= tick <= thresholds[-1]]
        axes.set_xticks(ticks, [short(tick) for tick in ticks])
        axes.minorticks_off()
    axes.set_xlim(thresholds[0], thresholds[-1])
    axes.set_xlabel("normalised score")
    axes.set_ylabel("share of runs above it")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))


def draw_paired(axes: Axes, title: str, style: Style, kinds: Sequence[str], scores: Array) -> None:
    """Draw scores (runs, kinds): one thin line a run, and their mean."""
    for run in scores:
        axes.plot(
            range(len(kinds)), run, color=style.colour, alpha=0.35, linewidth=0.8, marker=style.marker, markersize=3
        )
    axes.plot(
        range(len(kinds)), scores.mean(axis=0), color=style.colour, linewidth=2.2, marker=style.marker, markersize=6
    )
    axes.set_title(title)
    axes.set_ylabel("score")
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_xlim(-0.3, len(kinds) - 0.7)
    axes.grid(False, axis="x")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(short))
    axes.margins(y=0.1)


def short(value: float, _: object = None) -> str:
    """Write a number as an axis does: 10M, 2.5k, 0.3."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
