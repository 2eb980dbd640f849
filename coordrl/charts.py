"""The report's figures of scores: what each shows, its panels, and its numbers as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from coordrl.findings import AGGREGATES, AgentFinding, Band, Findings, PairFinding, Side
from coordrl.panels import ForestRow, Line, Panel, Style, draw_curves, draw_forest, draw_points, draw_profile
from coordrl.plan import Arm
from coordrl.record import POINTS
from coordrl.stats import Interval
from coordrl.tables import Cell, Table
from coordrl.words import VERDICTS, number, share

_EVERY = 10  # points of a curve to a row of the page's table; the CSV has them all


@dataclass(frozen=True)
class Chart:
    """A figure of the report."""

    name: str  # names its files too
    title: str
    caption: str
    panels: tuple[Panel, ...]
    columns: int  # of panels, on a wide page
    legend: tuple[Style, ...]
    table: Table


def score_charts(agent: AgentFinding, findings: Findings) -> dict[str, Chart]:
    """Return the figures of what one agent's arms reached, by kind; a kind without evidence is left out."""
    styles = styles_of(findings)
    every: dict[str, Chart | None] = {
        "curves": _curves(agent, findings, styles),
        "returns": _returns(agent, styles),
        "aggregates": _aggregates(agent, styles),
        "improvement": _improvement(agent, styles),
        "profile": _profile(agent, styles),
    }
    return {kind: chart for kind, chart in every.items() if chart is not None}


def styles_of(findings: Findings) -> dict[Arm, Style]:
    """Give each extractor one look in all figures, the control the first."""
    plan = findings.evidence.plan
    order = [plan.control, *(name for name in plan.extractors if name != plan.control)]
    return {arm: Style(arm.extractor, order.index(arm.extractor)) for arm in plan.arms()}


def _curves(agent: AgentFinding, findings: Findings, styles: Mapping[Arm, Style]) -> Chart:
    """Draw the learning curves, a panel for each game."""
    plan = findings.evidence.plan
    bands = {key: side.curve for key, side in agent.sides.items()}
    return Chart(
        f"curves-{agent.agent}",
        "Learning curves",
        "Mean return of the last 100 whole training games, averaged over seeds; the band is the 95 % interval of that"
        " mean over seeds (Student's t, at each point by itself). Raw scores; the higher the better. Where a run"
        " diverged, its last mean is carried on.",
        tuple(band_panels(agent, plan.games, bands, styles, "return", end=plan.steps)),
        3,
        tuple(styles[arm] for arm in agent.arms),
        band_table(agent, plan.games, bands),
    )


def band_panels(
    agent: AgentFinding,
    games: Sequence[str],
    bands: Mapping[tuple[Arm, str], Band],
    styles: Mapping[Arm, Style],
    label: str,
    *,
    end: int,
    origin: bool = False,
) -> list[Panel]:
    """Make a panel of curves for each game."""
    panels = []
    for game in games:
        curves = [_line(styles[arm], bands[arm, game]) for arm in agent.arms if (arm, game) in bands]
        ends = ", ".join(f"{line.style.label} {number(_last(line.mean))}" for line in curves)
        alt = f"{game}: {label} over training; at the end {ends or 'nothing yet'}"
        panels.append(
            Panel(game, alt, partial(draw_curves, title=game, curves=curves, label=label, end=end, origin=origin))
        )
    return panels


def _line(style: Style, band: Band) -> Line:
    """Return a band as an arm's line."""
    return Line(style, band.steps, band.mean, band.low, band.high)


def _last(values: NDArray[np.float64]) -> float:
    """Return the last value that is one."""
    there = values[~np.isnan(values)]
    return float(there[-1]) if len(there) else math.nan


def band_table(agent: AgentFinding, games: Sequence[str], bands: Mapping[tuple[Arm, str], Band]) -> Table:
    """Write curves as rows of game, step, arm, mean, interval and runs."""
    header = ("game", "step", "extractor", "mean", "low", "high", "runs")
    rows: list[tuple[Cell, ...]] = []
    shown: list[tuple[Cell, ...]] = []
    for game in games:
        for point in range(POINTS):
            for arm in agent.arms:
                band = bands.get((arm, game))
                if band is not None and band.runs[point]:
                    values = [_float(part[point]) for part in (band.mean, band.low, band.high)]
                    row = (game, int(band.steps[point]), arm.extractor, *values, int(band.runs[point]))
                    rows.append(row)
                    if (point + 1) % _EVERY == 0:
                        shown.append(row)
    return Table(header, tuple(rows), tuple(shown))


def _returns(agent: AgentFinding, styles: Mapping[Arm, Style]) -> Chart:
    """Draw every seed's final return, a panel for each game."""
    games = tuple(dict.fromkeys(game for _, game in agent.sides))
    panels, rows = [], []
    for game in games:
        sides = [agent.sides[arm, game] for arm in agent.arms]
        points = [(styles[side.arm], side.values, _ends(side)) for side in sides]
        means = ", ".join(f"{side.arm.extractor} mean {number(side.centre)} of {len(side.values)}" for side in sides)
        panels.append(
            Panel(
                game,
                f"{game}: final returns; {means}",
                partial(draw_points, title=game, sides=points, label="final return"),
            )
        )
        for side in sides:
            low, high = (side.mean.low, side.mean.high) if side.mean else (None, None)
            every = " ".join(number(value) for value in side.values)
            rows.append((game, side.arm.extractor, len(side.values), side.centre, low, high, every))
    return Chart(
        f"returns-{agent.agent}",
        "Final returns, every seed",
        "Each point is one training: the mean raw score of its last 100 whole games. Beside the points, their mean with"
        " its 95 % interval (studentised bootstrap over seeds).",
        tuple(panels),
        3,
        tuple(styles[arm] for arm in agent.arms),
        Table(("game", "extractor", "seeds", "mean", "low", "high", "every seed"), tuple(rows)),
    )


def _ends(side: Side) -> tuple[float, float, float] | None:
    """Return a side's mean with the ends of its interval."""
    if side.mean is not None:
        return side.mean[:3]
    return (side.centre, math.nan, math.nan) if len(side.values) else None


def _improvement(agent: AgentFinding, styles: Mapping[Arm, Style]) -> Chart | None:
    """Draw the probability of improvement per game and overall, a panel for each pair."""
    panels, rows = [], []
    for pair in agent.pairs:
        forest = _improvement_rows(pair, styles[pair.treatment])
        if not forest:
            continue
        name = pair.treatment.extractor
        text = "; ".join(f"{row.label} {share(row.estimate)}" for row in forest)
        label = f"P({name} beats {pair.control.extractor})"
        panels.append(
            Panel(
                name,
                f"Probability that {name} beats {pair.control.extractor}: {text}",
                partial(draw_forest, rows=forest, neutral=0.5, label=label, limits=(0.0, 1.0)),
                3.8,
                0.75 + 0.22 * len(forest),
                _margin(forest),
            )
        )
        verdicts = {game.game: VERDICTS[game.verdict] for game in pair.by_game} | {"all games": VERDICTS[pair.shown]}
        rows += [(name, row.label, row.estimate, row.low, row.high, verdicts[row.label]) for row in forest]
    if not panels:
        return None
    return Chart(
        f"improvement-{agent.agent}",
        "Probability of improvement",
        "The chance that a run of the treatment ends higher than a run of the control on the same game, ties counting half:"
        " at 0.5, no difference. 95 % intervals (bootstrap over seeds). A filled marker is a difference that counts as shown"
        " by the rules of the plan; an open one is not.",
        tuple(panels),
        2,
        tuple(styles[pair.treatment] for pair in agent.pairs),
        Table(("extractor", "game", "probability", "low", "high", "verdict"), tuple(rows)),
    )


def _improvement_rows(pair: PairFinding, style: Style) -> list[ForestRow]:
    """Return a row for each game with an estimate, and one for all of them."""
    rows = [
        ForestRow(game.game, style, *game.improvement[:3], game.verdict in ("better", "worse"))
        for game in pair.by_game
        if game.improvement is not None
    ]
    if pair.improvement is not None:
        shown = pair.shown in ("better", "worse")
        rows.append(ForestRow("all games", style, *pair.improvement[:3], shown, summary=True))
    return rows


def _aggregates(agent: AgentFinding, styles: Mapping[Arm, Style]) -> Chart | None:
    """Draw IQM, median, mean and optimality gap of each arm, a panel each."""
    if not agent.aggregates:
        return None
    panels: list[Panel] = []
    rows: list[tuple[Cell, ...]] = []
    for name in AGGREGATES:
        forest = [ForestRow(arm.extractor, styles[arm], *agent.aggregates[arm][name][:3], True) for arm in agent.arms]
        better = "lower is better" if name == "optimality gap" else "higher is better"
        text = "; ".join(f"{row.label} {number(row.estimate)}" for row in forest)
        panels.append(
            Panel(
                name,
                f"{name}: {text}",
                partial(draw_forest, rows=forest, neutral=None, label=better, title=name),
                3.4,
                0.95 + 0.24 * len(forest),
                _margin(forest),
            )
        )
        rows += [(name, row.label, row.estimate, row.low, row.high) for row in forest]
    for pair in agent.pairs:
        for name, interval in pair.differences.items():
            what = f"{pair.treatment.extractor} minus {pair.control.extractor}"
            rows.append((name, what, interval.estimate, *_low_high(interval)))
        if pair.area is not None:
            what = f"{pair.treatment.extractor} minus {pair.control.extractor}"
            rows.append(("IQM of area under the curve", what, pair.area.estimate, *_low_high(pair.area)))
    return Chart(
        f"aggregates-{agent.agent}",
        "Normalised scores",
        f"Normalised final returns of {len(agent.games)} games and {len(agent.seeds)} seeds an arm, with 95 % intervals"
        " (bootstrap over seeds, stratified by game). The interquartile mean (IQM) is the mean of the middle half of all"
        " runs, and is what the verdict rests on: one wild game or seed does not move it. The optimality gap is how far runs"
        " fall short of a score of 1.",
        tuple(panels),
        2,
        tuple(styles[arm] for arm in agent.arms),
        Table(("statistic", "extractor", "estimate", "low", "high"), tuple(rows)),
    )


def _margin(rows: Sequence[ForestRow]) -> float:
    """Return the room, in inches, that the labels of a forest plot need."""
    return 0.14 + 0.068 * max(len(row.label) for row in rows)


def _low_high(interval: Interval) -> tuple[float | None, float | None]:
    """Return the ends of an interval, or twice None."""
    return (None, None) if math.isnan(interval.low) else (interval.low, interval.high)


def _profile(agent: AgentFinding, styles: Mapping[Arm, Style]) -> Chart | None:
    """Draw the performance profile."""
    profile = agent.profile
    if profile is None:
        return None
    curves = [(styles[arm], profile.share[arm], profile.low.get(arm), profile.high.get(arm)) for arm in agent.arms]
    rows: list[tuple[Cell, ...]] = []
    for index, threshold in enumerate(profile.thresholds.tolist()):
        for arm in agent.arms:
            ends = (profile.low[arm][index], profile.high[arm][index]) if arm in profile.low else (None, None)
            rows.append((threshold, arm.extractor, float(profile.share[arm][index]), *(_float(end) for end in ends)))
    draw = partial(draw_profile, thresholds=profile.thresholds, curves=curves)
    arms = len(agent.arms)
    return Chart(
        f"profile-{agent.agent}",
        "Performance profile",
        "For each normalised score, the share of all runs that end above it; the higher curve is the better arm there. One"
        " arm is better throughout only if its curve nowhere lies below. Bands: 95 % intervals at each score by itself."
        " Where scores go far beyond 1, the axis is logarithmic from there.",
        (Panel("profile", "Share of runs above each normalised score", draw, 3.8, 2.8),),
        1,
        tuple(styles[arm] for arm in agent.arms),
        Table(
            ("normalised score", "extractor", "share above", "low", "high"),
            tuple(rows),
            tuple(row for index, row in enumerate(rows) if index // arms % _EVERY == 0),
        ),
    )


def _float(value: float | np.floating[Any] | None) -> float | None:
    """Return a number as Python's own, or None where there is none."""
    return None if value is None or math.isnan(value) else float(value)
