"""The picture of a run of one of the paper's tasks: its curves, and maps of what became of every position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from coordrl.figures import save_figure
from coordrl.files import replace_data
from coordrl.panels import COLOURS, GRID, MUTED, PAPER, Panel, Style, short
from coordrl.paper_results import percent
from coordrl.paper_tasks import TASKS, PaperSpec
from coordrl.squares import MARGIN, SIDE, Split

STYLES = {"coord": Style("CoordConv", 1), "plain": Style("plain convolution", 0)}
_WIDTH, _HEIGHT = 2.6, 2.75  # inches, of a panel: its axes are nearly square
_LEFT = 0.5
_ERRORS = LinearSegmentedColormap.from_list("errors", [PAPER, "#f4a582", "#b2182b", "#3b0710"])
_PARTS = ListedColormap([PAPER, COLOURS[0]])

Values = NDArray[np.float64]


def save_picture(
    stem: Path,
    spec: PaperSpec,
    split: Split,
    rows: Sequence[Mapping[str, Any]],
    errors: Mapping[str, Values],
    ends: Mapping[str, Mapping[str, Any]],
) -> list[Path]:
    """Draw a run as `stem`.png and `stem`.svg, each replaced in one move; returns both.

    Args:
        stem: path without an ending.
        spec: the run.
        split: which positions were trained on.
        rows: points of the curves, see `coordrl.paper_training.Lesson.row`.
        errors: of each arm, (3136,) in the order of `coordrl.squares.positions`, NaN where not measured.
        ends: of each arm, the last row, measured at all positions.
    """
    task = TASKS[spec.task]
    panels = [
        _panel("split", "The positions that are tested on", partial(_draw_split, split=split, spec=spec)),
        _curves_panel(spec, rows, "seconds", f"{task.measure} (thin: train)", "hits"),
        _curves_panel(spec, rows, "updates", f"{task.measure} (thin: train)", "hits"),
        _curves_panel(spec, rows, "updates", f"error{', px' if task.unit else ''} (thin: train)", "error"),
    ]
    for arm, values in errors.items():
        for part, where in (("train", split.train), ("test", split.test)):
            hits = percent(ends[arm][part]["hits"], task.measure)
            title = f"{STYLES[arm].label.partition(' ')[0]}, {part}: {hits}"
            draw = partial(_draw_map, values=values, where=where, deepest=task.deepest, title=title, unit=task.unit)
            panels.append(_panel(f"{arm}-{part}", title, draw))
    with TemporaryDirectory(prefix="coordrl-paper-") as folder:
        drawn = save_figure(panels, 4, [STYLES[arm] for arm in errors], Path(folder) / stem.name)
        files = [stem.with_suffix(file.suffix) for file in drawn]
        for file, target in zip(drawn, files, strict=True):
            replace_data(target, file.read_bytes())
    return files


def _panel(key: str, alt: str, draw: Any) -> Panel:
    """Make a panel of this picture's size."""
    return Panel(key, alt, draw, _WIDTH, _HEIGHT, _LEFT)


def _curves_panel(spec: PaperSpec, rows: Sequence[Mapping[str, Any]], axis: str, label: str, value: str) -> Panel:
    """Make a panel of both arms' curves."""
    title = {"seconds": "over seconds of training", "updates": "over updates"}[axis]
    draw = partial(_draw_curves, rows=rows, axis=axis, label=label, value=value, title=title)
    return _panel(f"{value}-{axis}", f"{label} {title}, {spec.task}", draw)


def _draw_curves(axes: Axes, rows: Sequence[Mapping[str, Any]], axis: str, label: str, value: str, title: str) -> None:
    """Draw train and test of every arm over a logarithmic axis."""
    for arm, style in STYLES.items():
        mine = [row for row in rows if row["arm"] == arm and row["updates"] > 0]
        across = [row[axis] for row in mine]
        for part, width, opacity in (("train", 0.9, 0.55), ("test", 1.9, 1.0)):
            along = [row[part][value] for row in mine]
            axes.plot(across, along, color=style.colour, dashes=style.dash, linewidth=width, alpha=opacity)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(FuncFormatter(short))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(short))
    axes.set_ylim(bottom=0, top=1.03 if value == "hits" else None)
    axes.set_title(f"{label}")
    axes.set_xlabel(title)


def _draw_split(axes: Axes, split: Split, spec: PaperSpec) -> None:
    """Draw which positions are tested on."""
    tested = np.zeros(SIDE * SIDE)
    tested[split.test] = 1
    _draw_positions(axes, tested.reshape(SIDE, SIDE), _PARTS, 1.0)
    axes.set_title(f"{spec.split} split: test in blue")


def _draw_map(axes: Axes, values: Values, where: NDArray[np.int64], deepest: float, title: str, unit: str) -> None:
    """Draw the error at the positions of one part; the others are grey."""
    shown = np.full(SIDE * SIDE, np.nan)
    shown[where] = values[where]
    _draw_positions(axes, shown.reshape(SIDE, SIDE), _ERRORS, deepest)
    axes.set_title(title)
    more = f"{deepest:g} {unit} or more" if unit else f"{deepest:g}"
    axes.set_xlabel(f"error: white 0, darkest {more}", color=MUTED)


def _draw_positions(axes: Axes, values: Values, colours: Any, deepest: float) -> None:
    """Draw a value for each position, (56, 56), at its row and column on the canvas."""
    low, high = MARGIN - 0.5, MARGIN + SIDE - 0.5
    axes.set_facecolor(GRID)
    axes.imshow(
        np.ma.masked_invalid(values),
        cmap=colours,
        vmin=0,
        vmax=deepest,
        interpolation="nearest",
        extent=(low, high, high, low),
        aspect="auto",
    )
    axes.grid(False)
    axes.set_xticks([4, 20, 31, 43, 59])
    axes.set_yticks([4, 20, 31, 43, 59])
