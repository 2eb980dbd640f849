"""The report as a page: what its template shows, put together from findings, figures and words."""

from __future__ import annotations

import re
import shlex
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import jinja2
import numpy as np
from markupsafe import Markup

from coordrl import __version__, words
from coordrl.charts import Chart, score_charts, styles_of
from coordrl.figures import inline_svg
from coordrl.findings import AgentFinding, Findings, typical_rate
from coordrl.panels import COLOURS, MARKERS, Style
from coordrl.pictures import MapPictures, draw_run
from coordrl.plan import Arm
from coordrl.record import STATES, Run
from coordrl.references import Published, published
from coordrl.suites import CONTROLS, EXTRACTOR_SUMMARIES, find_protocol
from coordrl.tables import Table, games_table, maps_table, runs_table
from coordrl.usage import coordinate_charts

_LISTED = 40  # runs without a result that the page names; the CSV names all


@dataclass(frozen=True)
class Section:
    """What the page says of one agent."""

    finding: AgentFinding
    charts: Mapping[str, Chart]  # by kind
    maps: tuple[MapPictures, ...]


@final
class Page:
    """Everything that a report consists of.

    Args:
        findings: what it says.
        runs: the folder of runs, as commands name it.
        out: the report's own folder, likewise.
        note: a sentence of whoever makes it, shown at its top.
    """

    def __init__(self, findings: Findings, *, runs: str, out: str, note: str = "") -> None:
        self.findings, self.evidence = findings, findings.evidence
        self.plan = self.evidence.plan
        self._runs, self._out, self._note = runs, out, note
        self.sections = tuple(
            Section(agent, {**score_charts(agent, findings), **coordinate_charts(agent, findings)}, self._maps(agent))
            for agent in findings.agents
            if agent.arms
        )

    @cached_property
    def charts(self) -> dict[str, Chart]:
        """All figures, by name."""
        return {chart.name: chart for section in self.sections for chart in section.charts.values()}

    @cached_property
    def tables(self) -> dict[str, Table]:
        """All tables, by name: the figures' and the page's own."""
        own = {
            "runs": runs_table(self.evidence),
            "games": games_table(self.findings.agents),
            "published": self._published_table(),
        }
        maps = {f"maps-{section.finding.agent}": maps_table(section.maps) for section in self.sections if section.maps}
        return {**own, **{name: chart.table for name, chart in self.charts.items()}, **maps}

    @cached_property
    def pictures(self) -> dict[str, bytes]:
        """The pictures of position maps, by the name of their file."""
        return {
            f"maps-{maps.run.cell.arm.name}-{maps.run.cell.spec.game}-{when}": picture.png
            for section in self.sections
            for maps in section.maps
            for when, picture in (("first", maps.first), ("last", maps.last))
        }

    @property
    def summary(self) -> list[str]:
        """The report in a line or two, for the terminal."""
        partial = bool(self.evidence.missing)
        lines = [
            f"{pair.treatment.agent}: {words.headline(pair, partial=partial, ended=self.evidence.ended)}"
            for section in self.sections
            for pair in section.finding.pairs
        ]
        left = words.partial_sentence(self.evidence)
        return [*lines, *([left] if left else [])]

    @cached_property
    def texts(self) -> dict[str, str]:
        """The page and its plain version, by the name of their file."""
        loader = jinja2.FileSystemLoader(Path(__file__).parent)
        result = {}
        for name in ("report.html", "report.md"):
            environment = jinja2.Environment(
                loader=loader,
                autoescape=name.endswith("html"),
                undefined=jinja2.StrictUndefined,
                trim_blocks=True,
                lstrip_blocks=True,
            )
            environment.filters.update(_filters())
            text = environment.get_template(f"{name}.jinja").render(self._context())
            result[name] = re.sub(r"(?<=\d) %(?!\w)", "\N{NO-BREAK SPACE}%", text)
        return result

    def _context(self) -> dict[str, Any]:
        """Return what the templates see."""
        plan = self.plan
        return {
            "page": self,
            "plan": plan,
            "evidence": self.evidence,
            "words": words,
            "title": self._title(),
            "version": __version__,
            "note": self._note,
            "partial": words.partial_sentence(self.evidence),
            "frames": None if self.is_control else plan.runs[0].spec.frames(plan.steps),
            "commands": self._commands(),
            "unit": self.unit,
            "arms": [self._arm_facts(arm) for arm in self.evidence.arms],
            "states": STATES,
            "gaps": self._gaps(),
            "versions": self._versions(),
            "hardware": self._hardware(),
            "published": self._published_rows(),
            "columns": self._published_columns(),
            "styles": styles_of(self.findings),
            "svg": lambda panel, chart: Markup(inline_svg(panel, f"{chart.name}-{panel.key}".replace(" ", "-"))),
            "sample": _sample,
            "data": lambda png: "data:image/png;base64," + b64encode(png).decode(),
            "figure_command": self.figure_command,
        }

    @property
    def unit(self) -> str:
        """What a normalised score of 1 stands for."""
        return "the best play" if self.is_control else "a human"

    @property
    def is_control(self) -> bool:
        """Whether the games are controls, whose frames nobody counts and whose best play is known."""
        return find_protocol(self.plan.protocol).world is CONTROLS

    def _title(self) -> str:
        """Return the page's title: the plan's question, or what the runs are."""
        if self.plan.question:
            return self.plan.question
        return f"{words.listed([arm.name for arm in self.evidence.arms])} on {words.listed(self.plan.games)}"

    def _commands(self) -> list[str]:
        """Return the commands that make the runs and this report."""
        make = [words.compare_command(self.evidence, self._runs)] if self.evidence.planned else []
        note = ["--note", self._note] if self._note else []
        return [*make, shlex.join(["python", "-m", "coordrl.report", self._runs, *note, "--out", self._out])]

    def figure_command(self, chart: Chart) -> str:
        """Return the command that makes one figure and its numbers."""
        return shlex.join(["python", "-m", "coordrl.report", self._runs, "--only", chart.name, "--out", self._out])

    def _maps(self, agent: AgentFinding) -> tuple[MapPictures, ...]:
        """Draw the maps of the first seed that has some, for each game and arm."""
        found = []
        for game in self.plan.games:
            for arm in agent.arms:
                run = next((run for run in self.evidence.of(arm, game) if run.maps), None)
                if run is not None:
                    found.append(draw_run(run))
        return tuple(found)

    def _arm_facts(self, arm: Arm) -> dict[str, Any]:
        """Return what an arm cost and how its runs ended."""
        runs = self.evidence.of(arm)
        parameters = sorted({run.facts["parameters"] for run in runs if "parameters" in run.facts})
        states = Counter(run.state for run in runs)
        seconds = [run.seconds for run in runs if run.state == "finished"]
        return {
            "arm": arm,
            "summary": EXTRACTOR_SUMMARIES.get(arm.extractor, ""),
            "parameters": parameters,
            "rate": typical_rate(runs),
            "hours": float(np.mean(seconds)) / 3600 if seconds else None,
            "states": {state: states[state] for state in STATES},
            "runs": len(runs),
            "again": sum(self.evidence.attempts.get(run.cell.folder, 1) > 1 for run in runs),
            "results": sum(run.final_return is not None for run in runs),
        }

    def _gaps(self) -> tuple[list[Run], int]:
        """Return the runs that did not simply finish, as many as the page lists, and how many more there are."""
        odd = [run for run in self.evidence.runs.values() if run.state != "finished" or run.final_return is None]
        return odd[:_LISTED], max(len(odd) - _LISTED, 0)

    def _versions(self) -> list[tuple[str, str]]:
        """Return each package's versions, with the number of runs where they differ."""
        found: dict[str, Counter[str]] = {}
        for run in self.evidence.runs.values():
            for package, version in run.facts.get("versions", {}).items():
                found.setdefault(package, Counter())[version] += 1
        return [(package, _counts(versions)) for package, versions in found.items()]

    def _hardware(self) -> list[tuple[str, int]]:
        """Return each kind of machine with how many runs it did."""
        kinds: Counter[str] = Counter()
        for run in self.evidence.runs.values():
            if "hardware" in run.facts:
                kinds[_machine(run.facts["hardware"])] += 1
        return kinds.most_common()

    def _published_rows(self) -> list[dict[str, Any]]:
        """Return what others published under the same protocol, beside ours, for each game."""
        rows = []
        for game in self.plan.games:
            others = published(game)
            ours = [
                (side.arm, side.centre, len(side.values))
                for section in self.sections
                for (_, at), side in section.finding.sides.items()
                if at == game
            ]
            alike = {_column(one): one for one in others if one.protocol == self.plan.protocol}
            rows.append(
                {"game": game, "ours": ours, "alike": alike, "ends": self.plan.references.get(game), "all": others}
            )
        return rows if any(row["all"] for row in rows) else []

    def _published_columns(self) -> list[str]:
        """Return the columns of what was published under the same protocol."""
        return list(dict.fromkeys(column for row in self._published_rows() for column in row["alike"]))

    def _published_table(self) -> Table:
        """Return everything published that the report knows, and ours."""
        rows: list[tuple[Any, ...]] = []
        for row in self._published_rows():
            for arm, centre, seeds in row["ours"]:
                source = f"this report; {words.counted(seeds, 'seed')}, last 100 training games"
                rows.append(
                    (
                        row["game"],
                        f"{arm.agent} {arm.extractor}",
                        self.plan.steps,
                        self.plan.protocol,
                        centre,
                        None,
                        source,
                    )
                )
            rows += [(row["game"], *one) for one in row["all"]]
        return Table(("game", "algorithm", "steps", "protocol", "mean", "std", "source"), tuple(rows))


def _column(one: Published) -> str:
    """Name a published score in a few words: whose, of what, after how many steps."""
    source = one.source.split()[0].strip(",;")
    return f"{one.algorithm}, {'rl-zoo' if source == 'rl-baselines3-zoo' else source}, {_short(one.steps)}"


def _short(steps: int | None) -> str:
    """Write a number of steps in short."""
    if steps is None:
        return "steps unknown"
    return f"{steps / 1e6:g}M" if steps >= 10**6 else f"{steps:,}"


def _machine(hardware: Mapping[str, Any]) -> str:
    """Describe a machine in a line."""
    cores, threads = hardware.get("cores"), hardware.get("torch_threads")
    parts = [
        hardware.get("processor") or hardware.get("machine") or "processor unknown",
        "cores unknown" if cores is None else words.counted(cores, "core"),
        "threads unknown" if threads is None else words.counted(threads, "thread") + " of torch",
        hardware.get("cuda") or "no CUDA",
        hardware.get("system") or "system unknown",
    ]
    return ", ".join(parts)


def _counts(versions: Counter[str]) -> str:
    """Write versions, with the number of runs where there are several."""
    if len(versions) == 1:
        return next(iter(versions))
    return ", ".join(f"{version} ({words.counted(count, 'run')})" for version, count in versions.most_common())


def _sample(style: Style) -> Markup:
    """Draw a piece of an arm's line with its marker, for a legend."""
    pattern = "" if style.dash[0] is None else " ".join(f"{2 * part:g}" for part in style.dash)
    index = style.index % len(COLOURS)
    shape = {
        "o": '<circle cx="18" cy="7" r="4"/>',
        "s": '<rect x="14" y="3" width="8" height="8"/>',
        "^": '<path d="M18 2l5 9h-10z"/>',
        "D": '<path d="M18 2l5 5-5 5-5-5z"/>',
        "v": '<path d="M18 12l5-9h-10z"/>',
        "P": '<path d="M16 2h4v3h3v4h-3v3h-4v-3h-3v-4h3z"/>',
        "X": '<path d="M14 2l4 3 4-3 1 1-3 4 3 4-1 1-4-3-4 3-1-1 3-4-3-4z"/>',
    }[MARKERS[style.index % len(MARKERS)]]
    return Markup(
        f'<svg class="sample" viewBox="0 0 36 14" aria-hidden="true" fill="var(--arm-{index})">'
        f'<path d="M0 7h36" stroke="var(--arm-{index})" stroke-width="2.5" stroke-dasharray="{pattern}" fill="none"/>{shape}</svg>'
    )


def _filters() -> dict[str, Any]:
    """Return the templates' ways to write numbers."""
    return {
        "number": words.number,
        "signed": words.signed,
        "share": words.share,
        "p": words.p_value,
        "between": words.between,
        "listed": words.listed,
        "verdict": words.VERDICTS.__getitem__,
        "short": _short,
        "together": lambda text: re.sub(r"(?<=\w)-(?=\w)", "\N{NON-BREAKING HYPHEN}", text),  # coord-r on one line
    }
