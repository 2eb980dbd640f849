"""The report's numbers as tables: for its CSV files, and for the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coordrl.evidence import Evidence
from coordrl.findings import AgentFinding
from coordrl.pictures import MapPictures
from coordrl.record import Run
from coordrl.words import number

Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """The numbers of a figure: all for the CSV, those that the page shows, and how it writes them."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    shown: tuple[tuple[Cell, ...], ...] | None = None  # None: all

    def page(self) -> tuple[tuple[str, ...], ...]:
        """Return the rows that a page shows, as text."""
        return tuple(tuple(_text(cell) for cell in row) for row in (self.rows if self.shown is None else self.shown))


def games_table(agents: Sequence[AgentFinding]) -> Table:
    """Return every comparison of every game."""
    header = (
        *("treatment", "control", "game", "n treatment", "n control", "mean treatment", "mean control"),
        *("difference", "low", "high", "probability of improvement", "improvement low", "improvement high"),
        *("p", "exact", "corrected p", "could see", "verdict"),
    )
    rows = []
    for agent in agents:
        for pair in agent.pairs:
            for game in pair.by_game:
                difference = game.difference[:3] if game.difference else (None, None, None)
                chance = game.improvement[:3] if game.improvement else (None, None, None)
                sides = game.treatment, game.control
                rows.append(
                    (
                        *(side.arm.name for side in sides),
                        game.game,
                        *(len(side.values) for side in sides),
                        *(side.centre for side in sides),
                        *difference,
                        *chance,
                        *(game.p_value, str(game.exact), game.corrected, game.smallest, game.verdict),
                    )
                )
    return Table(header, tuple(rows))


def runs_table(evidence: Evidence) -> Table:
    """Return every cell of the matrix."""
    header = (
        *("folder", "agent", "extractor", "game", "seed", "protocol", "steps", "state", "step", "final return"),
        *("games in it", "games", "area under curve", "score", "score games", "seconds", "steps/s", "parameters"),
        *("attempts", "plan", "note", "command"),
    )
    return Table(header, tuple(_run_row(run, evidence.attempts.get(run.cell.folder)) for run in evidence.runs.values()))


def _run_row(run: Run, attempts: int | None) -> tuple[Any, ...]:
    """Return a run as a row of the table of runs."""
    spec, facts = run.cell.spec, run.facts
    return (
        *(run.cell.folder, spec.agent, spec.extractor, spec.game, spec.seed, spec.protocol, spec.steps),
        *(run.state, run.step, run.final_return, run.final_games, run.games, run.area, run.score, run.score_games),
        *(run.seconds, run.steps_per_second, facts.get("parameters")),
        *(attempts, facts.get("plan"), run.note, facts.get("command")),
    )


def maps_table(pictures: Sequence[MapPictures]) -> Table:
    """Return how strong the position maps are before and after."""
    rows = [
        (
            maps.run.cell.spec.game,
            maps.run.cell.spec.extractor,
            maps.run.cell.spec.seed,
            at.step,
            at.strength,
            at.strongest,
        )
        for maps in pictures
        for at in (maps.first, maps.last)
    ]
    return Table(("game", "extractor", "seed", "step", "root mean square", "strongest filter"), tuple(rows))


def _text(cell: Cell) -> str:
    """Write a cell of a table on a page."""
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else number(cell)
