"""The report's figures: panels laid out together, as inline SVG that follows the page's colours, and as files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from coordrl.panels import COLOURS, GRID, INK, MUTED, PAPER, Panel, Style

_RIGHT, _BELOW, _ABOVE = 0.14, 0.42, 0.24  # inches around a panel's axes; what is left of them, the panel says
_LEGEND = 0.34  # inches above all panels
_PAGE = {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--grid)", PAPER: "var(--paper)"}
_PAGE |= {colour: f"var(--arm-{index})" for index, colour in enumerate(COLOURS)}
_SETTINGS: Any = {  # of matplotlib, whose own type for them is a list of all names
    "svg.fonttype": "none",
    "svg.hashsalt": "coordrl",  # equal runs give an equal file
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Helvetica", "Arial"],
    "font.size": 8,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 8,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "path.simplify_threshold": 0.2,
}


def inline_svg(panel: Panel, name: str) -> str:
    """Draw a panel as an SVG element whose colours are the page's and whose ids are its own."""
    name = re.sub(r"[^A-Za-z0-9-]", "_", name)  # it goes into ids, and agents are named by whoever wrote run.json
    with rc_context(_SETTINGS):
        figure = _figure([panel], 1)
        text = StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'id="(figure|axes|patch|text|line2d|matplotlib\.axis|xtick|ytick|[A-Za-z]*Collection)_\d+"', "", svg)
    svg = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(
        r'(?<= )(d|x|y|x1|y1|x2|y2|width|height|points|transform)="[^"]*"', _round, svg
    )  # texts stay as they are
    svg = re.sub(r"\s*\n\s*", "\n", svg)
    for colour, variable in _PAGE.items():
        svg = svg.replace(colour, variable)
    box = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg role="img" aria-label="{_escape(panel.alt)}" {box.group() if box else ""} xmlns:xlink="http://www.w3.org/1999/xlink">'
    return head + svg[svg.index(">") + 1 :]


def save_figure(panels: Sequence[Panel], columns: int, legend: Sequence[Style], stem: Path) -> list[Path]:
    """Draw panels together, below a legend, into one SVG and one PNG on white, and return both files."""
    with rc_context({**_SETTINGS, "savefig.facecolor": "white"}):
        figure = _figure(panels, columns, legend)
        files = [stem.with_suffix(".svg"), stem.with_suffix(".png")]
        figure.savefig(files[0], metadata={"Date": None})
        figure.savefig(files[1], dpi=130, metadata={"Software": None})
    return files


def _figure(panels: Sequence[Panel], columns: int, legend: Sequence[Style] = ()) -> Figure:
    """Lay panels out in rows, with margins that are fixed in inches: so the axes of a column lie in line."""
    above = _LEGEND if legend else 0.0
    rows = [panels[start : start + columns] for start in range(0, len(panels), columns)]
    width = max(sum(panel.width for panel in row) for row in rows)
    height = sum(row[0].height for row in rows) + above
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    if legend:
        handles = [
            Line2D([], [], color=style.colour, dashes=style.dash, marker=style.marker, label=style.label)
            for style in legend
        ]
        figure.legend(
            handles=handles,
            ncols=len(handles),
            loc="upper left",
            bbox_to_anchor=(0.1 / width, 1 - 0.03 / height),
            borderaxespad=0.0,
            frameon=False,
            fontsize=9,
            handlelength=3,
        )
    bottom = height - above
    for row in rows:
        bottom -= row[0].height
        left = 0.0
        for panel in row:
            box = (
                left + panel.left,
                bottom + _BELOW,
                panel.width - panel.left - _RIGHT,
                panel.height - _BELOW - _ABOVE,
            )
            panel.draw(figure.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height)))
            left += panel.width
    return figure


def _round(attribute: re.Match[str]) -> str:
    """Round the coordinates of an attribute to hundredths of a point, which nobody sees and which halves a file."""
    return re.sub(
        r"-?\d+\.\d{3,}", lambda number: f"{float(number.group()):.2f}".rstrip("0").rstrip("."), attribute.group()
    )


def _escape(text: str) -> str:
    """Make a text fit for an attribute."""
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
