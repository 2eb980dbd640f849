"""What the runs of a comparison say: read from their folders, without torch, one run at a time.

A run is finished, diverged, unfinished or missing. The first two have a result (if they finished a game at
all) and count; the others are listed. What must not be mixed is refused: protocols, steps, settings, plans.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from coordrl.attempts import count_attempts
from coordrl.errors import RequestError
from coordrl.plan import (
    ALPHA,
    FEWEST,
    INTERVAL,
    PLAN_FILE,
    Arm,
    Cell,
    Plan,
    choose_control,
    known_references,
    read_plan,
    recipe_copy,
)
from coordrl.record import Run, read_run
from coordrl.results import WINDOW, RunFolder, Spec, find_runs
from coordrl.suites import EXTRACTOR_SUMMARIES, SUITES

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """All runs of a comparison.

    `planned` is False where the folder has no plan.json: then `plan` is what the runs look like, and nothing in
    it was decided beforehand.
    """

    plan: Plan
    planned: bool
    arms: tuple[Arm, ...]
    pairs: tuple[tuple[Arm, Arm], ...]  # (treatment, control)
    runs: Mapping[tuple[Arm, str, int], Run]  # by arm, game and seed, every cell of the matrix
    notes: tuple[str, ...]  # what a reader should know about the folder, in sentences
    attempts: Mapping[str, int] = field(default_factory=dict)  # by cell's folder, if a launcher recorded them
    recipes: tuple[str, ...] = ()  # agents whose recipes were given by their paths, and are kept beside the plan

    @property
    def missing(self) -> tuple[Run, ...]:
        """The runs without a result."""
        return tuple(run for run in self.runs.values() if run.final_return is None)

    @property
    def ended(self) -> bool:
        """Whether every run came to its end, with a result or without."""
        return all(run.state not in ("unfinished", "missing") for run in self.missing)

    @property
    def unplanned(self) -> tuple[Run, ...]:
        """The runs that do not carry the plan's hash: nothing says that they were planned before they were made."""
        return tuple(run for run in self.runs.values() if run.facts and run.facts.get("plan") is None)

    @property
    def decided(self) -> bool:
        """Whether the plan was there before all of its runs: else there are no verdicts."""
        return self.planned and not self.unplanned

    def of(self, arm: Arm, game: str | None = None) -> list[Run]:
        """Return the runs of an arm, of one game or all, in the order of seeds."""
        return [run for (of, at, _), run in self.runs.items() if of == arm and game in (None, at)]

    def finals(self, arm: Arm, game: str) -> Array:
        """Return every final return that there is, (runs,)."""
        return np.array([run.final_return for run in self.of(arm, game) if run.final_return is not None], np.float64)

    def matrix(self, arm: Arm, games: Sequence[str], seeds: Sequence[int], what: str = "final_return") -> Array:
        """Return the final returns (or "area") of an arm, (seeds, games).

        Raises:
            RequestError: a cell has none; it lists them.
        """
        rows = [[getattr(self.runs[arm, game, seed], what) for game in games] for seed in seeds]
        gaps = [
            f"{arm.name} {game} seed {seed}"
            for seed, row in zip(seeds, rows, strict=True)
            for game, value in zip(games, row, strict=True)
            if value is None
        ]
        if gaps:
            more = f" and {len(gaps) - 10} more" if len(gaps) > 10 else ""
            raise RequestError(f"these cells have no result: {', '.join(gaps[:10])}{more}; finish them first")
        return np.array(rows, np.float64).reshape(len(seeds), len(games))

    def block(self, arms: Sequence[Arm], games: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Return the seeds and the games, of those given, of which every cell of these arms has a result.

        Games without a single complete seed are left out; of the others, the seeds that are complete in all.
        """
        whole = {
            game: {
                seed
                for seed in self.plan.seeds
                if all(self.runs[arm, game, seed].final_return is not None for arm in arms)
            }
            for game in games
        }
        begun = tuple(game for game, seeds in whole.items() if seeds)
        seeds = tuple(seed for seed in self.plan.seeds if begun and all(seed in whole[game] for game in begun))
        return seeds, begun if seeds else ()


def read_evidence(out: Path) -> Evidence:
    """Read a comparison: by its plan, or without one whatever runs lie below the folder.

    Raises:
        RequestError: there are no runs, what they are must not be mixed, or a number is none.
    """
    if not out.is_dir():
        raise RequestError(f"there is no folder {out}; give the one that holds the runs, or its plan.json")
    planned = (out / PLAN_FILE).is_file()
    folders = find_runs(out)
    if not planned and not folders:
        raise RequestError(f"{out} holds no runs and no {PLAN_FILE}; give the folder that train or compare wrote to")
    plan = read_plan(out) if planned else _plan_of(out, folders)
    _check_criteria(plan)
    where = {cell.folder: cell.path(out) for cell in plan.runs} if planned else _places(folders)
    runs: dict[tuple[Arm, str, int], Run] = {}
    for cell in plan.runs:
        path = where.get(cell.folder)
        run = read_run(cell, RunFolder(path)) if path else Run(cell, "missing", note="not started")
        if planned:
            _check_plan(run, plan)
        runs[cell.arm, cell.spec.game, cell.spec.seed] = run
    seen = {arm for (arm, _, _), run in runs.items() if planned or run.state != "missing"}
    strangers = len({folder.path for folder in folders} - set(where.values()))
    return Evidence(
        plan=plan,
        planned=planned,
        arms=tuple(arm for arm in plan.arms() if arm in seen),
        pairs=tuple(pair for pair in plan.pairs() if set(pair) <= seen),
        runs={key: run for key, run in runs.items() if key[0] in seen},
        notes=tuple(_notes(plan, planned, list(runs.values()), strangers)),
        attempts=count_attempts(out),
        recipes=tuple(agent for agent in plan.agents if recipe_copy(out, agent).is_file()),
    )


def _places(folders: Iterable[RunFolder]) -> dict[str, Path]:
    """Find where each run lies, by where its spec says that it should: a copied folder may lack upper levels."""
    return {folder.read_spec().folder(Path()).as_posix(): folder.path for folder in folders}


def _plan_of(out: Path, folders: Sequence[RunFolder]) -> Plan:
    """Make the plan that runs without one look like, refusing what must not be mixed."""
    specs = [folder.read_spec() for folder in folders]
    first = specs[0]
    for spec, folder in zip(specs, folders, strict=True):
        for name in ("protocol", "steps"):
            mine, theirs = getattr(first, name), getattr(spec, name)
            if mine != theirs:
                raise RequestError(
                    f"{out} mixes {name}: {theirs} in {folder.path} and {mine} in {folders[0].path}; they are never compared."
                    " Report one at a time"
                )
    settings = {spec.agent: spec for spec in reversed(specs)}
    for spec, folder in zip(specs, folders, strict=True):
        alike = replace(settings[spec.agent], game=spec.game, seed=spec.seed, extractor=spec.extractor)
        if alike != spec:
            raise RequestError(
                f"{folder.path} has other settings than other runs of {spec.agent}: {'; '.join(alike.differences(spec))}. They"
                " are never mixed; report one kind at a time"
            )
    if len(set(map(_identity, specs))) < len(specs):
        twice = next(spec for spec in specs if list(map(_identity, specs)).count(_identity(spec)) > 1)
        raise RequestError(f"{out} holds {twice.folder(Path())} more than once; a run counts once. Move one away")
    games = _in_order({spec.game for spec in specs}, [game for suite in SUITES.values() for game in suite])
    agents = sorted({spec.agent for spec in specs})
    extractors = _in_order({spec.extractor for spec in specs}, EXTRACTOR_SUMMARIES)
    seeds = sorted({spec.seed for spec in specs})
    cells = [
        replace(settings[agent], game=game, extractor=extractor, seed=seed)
        for seed in seeds
        for game in games
        for agent in agents
        for extractor in extractors
    ]
    return Plan(
        suite="",
        games=tuple(games),
        agents=tuple(agents),
        extractors=tuple(extractors),
        seeds=tuple(seeds),
        steps=first.steps,
        protocol=first.protocol,
        overrides=(),
        control=choose_control(extractors),
        question="",
        better="",
        tests=(),
        exclusions=(),
        alpha=ALPHA,
        fewest_seeds=FEWEST,
        interval=INTERVAL,
        references=known_references(games),
        eval_every=0,
        eval_episodes=0,
        checkpoint_every=0,
        runs=tuple(Cell(spec, spec.folder(Path()).as_posix()) for spec in cells),
    )


def _identity(spec: Spec) -> tuple[str, str, str, int]:
    """Return what tells the runs of one comparison apart."""
    return spec.agent, spec.extractor, spec.game, spec.seed


def _in_order(names: set[str], order: Iterable[str]) -> list[str]:
    """Sort names by an order, those that it does not know behind, by alphabet."""
    known = list(dict.fromkeys(order))
    return sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))


def _check_criteria(plan: Plan) -> None:
    """Check that this version judges runs as the plan says.

    Raises:
        RequestError: it would judge them otherwise.
    """
    mine = {"alpha": ALPHA, "fewest_seeds": FEWEST, "interval": INTERVAL}
    for name, value in mine.items():
        planned = getattr(plan, name)
        if planned != value:
            raise RequestError(
                f"{PLAN_FILE} decided that {name} is {planned!r}, and this coordrl takes {value!r}; runs are judged as they"
                " were planned to be. Report with the version that wrote the plan"
            )


def _check_plan(run: Run, plan: Plan) -> None:
    """Check that a run belongs to the plan, or was made alone.

    Raises:
        RequestError: it belongs to another.
    """
    theirs = run.facts.get("plan")
    if theirs not in (None, *plan.hashes):
        raise RequestError(
            f"{run.cell.folder} belongs to the plan {theirs}, and {PLAN_FILE} is {plan.hash}; runs of two plans are never"
            " mixed"
        )


def _notes(plan: Plan, planned: bool, runs: Sequence[Run], strangers: int) -> list[str]:
    """Say what a reader should know about the folder."""
    notes = []
    alone = sum(run.facts.get("plan") is None for run in runs if run.facts)
    if planned and alone:
        notes.append(
            f"{_runs(alone)} without the plan's hash: begun one by one, with the same spec, so nobody can say that they were planned before."
        )
    if strangers:
        notes.append(f"{_runs(strangers)} in the folder beside the plan's own: not part of it, and not used.")
    odd = [run for run in runs if run.state == "finished" and run.note and run.final_return is not None]
    notes += [f"{run.cell.folder}: {run.note}." for run in odd]
    short = sum(run.final_return is not None and run.final_games < WINDOW for run in runs)
    if short:
        notes.append(
            f"{_runs(short)} with a final return over fewer than {WINDOW} games, because no more were finished."
        )
    known = [run.facts["versions"] for run in runs if "versions" in run.facts]
    for package in sorted({name for versions_of in known for name in versions_of}):
        versions = Counter(versions_of.get(package, "none") for versions_of in known)
        if len(versions) > 1:
            listed = ", ".join(f"{version} in {_runs(count)}" for version, count in versions.most_common())
            notes.append(f"The runs were made with different versions of {package}: {listed}.")
    return [*notes, *_confounded(runs)]


def _confounded(runs: Sequence[Run]) -> list[str]:
    """Say where the arms were not made alike: with other versions, or on other processors."""
    known = [run for run in runs if "versions" in run.facts and "hardware" in run.facts]
    notes = []
    for what in sorted({*(name for run in known for name in run.facts["versions"]), "processor"}):
        arms: dict[str, Counter[str]] = {}
        for run in known:
            facts = run.facts["hardware"] if what == "processor" else run.facts["versions"]
            arms.setdefault(run.cell.arm.name, Counter())[facts.get(what, "none")] += 1
        shares = {name: {value: n / counts.total() for value, n in counts.items()} for name, counts in arms.items()}
        values = {value for share in shares.values() for value in share}
        if any(
            abs(a.get(v, 0.0) - b.get(v, 0.0)) > 0.5 for v in values for a in shares.values() for b in shares.values()
        ):
            listed = "; ".join(f"{name}: {', '.join(sorted(share))}" for name, share in shares.items())
            notes.append(f"The arms differ in {what}, which may be why they differ at all: {listed}.")
    return notes


def _runs(count: int) -> str:
    """Write a number of runs."""
    return "1 run" if count == 1 else f"{count} runs"
