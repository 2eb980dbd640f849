"""The plan of a comparison: every run, the question and the rules, written before anything runs.

Standard library only. The plan's hash covers all that is decided in it, how the runs will be judged included, and
each run records it: a run that was made under another plan, or a plan that was changed afterwards, cannot pass
unnoticed. Seeds may be added later, and then the plan says so: each of its `extensions` holds the hash of the plan
before it, and the plan's own hash covers them all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from coordrl.errors import OutputError, RequestError
from coordrl.files import open_own, write_json
from coordrl.recipes import Recipe, find_recipe
from coordrl.references import random_and_human
from coordrl.results import Spec
from coordrl.suites import SUITES, check_extractor, choose_protocol, find_suite

FORMAT = 2  # 1 had no criteria, and a hash without the extensions
PLAN_FILE = "plan.json"
MAX_SEEDS = 1000
_CONTROLS = ("nature", "pool")  # the extractor that others are compared with, if it is there

# How results become verdicts. They stand in every plan, and a report refuses a plan that was made with others.
ALPHA = 0.05  # of each family of tests, and 1 - the level of every interval
FEWEST = 5  # seeds an arm that a verdict over all games may rest on
INTERVAL = "symmetric studentised bootstrap, 50,000 resamples within games"  # of the primary difference


class Arm(NamedTuple):
    """One side of a comparison: an agent with an extractor."""

    agent: str
    extractor: str

    @property
    def name(self) -> str:
        """The name of its folder, for example a2c-coord."""
        return f"{self.agent}-{self.extractor}"


@dataclass(frozen=True)
class Cell:
    """One run of the matrix."""

    spec: Spec
    folder: str  # below the plan's folder, with forward slashes

    @property
    def arm(self) -> Arm:
        """The side that the run belongs to."""
        return Arm(self.spec.agent, self.spec.extractor)

    def path(self, out: Path) -> Path:
        """Return where the run lies, if the plan lies in `out`."""
        return out.joinpath(*self.folder.split("/"))


@dataclass(frozen=True)
class Extension:
    """Seeds that were added to a plan after it was first written."""

    date: str  # ISO 8601, for example 2026-11-25
    seeds_before: int
    seeds_after: int
    hash_before: str  # of the plan as it was, its own extensions included


@dataclass(frozen=True)
class Plan:
    """A comparison as it was decided: plan.json."""

    suite: str
    games: tuple[str, ...]
    agents: tuple[str, ...]
    extractors: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    protocol: str
    overrides: tuple[str, ...]  # as given to --set
    control: str  # the extractor that the others are compared with
    question: str
    better: str
    tests: tuple[str, ...]
    exclusions: tuple[str, ...]
    alpha: float  # of each family of tests, and 1 - the level of every interval
    fewest_seeds: int  # an arm, for a verdict over all games
    interval: str  # the method of the primary difference's
    references: Mapping[str, tuple[float, float]]  # random and human play, by game: 0 and 1 of normalised scores
    eval_every: int  # steps; 0 for no evaluations
    eval_episodes: int
    checkpoint_every: int  # steps
    runs: tuple[Cell, ...]  # in the order in which they are started
    extensions: tuple[Extension, ...] = ()

    @cached_property
    def hash(self) -> str:
        """The first 16 hex digits of the SHA-256 of everything, the extensions included, as canonical JSON."""
        text = json.dumps(self._data(), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
        return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]

    @property
    def hashes(self) -> tuple[str, ...]:
        """The chain: the hash of each plan that this one extends, and at its end its own. Its runs carry one of them."""
        return (*(extension.hash_before for extension in self.extensions), self.hash)

    def arms(self) -> list[Arm]:
        """Return every agent with every extractor."""
        return [Arm(agent, extractor) for agent in self.agents for extractor in self.extractors]

    def pairs(self) -> list[tuple[Arm, Arm]]:
        """Return (treatment, control) for each agent and each extractor but the control."""
        return [
            (Arm(agent, extractor), Arm(agent, self.control))
            for agent in self.agents
            for extractor in self.extractors
            if extractor != self.control
        ]

    def differences(self, other: Plan) -> list[str]:
        """Say in words where another plan differs from this one, the number of seeds and what follows from it aside."""
        mine, theirs = self._data(), other._data()
        names = [name for name in mine if name not in ("runs", "seeds", "extensions") and mine[name] != theirs[name]]
        if len(names) > 1 and "question" in names:
            names.remove("question")  # it repeats the others in words
        found = [f"{name} is {_short(mine[name])} there and {_short(theirs[name])} here" for name in names]
        specs = {cell.folder: cell.spec for cell in self.runs}
        for cell in other.runs:
            if not found and cell.folder in specs:
                found = [f"{cell.folder}: {words}" for words in specs[cell.folder].differences(cell.spec)]
        return found

    def extended(self, seeds: int, date: str) -> Plan:
        """Return the plan with more seeds, which says since when (`date`, ISO 8601) and from what.

        Raises:
            RequestError: it has as many seeds already.
        """
        before = len(self.seeds)
        if not before < seeds <= MAX_SEEDS:
            raise RequestError(f"the plan has {before} seeds; ask for more than that, and at most {MAX_SEEDS}")
        grown = tuple(range(seeds))
        specs = [cell.spec for cell in self.runs if cell.spec.seed == self.seeds[0]]
        runs = tuple(_cell(replace(spec, seed=seed)) for seed in grown for spec in specs)
        extension = Extension(date, before, seeds, self.hash)
        return replace(self, seeds=grown, runs=runs, extensions=(*self.extensions, extension))

    def before(self) -> Plan:
        """Return the plan as it was before its last extension; there must be one."""
        *earlier, last = self.extensions
        runs = tuple(cell for cell in self.runs if cell.spec.seed < last.seeds_before)
        return replace(self, seeds=self.seeds[: last.seeds_before], runs=runs, extensions=tuple(earlier))

    def _data(self) -> dict[str, Any]:
        """Return the fields as JSON holds them, without the hash."""
        data: dict[str, Any] = {"format": FORMAT, **asdict(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}


def make_plan(
    suite: str,
    agents: Sequence[str],
    extractors: Sequence[str],
    seeds: int,
    steps: int,
    *,
    protocol: str | None = None,
    overrides: Sequence[str] = (),
    eval_every: int = 250_000,
    eval_episodes: int = 10,
    checkpoint_every: int = 50_000,
) -> Plan:
    """Decide a comparison: all games of a suite x agents x extractors x seeds.

    The runs are ordered so that all arms of one seed and game are neighbours, and seeds outermost: whatever
    part of the matrix is done, its arms are balanced.

    Args:
        suite: its name, or games separated by commas.
        agents: recipes by name, or paths of .toml files.
        extractors: networks before the heads; the control is `nature`, else `pool`, else the first.
        seeds: how many; they are 0 to seeds - 1.
        steps: of each run.
        protocol: the rules of the environment; by default the first one for the games.
        overrides: "NAME=VALUE" each, for every agent.
        eval_every: steps between evaluations; 0 for none.
        eval_episodes: games in each.
        checkpoint_every: steps between checkpoints.

    Raises:
        RequestError: an unknown name, a number against its rule, the same thing twice.
    """
    games = find_suite(suite)
    if suite not in SUITES:
        suite = ",".join(games)  # one spelling of each
    rules = choose_protocol(games, protocol)
    for name, value, low, high in (
        ("seeds", seeds, 1, MAX_SEEDS),
        ("steps", steps, 1, 10**12),
        ("eval-every", eval_every, 0, 10**12),
        ("eval-episodes", eval_episodes, 1, 10**6),
        ("checkpoint-every", checkpoint_every, 1, 10**12),
    ):
        if not low <= value <= high:
            raise RequestError(f"--{name} is {value}; it is a whole number from {low} to {high:,}")
    for extractor in extractors:
        check_extractor(extractor, rules.world)
    recipes = [find_recipe(agent, overrides) for agent in agents]
    names = tuple(recipe.name for recipe in recipes)
    _check_list("agents", names)
    _check_list("extractors", extractors)
    control = choose_control(extractors)
    runs = [
        _cell(_spec(game, recipe, extractor, rules.name, seed, steps))
        for seed in range(seeds)
        for game in games
        for recipe in recipes
        for extractor in extractors
    ]
    return Plan(
        suite=suite,
        games=games,
        agents=names,
        extractors=tuple(extractors),
        seeds=tuple(range(seeds)),
        steps=steps,
        protocol=rules.name,
        overrides=tuple(overrides),
        control=control,
        question=_question(suite, names, extractors, control, steps, rules.name),
        better=BETTER,
        tests=TESTS,
        exclusions=EXCLUSIONS,
        alpha=ALPHA,
        fewest_seeds=FEWEST,
        interval=INTERVAL,
        references=known_references(games),
        eval_every=eval_every,
        eval_episodes=eval_episodes,
        checkpoint_every=checkpoint_every,
        runs=tuple(runs),
    )


def recipe_copy(out: Path, agent: str) -> Path:
    """Return where a plan's copy of a recipe that was given by its path lies."""
    return out / "compare" / "recipes" / f"{agent}.toml"


def choose_control(extractors: Sequence[str]) -> str:
    """Return the extractor that the others are compared with: `nature`, else `pool`, else the first."""
    return next((name for name in _CONTROLS if name in extractors), extractors[0])


def known_references(games: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return the scores of random and human play of those games for which they are known."""
    found = {}
    for game in games:
        with suppress(RequestError):  # such a game is compared by itself, and not in the aggregates
            found[game] = random_and_human(game)
    return found


def read_plan(out: Path) -> Plan:
    """Read the plan of a folder.

    Raises:
        RequestError: there is none, it is of another version or damaged, or it was changed after it was written.
    """
    file = out / PLAN_FILE
    try:
        with open_own(file) as opened:
            data = json.loads(opened.read().decode())
        if data["format"] != FORMAT:
            raise RequestError(
                f"{file} has format {data['format']!r}, and this coordrl reads format {FORMAT}: another version wrote it."
                " Go on, and report, with that version; or plan anew in another folder"
            )
        plan, written = _parse(data), data["hash"]
        found = plan.hash
    except FileNotFoundError as error:
        raise RequestError(f"{out} holds no comparison: it has no {PLAN_FILE}") from error
    except RequestError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise RequestError(
            f"{file} cannot be read: {type(error).__name__}: {error}. Restore it from a copy; or, if no seeds were added since"
            " it was first written, move it away and give the same coordrl compare command: the runs stay as they are"
        ) from error
    if written != found:
        raise RequestError(
            f"{file} was changed after it was written: its hash is {found} and it says {ascii(written)[:60]}. A plan stays as it"
            " is; put it back, or plan anew in another folder"
        )
    _check_chain(file, plan)
    return plan


def write_plan(out: Path, plan: Plan) -> None:
    """Write plan.json into a folder in one move, making the folder.

    Raises:
        OutputError: it cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        data = plan._data()
        write_json(out / PLAN_FILE, {"format": data.pop("format"), "hash": plan.hash, **data})
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror or error}. Choose another --out") from error


def _check_chain(file: Path, plan: Plan) -> None:
    """Check that each extension extends what it says that it does, whoever wrote the plan's own hash."""
    while plan.extensions:
        last, earlier = plan.extensions[-1], plan.before()
        grown = earlier.seeds == tuple(range(last.seeds_before)) and last.seeds_before < last.seeds_after
        if not grown or len(plan.seeds) != last.seeds_after or earlier.hash != last.hash_before:
            raise RequestError(
                f"{file} has an extension of {last.date}, from {last.seeds_before} to {last.seeds_after} seeds, that does not"
                f" follow from the plan before it, whose hash is {earlier.hash} and not {last.hash_before}. The history of a"
                " plan stays as it is; put it back, or plan anew in another folder"
            )
        plan = earlier


# What is decided before any run. The report shows these sentences as they stand in the plan.
BETTER = (
    "Better means one thing: a higher final return, the mean raw score of the last 100 whole games of a training."
    " Over all games together, that is a higher interquartile mean of normalised final returns (0 is random play, 1"
    " a human player, or on the controls the best play), with the whole 95 % interval of the difference above 0. In one game, it is a higher mean over seeds, with a corrected p value"
    " of at most 0.05. Learning faster, or reaching a higher peak, is not better."
)
TESTS = (
    "Primary: the difference, treatment minus control, of the interquartile means (IQM) of normalised final"
    " returns over all games and seeds, with its 95 % interval from a bootstrap of seeds, stratified by game.",
    "Per game: an exact two-sided permutation test of the difference of the mean final returns, unpaired; the p values"
    " of all games and all pairs of arms are corrected together by Holm's method.",
    "Described and not tested: probability of improvement, median, mean, optimality gap, performance profile, area"
    " under the learning curve.",
)
EXCLUSIONS = (
    "No run is left out for its result.",
    "A run that diverged counts, with the mean of the last (at most 100) games that it finished before.",
    "A run that crashed goes on from its checkpoint with the same seed; if it never finishes, its cell is reported as"
    " missing, and the report as partial.",
    "A run that finished no game has no result; its cell is reported as missing.",
    "Arms are compared at the same number of steps, under the same protocol, with the same settings.",
)


def _question(
    suite: str, agents: Sequence[str], extractors: Sequence[str], control: str, steps: int, protocol: str
) -> str:
    """Put the plan's question into words."""
    treatments = [name for name in extractors if name != control]
    what = f"over the games of {suite}, after {steps:,} steps under {protocol}"
    if not treatments:
        return f"What final return does {_list(agents)} with {control} reach {what}?"
    verb = "does" if len(agents) == 1 else "do"
    return f"{verb.capitalize()} {_list(agents)} with {_list(treatments)} end better than with {control}, {what}?"


def _list(names: Sequence[str]) -> str:
    """Join names as people do: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _short(value: Any) -> str:
    """Show a value in few words, for a message on one line."""
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _check_list(what: str, names: Sequence[str]) -> None:
    """Check that a list is neither empty nor names a thing twice."""
    if not names:
        raise RequestError(f"--{what} is empty; name at least one")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RequestError(f"--{what} has {twice} twice; runs of one name would lie in one folder")


def _spec(game: str, recipe: Recipe, extractor: str, protocol: str, seed: int, steps: int) -> Spec:
    """Specify one run."""
    return Spec(game, recipe.name, recipe.algorithm, extractor, protocol, seed, steps, dict(recipe.settings))


def _cell(spec: Spec) -> Cell:
    """Place a run in the matrix."""
    return Cell(spec, spec.folder(Path()).as_posix())


def _parse(data: Mapping[str, Any]) -> Plan:
    """Turn the JSON of a plan back into a Plan; ValueError and the like where it is not one."""
    fields = {name: value for name, value in data.items() if name not in ("format", "hash")}
    runs = tuple(Cell(Spec(**run["spec"]), str(run["folder"])) for run in fields.pop("runs"))
    extensions = tuple(Extension(**extension) for extension in fields.pop("extensions"))
    references = {game: (float(random), float(human)) for game, (random, human) in fields.pop("references").items()}
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    plan = Plan(**{**fields, **lists}, runs=runs, extensions=extensions, references=references)
    if any(cell != _cell(cell.spec) for cell in runs):
        raise ValueError("a run does not lie where its spec says")
    return plan
