"""The report's figures of whether an agent uses its coordinates: their weight, and scores without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from coordrl.charts import Chart, band_panels, band_table, styles_of
from coordrl.findings import AgentFinding, Findings
from coordrl.panels import Panel, Style, draw_paired
from coordrl.plan import Arm
from coordrl.record import Run
from coordrl.suites import ablations_of
from coordrl.tables import Table
from coordrl.words import listed, number

_KINDS = ("true", "zero", "shuffle", "shift")  # of coordinates in an ablation, in this order
_NAMED = 8  # runs without a score, in the figure's text; the table has every score


def coordinate_charts(agent: AgentFinding, findings: Findings) -> dict[str, Chart]:
    """Return the figures of what one agent's arms make of their coordinates, by kind; none without evidence."""
    styles = styles_of(findings)
    every = {"ablations": _ablations(agent, findings, styles), "ratios": _ratios(agent, findings, styles)}
    return {kind: chart for kind, chart in every.items() if chart is not None}


def _ratios(agent: AgentFinding, findings: Findings, styles: Mapping[Arm, Style]) -> Chart | None:
    """Draw the norm of coordinate weights over that of image weights, a panel for each game."""
    if not agent.ratios:
        return None
    games = tuple(dict.fromkeys(game for _, game in agent.ratios))
    arms = tuple(dict.fromkeys(arm for arm, _ in agent.ratios))
    return Chart(
        f"ratios-{agent.agent}",
        "Weight given to coordinates",
        "Root mean square of the first layer's coordinate weights over that of its image weights, over training, mean of"
        " seeds with its 95 % interval. Dotted: where it began. A ratio that grows says that the agent gives"
        " coordinates weight, not that they help it.",
        tuple(band_panels(agent, games, agent.ratios, styles, "ratio", end=findings.evidence.plan.steps, origin=True)),
        3,
        tuple(styles[arm] for arm in arms),
        band_table(agent, games, agent.ratios),
    )


def _ablations(agent: AgentFinding, findings: Findings, styles: Mapping[Arm, Style]) -> Chart | None:
    """Draw what trained agents score with their true coordinates and with others."""
    panels, rows = [], []
    gaps = _gaps(agent, findings)
    for game in findings.evidence.plan.games:
        for arm in agent.arms:
            runs = [run for run in findings.evidence.of(arm, game) if run.ablation]
            rows += [
                (game, arm.extractor, run.cell.spec.seed, kind, score.mean, score.half_width, score.games)
                for run in runs
                for kind, score in run.ablation.items()
            ]
            kinds = [kind for kind in _KINDS if runs and all(kind in run.ablation for run in runs)]
            if "true" not in kinds or len(kinds) < 2:
                continue
            scores = np.array([[run.ablation[kind].mean for kind in kinds] for run in runs])
            title = game if sum(key[1] == game for key in agent.ratios) < 2 else f"{game}, {arm.extractor}"
            means = ", ".join(f"{kind} {number(mean)}" for kind, mean in zip(kinds, scores.mean(axis=0), strict=True))
            draw = partial(draw_paired, title=title, style=styles[arm], kinds=kinds, scores=scores)
            panels.append(Panel(f"{game}-{arm.extractor}", f"{title}: mean score with coordinates {means}", draw))
    if not panels:
        return None
    return Chart(
        f"ablations-{agent.agent}",
        "With the coordinates taken away",
        "Scores of the trained agents, not trained again, with their true coordinates, with zeros in their place (zero), and"
        " with the same values at shuffled places (shuffle) or half a picture away (shift). Each thin line is one seed, the thick one their mean. An agent that does not"
        f" use its coordinates draws a flat line.{_missing_sentence(gaps)}",
        tuple(panels),
        3,
        tuple(dict.fromkeys(styles[arm] for arm, _ in agent.ratios)),
        Table(("game", "extractor", "seed", "coordinates", "score", "half width 95 %", "games"), tuple(rows)),
    )


def _gaps(agent: AgentFinding, findings: Findings) -> list[tuple[str, Run]]:
    """Return the finished runs that lack a kind which another run of the agent has, each with these kinds in words."""
    runs = [run for arm in agent.arms for run in findings.evidence.of(arm) if run.state == "finished"]
    tried = {kind for run in runs for kind in run.ablation}
    found = []
    for run in runs:
        possible = ablations_of(run.cell.spec.extractor)
        wanted = [kind for kind in _KINDS if kind in tried and (kind in possible or (kind == "true" and possible))]
        lacking = [kind for kind in wanted if kind not in run.ablation]
        if lacking:
            found.append((listed(lacking), run))
    return found


def _missing_sentence(gaps: Sequence[tuple[str, Run]]) -> str:
    """Name the runs without some of the scores, or say nothing if there are none."""
    if not gaps:
        return ""
    names = [f"{run.cell.folder} ({kinds})" for kinds, run in gaps[:_NAMED]]
    names += [f"{len(gaps) - _NAMED} more"] if len(gaps) > _NAMED else []
    return (
        f" Scores are missing of {listed(names)}; a kind that not every run of a game with scores has is in the table and"
        " not drawn. coordrl evaluate RUNS --ablate plays what is missing."
    )
