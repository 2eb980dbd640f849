"""What the evidence says: every number of the report with its interval, and a verdict for each game and overall.

The plan decided what "better" means; here it is computed, and nothing is called shown that is not. All
resampling draws from generators of its own, seeded by what is computed: the same runs give the same report.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from coordrl import stats
from coordrl.evidence import Evidence
from coordrl.plan import ALPHA, FEWEST, Arm
from coordrl.record import POINTS, Run
from coordrl.stats import Interval

POWER = 0.8  # with which the smallest effect would be seen
Array = NDArray[np.float64]

AGGREGATES = {"IQM": stats.iqm, "median": stats.median, "mean": stats.mean, "optimality gap": stats.optimality_gap}


@dataclass(frozen=True)
class Band:
    """A curve over the points of a training, with its 95 % interval over seeds (Student's t at each point)."""

    steps: Array  # (POINTS,)
    mean: Array  # (POINTS,), NaN where no run has a value
    low: Array  # (POINTS,), NaN where fewer than two have
    high: Array
    runs: NDArray[np.int64]  # (POINTS,), how many have


@dataclass(frozen=True)
class Side:
    """One arm on one game: its final returns."""

    arm: Arm
    game: str
    values: Array  # (runs,)
    mean: Interval | None  # None without two results
    curve: Band

    @property
    def centre(self) -> float:
        """The mean final return; NaN without a result."""
        return float(self.values.mean()) if len(self.values) else math.nan


@dataclass(frozen=True)
class GameFinding:
    """Treatment against control on one game."""

    game: str
    treatment: Side
    control: Side
    difference: Interval | None  # of the means, raw score
    improvement: Interval | None  # probability that a run of the treatment beats one of the control
    p_value: float | None
    exact: bool
    corrected: float | None  # the p value after Holm's correction over all games and pairs
    smallest: float | None  # the smallest true difference, in points of score, that would be seen with 80 % power
    verdict: str  # better, worse; ahead, behind: the same before the planned matrix is complete; open, few, none


@dataclass(frozen=True)
class PairFinding:
    """Treatment against control over all games, and game by game."""

    treatment: Arm
    control: Arm
    seeds: tuple[int, ...]  # of the block that the aggregates are over
    games: tuple[str, ...]
    differences: Mapping[str, Interval]  # of each aggregate, "IQM" the primary one
    area: Interval | None  # difference of the IQMs of human-normalised areas under the curve
    improvement: Interval | None
    by_game: tuple[GameFinding, ...]
    verdict: str  # better, worse, open, few, none
    n_tests: int  # that the p values are corrected for
    smallest: float | None  # effect that one game's test would see with 80 % power, in standard deviations
    smallest_p: float | None  # the least that one game's test can give, uncorrected
    settled: bool  # whether the verdict may be rested on: planned, a complete matrix, and not too few seeds

    @property
    def left_out(self) -> tuple[str, ...]:
        """The games that the aggregates are not over."""
        return tuple(game.game for game in self.by_game if game.game not in self.games)

    @property
    def sizes(self) -> tuple[int, int] | None:
        """How many results each side has in the game with the fewest that can be tested; None if none can be."""
        every = ((len(game.treatment.values), len(game.control.values)) for game in self.by_game)
        return min((sizes for sizes in every if min(sizes) > 1), key=sum, default=None)

    @property
    def shown(self) -> str:
        """The verdict as a figure or a colour may show it: open where it is not settled."""
        return self.verdict if self.settled or self.verdict not in ("better", "worse") else "open"


@dataclass(frozen=True)
class Profile:
    """The share of runs above each human-normalised score."""

    thresholds: Array
    share: Mapping[Arm, Array]
    low: Mapping[Arm, Array]
    high: Mapping[Arm, Array]


@dataclass(frozen=True)
class AgentFinding:
    """All arms of one agent: what they reach together, and against the control."""

    agent: str
    arms: tuple[Arm, ...]
    sides: Mapping[tuple[Arm, str], Side]
    seeds: tuple[int, ...]  # of the block that the aggregates are over
    games: tuple[str, ...]
    aggregates: Mapping[Arm, Mapping[str, Interval]]
    profile: Profile | None
    ratios: Mapping[tuple[Arm, str], Band]  # of arms that see coordinates
    pairs: tuple[PairFinding, ...]


@dataclass(frozen=True)
class Findings:
    """Everything that the report says."""

    evidence: Evidence
    agents: tuple[AgentFinding, ...]
    unreferenced: tuple[str, ...]  # games without scores of random and human play: not in the aggregates


def find(evidence: Evidence, *, resamples: int = stats.RESAMPLES) -> Findings:
    """Compute everything, each interval from so many resamples."""
    plan = evidence.plan
    references = {game: plan.references[game] for game in plan.games if game in plan.references}
    unreferenced = tuple(game for game in plan.games if game not in references)
    agents = tuple(_find_agent(evidence, agent, references, resamples) for agent in plan.agents)
    return Findings(evidence, _correct(agents, final=evidence.decided and not evidence.missing), unreferenced)


def band(curves: Sequence[Array], steps: int) -> Band:
    """Return the mean of curves with its 95 % interval; a point counts the runs that have a value there."""
    stacked = np.array(curves, np.float64).reshape(-1, POINTS)
    there = ~np.isnan(stacked)
    runs = there.sum(axis=0)
    total = np.where(there, stacked, 0.0).sum(axis=0)
    mean = np.divide(total, runs, out=np.full(POINTS, np.nan), where=runs > 0)
    squares = np.where(there, (stacked - mean) ** 2, 0.0).sum(axis=0)
    spread = np.sqrt(np.divide(squares, runs - 1, out=np.full(POINTS, np.nan), where=runs > 1))
    half = np.full(POINTS, np.nan)
    enough = runs > 1
    half[enough] = stdtrit(runs[enough] - 1, 1 - ALPHA / 2) * spread[enough] / np.sqrt(runs[enough])
    points = np.arange(1, POINTS + 1, dtype=np.float64) * (steps / POINTS)
    return Band(points, mean, mean - half, mean + half, runs)


def _find_agent(
    evidence: Evidence, agent: str, references: Mapping[str, tuple[float, float]], resamples: int
) -> AgentFinding:
    """Compute what one agent's arms reach."""
    plan = evidence.plan
    arms = tuple(arm for arm in evidence.arms if arm.agent == agent)
    sides = {(arm, game): _side(evidence, arm, game, resamples) for arm in arms for game in plan.games}
    seeds, games = evidence.block(arms, tuple(references))
    scores = {arm: _normalised(evidence, arm, seeds, games, references) for arm in arms} if seeds else {}
    aggregates = {
        arm: {
            name: stats.bootstrap(matrix, statistic, _rng(arm.name, name), resamples=resamples)
            if len(seeds) > 1
            else Interval(float(statistic(matrix)), math.nan, math.nan, "")
            for name, statistic in AGGREGATES.items()
        }
        for arm, matrix in scores.items()
    }
    ratios = {}
    for arm in arms:
        for game in plan.games:
            curves = [run.ratio for run in evidence.of(arm, game) if run.ratio is not None]
            if curves:
                ratios[arm, game] = band(curves, plan.steps)
    pairs = tuple(
        _find_pair(evidence, treatment, control, sides, references, resamples)
        for treatment, control in evidence.pairs
        if treatment.agent == agent
    )
    profile = _profile(scores, resamples) if scores else None
    return AgentFinding(agent, arms, sides, seeds, games, aggregates, profile, ratios, pairs)


def _side(evidence: Evidence, arm: Arm, game: str, resamples: int) -> Side:
    """Collect one arm's runs on one game."""
    values = evidence.finals(arm, game)
    interval = None
    if len(values) > 1:
        interval = stats.bootstrap(values[:, None], stats.mean, _rng(arm.name, game), resamples=resamples)
    curve = band([run.curve for run in evidence.of(arm, game)], evidence.plan.steps)
    return Side(arm, game, values, interval, curve)


def _normalised(
    evidence: Evidence,
    arm: Arm,
    seeds: Sequence[int],
    games: Sequence[str],
    references: Mapping[str, tuple[float, float]],
    what: str = "final_return",
) -> Array:
    """Return human-normalised results, (seeds, games)."""
    random, human = np.array([references[game] for game in games]).T
    return stats.normalise(evidence.matrix(arm, games, seeds, what), random, human)


def _find_pair(
    evidence: Evidence,
    treatment: Arm,
    control: Arm,
    sides: Mapping[tuple[Arm, str], Side],
    references: Mapping[str, tuple[float, float]],
    resamples: int,
) -> PairFinding:
    """Compare two arms; the p values are corrected later, when all of them are there."""
    seeds, games = evidence.block((treatment, control), tuple(references))
    differences: dict[str, Interval] = {}
    area = improvement = None
    name = f"{treatment.name} {control.name}"
    if seeds:
        x, y = (_normalised(evidence, arm, seeds, games, references) for arm in (treatment, control))
        for what, statistic in AGGREGATES.items():
            differences[what] = (
                stats.bootstrap_difference(x, y, statistic, _rng(name, what), resamples=resamples)
                if len(seeds) > 1
                else Interval(float(statistic(x) - statistic(y)), math.nan, math.nan, "")
            )
        if len(seeds) > 1:
            improvement = stats.bootstrap_improvement(x, y, _rng(name, "improvement"), resamples=resamples)
            if all(
                evidence.runs[arm, g, s].area is not None for arm in (treatment, control) for g in games for s in seeds
            ):
                u, v = (_normalised(evidence, arm, seeds, games, references, "area") for arm in (treatment, control))
                area = stats.bootstrap_difference(u, v, stats.iqm, _rng(name, "area"), resamples=resamples)
    by_game = tuple(
        _find_game(sides[treatment, game], sides[control, game], name, resamples) for game in evidence.plan.games
    )
    verdict = "none"
    if differences:
        verdict = _verdict(differences["IQM"]) if len(seeds) > 1 else "few"
    settled = evidence.decided and not evidence.missing and len(seeds) >= FEWEST
    return PairFinding(
        treatment, control, seeds, games, differences, area, improvement, by_game, verdict, 0, None, None, settled
    )


def _find_game(treatment: Side, control: Side, name: str, resamples: int) -> GameFinding:
    """Compare two arms on one game, without a verdict yet."""
    x, y = treatment.values, control.values
    difference = improvement = p_value = None
    exact = False
    if len(x) > 1 and len(y) > 1:
        columns = x[:, None], y[:, None]
        key = (name, treatment.game)
        difference = stats.bootstrap_difference(*columns, stats.mean, _rng(*key, "difference"), resamples=resamples)
        improvement = stats.bootstrap_improvement(*columns, _rng(*key, "improvement"), resamples=resamples)
        test = stats.permutation_test(x, y, _rng(*key, "permutations"))
        p_value, exact = test.p_value, test.exact
    return GameFinding(treatment.game, treatment, control, difference, improvement, p_value, exact, None, None, "none")


def _correct(agents: tuple[AgentFinding, ...], *, final: bool) -> tuple[AgentFinding, ...]:
    """Correct the p values of all games and pairs together, and give each game its verdict.

    Until the data are `final`, planned and complete, who looks again and again would find a difference in the end.
    """
    tested = [game for agent in agents for pair in agent.pairs for game in pair.by_game if game.p_value is not None]
    n_tests = sum(len(pair.by_game) for agent in agents for pair in agent.pairs)
    # A test that is planned and cannot be made yet counts as one that shows nothing: not as no test.
    planned = np.array([*(game.p_value for game in tested), *[1.0] * (n_tests - len(tested))], dtype=np.float64)
    adjusted = stats.holm(planned)[: len(tested)] if n_tests else planned
    corrected = {(game.treatment.arm, game.game): float(p) for game, p in zip(tested, adjusted, strict=True)}

    def judge(game: GameFinding) -> GameFinding:
        x, y = game.treatment.values, game.control.values
        if game.difference is None:
            return replace(game, verdict="few" if len(x) and len(y) else "none")
        pooled = math.sqrt(((len(x) - 1) * x.var(ddof=1) + (len(y) - 1) * y.var(ddof=1)) / (len(x) + len(y) - 2))
        smallest = stats.smallest_effect(len(x), len(y), alpha=ALPHA / n_tests, power=POWER) * pooled
        p = corrected[game.treatment.arm, game.game]
        verdict = "open"
        if not stats.can_claim(len(x), len(y), n_tests, ALPHA):
            verdict = "few"
        elif p <= ALPHA:
            above = game.difference.estimate > 0
            verdict = ("better" if above else "worse") if final else ("ahead" if above else "behind")
        return replace(game, corrected=p, smallest=smallest, verdict=verdict)

    def judge_pair(pair: PairFinding) -> PairFinding:
        smallest = smallest_p = None
        if sizes := pair.sizes:
            smallest = stats.smallest_effect(*sizes, alpha=ALPHA / n_tests, power=POWER)
            smallest_p = stats.smallest_p_value(*sizes)
        by_game = tuple(judge(game) for game in pair.by_game)
        return replace(pair, by_game=by_game, n_tests=n_tests, smallest=smallest, smallest_p=smallest_p)

    return tuple(replace(agent, pairs=tuple(judge_pair(pair) for pair in agent.pairs)) for agent in agents)


def _verdict(difference: Interval) -> str:
    """Say what an interval of a difference shows."""
    if difference.low > 0:
        return "better"
    return "worse" if difference.high < 0 else "open"


def _profile(scores: Mapping[Arm, Array], resamples: int) -> Profile:
    """Return the performance profile of each arm."""
    everything = np.concatenate([matrix.ravel() for matrix in scores.values()])
    low_end, high_end = min(0.0, float(everything.min())), max(float(everything.max()), 0.1)
    thresholds = np.linspace(low_end, min(high_end, 1.0), 41)
    if high_end > 1:
        thresholds = np.concatenate([thresholds, np.geomspace(1.0, high_end, 31)[1:]])
    share = {arm: stats.performance_profile(matrix, thresholds) for arm, matrix in scores.items()}
    low: dict[Arm, Array] = {}
    high: dict[Arm, Array] = {}
    for arm, matrix in scores.items():
        if len(matrix) > 1:
            low[arm], high[arm] = stats.profile_band(matrix, thresholds, _rng(arm.name, "profile"), resamples=resamples)
    return Profile(thresholds, share, low, high)


def _rng(*names: str) -> np.random.Generator:
    """Return a generator that depends on what it is for alone."""
    return np.random.default_rng([0, *(zlib.crc32(name.encode()) for name in names)])


def typical_rate(runs: Sequence[Run]) -> tuple[float, float, float] | None:
    """Return the median, least and largest steps/s of runs, or None of none."""
    rates = [run.steps_per_second for run in runs if run.steps_per_second is not None]
    return (float(np.median(rates)), min(rates), max(rates)) if rates else None
