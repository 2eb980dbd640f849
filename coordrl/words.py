"""The report's verdicts in plain words, and how it writes numbers.

A sentence never says more than the numbers do: what was not shown is called not shown, with what these runs
could have seen.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence

from coordrl.evidence import Evidence
from coordrl.findings import POWER, GameFinding, PairFinding
from coordrl.plan import ALPHA, FEWEST, Plan
from coordrl.significance import EXACT_SEEDS, RESAMPLES
from coordrl.stats import Interval, can_claim

NONE = "\N{EN DASH}"  # where there is no number
VERDICTS = {  # a sign and words, so that colour is never needed
    "better": "▲ better",
    "worse": "▼ worse",
    "ahead": "△ ahead, no verdict",
    "behind": "▽ behind, no verdict",
    "open": "◇ not shown",
    "few": "○ too few seeds",
    "none": f"{NONE} no result",
}
_MINUS = "\N{MINUS SIGN}"


def number(value: float | None) -> str:
    """Write a score with as many digits as matter: 31,672; 17.3; 627; 0.842; an en dash for none."""
    if value is None or math.isnan(value):
        return NONE
    size = abs(value)
    digits = 0 if size >= 1000 or (size >= 10 and size == int(size)) else 1 if size >= 10 else 2 if size >= 1 else 3
    return f"{value:,.{digits}f}".replace("-", _MINUS)


def signed(value: float | None) -> str:
    """Write a difference, with its sign."""
    text = number(value)
    return f"+{text}" if value is not None and value > 0 and any(digit in text for digit in "123456789") else text


def share(value: float) -> str:
    """Write a probability."""
    return f"{value:.2f}"


def p_value(value: float | None) -> str:
    """Write a p value: 0.043, or that it is less than 0.001."""
    if value is None:
        return NONE
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def one_in(probability: float) -> str:
    """Write a small probability: 1 in 10,264."""
    return f"1 in {1 / probability:,.0f}" if probability < 0.1 else f"{min(probability, 1.0):.2f}"


def between(interval: Interval | None, write: object = None) -> str:
    """Write the ends of an interval: 0.31 to 0.52; an en dash for none."""
    if interval is None or math.isnan(interval.low):
        return NONE
    show = {None: number, "signed": signed, "share": share}[write if isinstance(write, str) else None]
    return f"{show(interval.low)} to {show(interval.high)}"


def listed(names: Sequence[str], none: str = "none") -> str:
    """Join names as people do: a, b and c."""
    if not names:
        return none
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def counted(count: int, what: str) -> str:
    """Write a count of things: 1 seed, 10 seeds."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def headline(pair: PairFinding, *, partial: bool, ended: bool = False) -> str:
    """Answer the question in a few words.

    Args:
        pair: the comparison.
        partial: cells of the matrix have no result.
        ended: and no run will bring one.
    """
    who, control = pair.treatment.extractor, pair.control.extractor
    if pair.verdict == "none" and any(game.verdict != "none" for game in pair.by_game):
        return f"{who} and {control} are compared game by game alone."
    if pair.verdict == "none":
        return f"No seed of {who} and {control} is complete yet, so there is nothing to say."
    if pair.verdict == "few":
        return f"One seed an arm says nothing about {who} against {control}."
    if len(pair.seeds) < FEWEST and pair.verdict != "open":
        said = {"better": "above", "worse": "below"}[pair.verdict]
        return f"{who} lies {said} {control} in {counted(len(pair.seeds), 'seed')}, which are too few to rest on."
    if partial:
        said = {"better": "ahead of", "worse": "behind", "open": "not told apart from"}[pair.verdict]
        why = "Some runs ended without a result" if ended else "The comparison is not finished"
        return f"{'' if ended else 'So far '}{who} is {said} {control}. {why}: this is a look, not a verdict."
    if pair.verdict == "open":
        return f"No difference between {who} and {control} is shown."
    if not pair.settled:
        said = {"better": "above", "worse": "below"}[pair.verdict]
        return (
            f"{who} lies {said} {control} in these runs, not all of which were planned: a description, not a verdict."
        )
    over = f" over {len(pair.games)} of {counted(len(pair.by_game), 'game')}" if pair.left_out else ""
    return f"{who} ends {pair.verdict} than {control}{over}."


def overall(pair: PairFinding, unit: str) -> list[str]:
    """Say what the primary comparison found, with its uncertainty, and whether the other summaries agree.

    Args:
        pair: the comparison.
        unit: what a normalised score of 1 is, for example "a human".
    """
    who, control = pair.treatment.extractor, pair.control.extractor
    if not pair.differences and any(game.verdict != "none" for game in pair.by_game):
        return [
            "There is no verdict over all games: no complete seed, or no scores of random and human play to scale by."
        ]
    if not pair.differences:
        return ["No cell of both arms has a result on the same game and seed."]
    difference = pair.differences["IQM"]
    over = f"Over {counted(len(pair.games), 'game')} and {counted(len(pair.seeds), 'seed')} an arm"
    gap = f"the interquartile mean of {who} minus that of {control} is {signed(difference.estimate)}"
    if math.isnan(difference.low):
        return [f"{over}, {gap} on a scale where 0 is random play and 1 is {unit}. One seed has no interval."]
    sentences = [
        f"{over}, {gap} on a scale where 0 is random play and 1 is {unit}"
        f" (95 % interval {between(difference, 'signed')})."
    ]
    if pair.left_out:
        sentences.append(
            f"{listed(pair.left_out)} {'is' if len(pair.left_out) == 1 else 'are'} not in it, for want of a complete seed, or of"
            " scores of random and human play to scale by."
        )
    if pair.verdict == "open":
        sentences.append(
            f"The interval holds 0: these runs fit a loss of {number(max(-difference.low, 0.0))} as well as a gain of"
            f" {number(max(difference.high, 0.0))}. That is no proof that the two are equal."
        )
    if pair.improvement is not None:
        chance = pair.improvement
        tossed = ", which holds an even chance" if chance.low <= 0.5 <= chance.high else ""
        sentences.append(
            f"A run with {who} beats a run with {control} on the same game with probability {share(chance.estimate)}"
            f" (95 % interval {between(chance, 'share')}{tossed})."
        )
    against = _against(pair)
    if against:
        sentences.append(f"Not every summary points the same way: {listed(against)}.")
    rivals = pair.n_tests // max(len(pair.by_game), 1)
    if rivals > 1:
        by_chance = 100 * (1 - 0.95**rivals)
        sentences.append(
            f"This is one of {rivals} such comparisons, whose intervals are not corrected for each other: without any"
            f" difference, up to {by_chance:.0f} % of plans like this would show at least one."
        )
    return sentences


def _against(pair: PairFinding) -> list[str]:
    """List the other summaries that point the other way."""
    sign = math.copysign(1.0, pair.differences["IQM"].estimate)
    found = []
    for name in ("median", "mean", "optimality gap"):
        estimate = pair.differences[name].estimate * (-1 if name == "optimality gap" else 1)
        if estimate * sign < 0:
            found.append(f"the {name} differs by {signed(pair.differences[name].estimate)}")
    if pair.area is not None and pair.area.estimate * sign < 0:
        found.append(f"the area under the curve by {signed(pair.area.estimate)}")
    if pair.improvement is not None and (pair.improvement.estimate - 0.5) * sign < 0:
        found.append(f"the probability of improvement is {share(pair.improvement.estimate)}")
    return found


def by_game(pair: PairFinding) -> str:
    """Sum the games' verdicts up."""
    groups: dict[str, list[str]] = {name: [] for name in VERDICTS}
    for game in pair.by_game:
        groups[game.verdict].append(game.game)
    parts = []
    if groups["few"]:
        parts.append(f"too few seeds to claim anything in {_games(groups['few'], pair, 'any game')}")
    undecided = sum(len(groups[name]) for name in ("few", "none", "ahead", "behind"))
    for name in ("better", "worse"):
        if groups[name] or undecided < len(pair.by_game):
            parts.append(f"{name} in {_games(groups[name], pair, 'every game')}")
    for name in ("ahead", "behind"):
        if groups[name]:
            parts.append(f"{name} in {_games(groups[name], pair, 'every game')}, which is no verdict")
    if groups["open"]:
        parts.append(f"not shown in {_games(groups['open'], pair, 'any game')}")
    if groups["none"]:
        parts.append(f"no result in {_games(groups['none'], pair, 'any game')}")
    return f"Game by game, corrected for {counted(pair.n_tests, 'test')}: {'; '.join(parts)}."


def _games(names: Sequence[str], pair: PairFinding, every: str) -> str:
    """List games, or say that these are all."""
    return every if len(names) == len(pair.by_game) > 1 else listed(names)


def game_sentence(game: GameFinding, pair: PairFinding) -> str:
    """Say what one game shows, in plain words."""
    who, control = game.treatment.arm.extractor, game.control.arm.extractor
    sizes = len(game.treatment.values), len(game.control.values)
    if game.verdict == "none":
        return (
            f"{counted(sizes[0], 'result')} of {who}, {counted(sizes[1], 'result')} of {control}: nothing to compare."
        )
    if game.difference is None:
        return f"{who} {number(game.treatment.centre)}, {control} {number(game.control.centre)}: one seed says nothing."
    told = f"{signed(game.difference.estimate)} points (95 % interval {between(game.difference, 'signed')})"
    if game.verdict == "few":
        return f"{told}; {seeds_sentence(*sizes, pair.n_tests)}"
    if game.verdict in ("better", "worse"):
        return f"{who} is {game.verdict}: {told}, corrected p {p_value(game.corrected)}."
    if game.verdict in ("ahead", "behind"):
        look = "a look at a comparison that is unplanned or lacks runs, not a verdict"
        return f"{who} is {game.verdict}: {told}, corrected p {p_value(game.corrected)}; {look}."
    missed = f"a true difference under {number(game.smallest)} points would usually be missed"
    return f"not shown: {told}, corrected p {p_value(game.corrected)}; {missed}."


def seeds_sentence(n_x: int, n_y: int, n_tests: int) -> str:
    """Say that so many seeds can never give a claim for one game."""
    needed = next((n for n in range(2, 200) if can_claim(n, n, n_tests, ALPHA)), None)
    more = f"; {needed} an arm could" if needed else ""
    return f"with {n_x} against {n_y} seeds no result, however clear, passes the correction for {n_tests} tests{more}."


def power_sentences(pair: PairFinding) -> list[str]:
    """Say what this number of seeds could have seen at all."""
    if pair.sizes is None or pair.smallest_p is None or pair.smallest is None:
        return [
            "With fewer than two seeds an arm there is no test, and no difference of any size could have been seen."
        ]
    n_x, n_y = pair.sizes
    fewer = [game.game for game in pair.by_game if min(len(game.treatment.values), len(game.control.values)) < 2]
    none = [f"In {listed(fewer)} an arm has fewer than two seeds, and there is no test."] if fewer else []
    test = "exact test" if n_x + n_y <= EXACT_SEEDS else f"test of {RESAMPLES:,} random arrangements"
    first = (
        f"With {n_x} against {n_y} seeds the smallest p value that one game's {test} can give is"
        f" {one_in(pair.smallest_p)}; corrected for {counted(pair.n_tests, 'test')}, {one_in(pair.smallest_p * pair.n_tests)}."
    )
    if math.isinf(pair.smallest):
        return [first, seeds_sentence(n_x, n_y, pair.n_tests).capitalize(), *none]
    second = (
        f"After the correction, one game's test finds a true difference of {pair.smallest:.1f} standard deviations"
        f" between seeds with a probability of {100 * POWER:.0f} %. A smaller one is usually missed. What that is in points of"
        " each game stands in the table, under “could see”."
    )
    return [first, second, *none]


def partial_sentence(evidence: Evidence) -> str:
    """Say how much of the matrix is missing, or "" if nothing is."""
    if not evidence.missing:
        return ""
    gaps = len(evidence.missing)
    left = sum(run.state in ("unfinished", "missing") for run in evidence.missing)
    empty = gaps - left  # they came to their end, and no game did
    reasons = [f"{left:,} did not finish"] if left else []
    reasons += [f"{empty:,} finished no game"] if empty else []
    missing = f"{counted(gaps, 'run')} of {len(evidence.runs):,} {'has' if gaps == 1 else 'have'} no result"
    if not left:
        return f"{missing}: {listed(reasons)}. Nothing can be said of what they stand for, and the rest is no verdict."
    return (
        f"{missing}: {listed(reasons)}. Whoever looks at unfinished runs and stops when they please finds differences"
        " where there are none: nothing here is a verdict before the matrix is complete."
    )


def unplanned(evidence: Evidence) -> str:
    """Say which runs the plan does not vouch for."""
    alone = len(evidence.unplanned)
    return (
        f"{counted(alone, 'run')} of {len(evidence.runs):,} {'was' if alone == 1 else 'were'} begun one by one and"
        f" {'does' if alone == 1 else 'do'} not carry the plan's hash: nothing says that the question, the games, the"
        " seeds and the tests were chosen before their results were seen. Read it as a description. A comparison with a"
        " verdict has a folder of its own, whose runs coordrl compare begins."
    )


def carriers(evidence: Evidence) -> str:
    """Say which runs carry the plan's hash."""
    before = ", or that of a plan before" if evidence.plan.extensions else ""
    alone = len(evidence.unplanned)
    if not alone:
        return f"each run carries it{before}"
    return f"{alone:,} of {counted(len(evidence.runs), 'run')} {'does' if alone == 1 else 'do'} not carry it{before}"


def criteria(plan: Plan) -> list[str]:
    """Say by what numbers the plan judges."""
    scale = "; ".join(
        f"{game} {random:,.10g} and {human:,.10g}".replace("-", _MINUS)
        for game, (random, human) in plan.references.items()
    )
    return [
        f"The interval of the primary difference: {plan.interval}, at {100 * (1 - plan.alpha):g} %.",
        f"A verdict over all games takes {counted(plan.fewest_seeds, 'seed')} an arm at least.",
        f"0 and 1 of normalised returns, by game: {scale or 'not known for these games'}.",
    ]


def compare_command(evidence: Evidence, out: str) -> str:
    """Return the command that makes the runs, or goes on with them; agents given by path are taken from their copies.

    Args:
        evidence: the runs.
        out: their folder, as commands name it.
    """
    plan = evidence.plan
    agents = [
        agent if agent not in evidence.recipes else f"{out}/compare/recipes/{agent}.toml" for agent in plan.agents
    ]
    words = [
        *("python", "-m", "coordrl.compare", "--suite", plan.suite, "--agents", ",".join(agents)),
        *("--extractors", ",".join(plan.extractors), "--seeds", str(len(plan.seeds)), "--steps", str(plan.steps)),
        *("--protocol", plan.protocol, "--eval-every", str(plan.eval_every)),
        *("--eval-episodes", str(plan.eval_episodes), "--checkpoint-every", str(plan.checkpoint_every)),
        *(("--set", *plan.overrides) if plan.overrides else ()),
        *("--out", out),
    ]
    return shlex.join(words)
