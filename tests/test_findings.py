"""What the evidence shows, and that nothing is called shown that is not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from coordrl import words
from coordrl.evidence import Evidence
from coordrl.findings import Findings, PairFinding, band
from coordrl.findings import find as find_with
from coordrl.plan import ALPHA, INTERVAL, Arm, Plan, make_plan
from coordrl.record import POINTS, Run
from coordrl.references import random_and_human
from coordrl.suites import SUITES

NATURE, COORD = Arm("a2c", "nature"), Arm("a2c", "coord")
GAMES = SUITES["atari9"]


def evidence_of(plan: Plan, gains: Sequence[float], *, rng_seed: int = 0, without: Sequence[str] = ()) -> Evidence:
    """Make evidence in memory: normalised scores around 0.5, plus a game's gain in every arm but the control."""
    rng = np.random.default_rng(rng_seed)
    runs = {}
    for cell in plan.runs:
        random, human = random_and_human(cell.spec.game)
        gain = 0.0 if cell.spec.extractor == plan.control else gains[plan.games.index(cell.spec.game)]
        score = 0.5 + gain + 0.05 * rng.normal()
        value = random + (human - random) * score
        run = Run(cell, "finished", final_return=value, final_games=100, area=value, curve=np.full(POINTS, value))
        if cell.folder in without:
            run = Run(cell, "missing", note="not started")
        runs[cell.arm, cell.spec.game, cell.spec.seed] = run
    return Evidence(plan, True, tuple(plan.arms()), tuple(plan.pairs()), runs, ())


def plan_of(seeds: int, extractors: Sequence[str] = ("nature", "coord"), agents: Sequence[str] = ("a2c",)) -> Plan:
    return make_plan("atari9", agents, extractors, seeds, 1000)


def find(evidence: Evidence) -> Findings:
    return find_with(evidence, resamples=500)


def only(findings: Findings) -> PairFinding:
    ((pair,),) = (agent.pairs for agent in findings.agents)
    return pair


@pytest.fixture(scope="module")
def clear() -> Findings:
    """Ten seeds, a large gain in the first game, a large loss in the second, none in all others."""
    return find(evidence_of(plan_of(10), [0.5, -0.5, *[0.0] * 7]))


def test_a_clear_gain_and_a_clear_loss_are_shown_and_nothing_else_is(clear: Findings) -> None:
    pair = only(clear)
    verdicts = [game.verdict for game in pair.by_game]
    assert verdicts[:2] == ["better", "worse"]
    assert all(verdict == "open" for verdict in verdicts[2:])
    for game in pair.by_game:
        assert game.difference is not None
        assert game.corrected is not None
        assert (game.verdict != "open") == (game.corrected <= ALPHA)
        assert game.difference.estimate == pytest.approx(game.treatment.centre - game.control.centre)


def test_the_differences_are_those_of_the_normalised_scores(clear: Findings) -> None:
    pair, evidence = only(clear), clear.evidence
    scale = np.array([human - random for random, human in map(random_and_human, GAMES)])
    x, y = (evidence.matrix(arm, GAMES, range(10)) for arm in (COORD, NATURE))
    assert pair.differences["mean"].estimate == pytest.approx(((x - y) / scale).mean())
    for name, interval in pair.differences.items():
        of = {arm: clear.agents[0].aggregates[arm][name].estimate for arm in (COORD, NATURE)}
        assert interval.estimate == pytest.approx(of[COORD] - of[NATURE])
        assert interval.low < interval.estimate < interval.high
    assert pair.area is not None  # the areas of these runs are their final returns
    assert pair.area.estimate == pytest.approx(pair.differences["IQM"].estimate)


def test_the_same_runs_give_the_same_findings_whatever_the_order_of_seeds(clear: Findings) -> None:
    evidence = clear.evidence
    back = {
        key: evidence.runs[key[0], key[1], 9 - key[2]]
        for key in evidence.runs  # seed 9 as seed 0, and so on
    }
    turned = find(Evidence(evidence.plan, True, evidence.arms, evidence.pairs, back, ()))
    pair, other = only(clear), only(turned)
    assert pair.differences == other.differences
    assert pair.improvement == other.improvement
    assert [game.corrected for game in pair.by_game] == [game.corrected for game in other.by_game]


def test_five_seeds_never_claim_anything_about_one_of_nine_games() -> None:
    pair = only(find(evidence_of(plan_of(5), [5.0] * 9)))
    assert {game.verdict for game in pair.by_game} == {"few"}
    assert pair.verdict == "better"  # all games together may
    assert "too few seeds to claim anything in any game" in words.by_game(pair)
    assert "better in" not in words.by_game(pair)
    assert pair.smallest == math.inf
    (first, second) = words.power_sentences(pair)
    assert "1 in 126" in first  # 2 of the 252 ways to divide ten runs
    assert "6 an arm could" in second


def test_six_seeds_can() -> None:
    pair = only(find(evidence_of(plan_of(6), [5.0] * 9)))
    assert {game.verdict for game in pair.by_game} == {"better"}


def test_one_seed_has_no_interval_and_no_verdict() -> None:
    findings = find(evidence_of(plan_of(1), [5.0] * 9))
    pair = only(findings)
    assert pair.verdict == "few"
    assert math.isnan(pair.differences["IQM"].low)
    assert (pair.improvement, pair.area, pair.smallest, pair.smallest_p) == (None, None, None, None)
    assert all(game.difference is None and game.verdict == "few" for game in pair.by_game)
    assert words.headline(pair, partial=False) == "One seed an arm says nothing about coord against nature."
    assert "One seed has no interval." in words.overall(pair, "a human")[0]
    assert all("one seed says nothing" in words.game_sentence(game, pair) for game in pair.by_game)


def test_no_difference_is_called_not_shown_and_never_equal() -> None:
    pair = only(find(evidence_of(plan_of(8), [0.0] * 9, rng_seed=1)))
    assert pair.verdict == "open"
    assert words.headline(pair, partial=False) == "No difference between coord and nature is shown."
    assert "That is no proof that the two are equal." in " ".join(words.overall(pair, "a human"))
    assert "would usually be missed" in words.game_sentence(pair.by_game[0], pair)


def test_p_values_are_corrected_over_all_games_and_all_pairs() -> None:
    findings = find(evidence_of(plan_of(4, ["nature", "coord", "shuffled"], ["a2c", "dqn"]), [0.3] * 9))
    pairs = [pair for agent in findings.agents for pair in agent.pairs]
    assert len(pairs) == 4
    assert {pair.n_tests for pair in pairs} == {36}
    raw = [game.p_value for pair in pairs for game in pair.by_game if game.p_value is not None]
    corrected = [game.corrected for pair in pairs for game in pair.by_game if game.corrected is not None]
    assert min(corrected) == pytest.approx(min(1.0, 36 * min(raw)))


def test_tests_that_cannot_be_made_yet_count_in_the_correction() -> None:
    plan = plan_of(6)
    without = [cell.folder for cell in plan.runs if cell.spec.game != "Pong"]
    pair = only(find(evidence_of(plan, [0.05] * 9, without=without)))
    (pong,) = (game for game in pair.by_game if game.p_value is not None)
    assert pong.game == "Pong"
    assert pong.corrected == pytest.approx(min(1.0, 9 * pong.p_value))


def test_runs_without_a_plan_get_no_verdict() -> None:
    planned = evidence_of(plan_of(6), [0.5] * 9)
    pair = only(find(replace(planned, planned=False)))
    assert only(find(planned)).shown == "better"
    assert pair.shown == "open"
    assert "not all of which were planned: a description, not a verdict" in words.headline(pair, partial=False)


def test_a_single_run_that_was_begun_before_the_plan_leaves_no_verdict() -> None:
    planned = evidence_of(plan_of(6), [5.0] * 9)
    key, run = next(iter(planned.runs.items()))
    facts = {"plan": planned.plan.hash}
    carried = {where: replace(one, facts=facts) for where, one in planned.runs.items()}
    evidence = replace(planned, runs={**carried, key: replace(run, facts={"plan": None})})
    assert only(find(replace(planned, runs=carried))).shown == "better"
    pair = only(find(evidence))
    assert pair.shown == "open"
    assert {game.verdict for game in pair.by_game} == {"ahead"}
    assert "not all of which were planned" in words.headline(pair, partial=False)
    assert words.carriers(evidence) == "1 of 108 runs does not carry it"
    assert words.unplanned(evidence).startswith("1 run of 108 was begun one by one and does not carry the plan's hash")


def test_a_missing_cell_costs_its_seed_in_the_aggregates_and_nothing_else() -> None:
    plan = plan_of(6)
    gone = next(cell.folder for cell in plan.runs if (cell.arm, cell.spec.game, cell.spec.seed) == (COORD, "Pong", 4))
    findings = find(evidence_of(plan, [0.0] * 9, without=[gone]))
    pair = only(findings)
    assert pair.seeds == (0, 1, 2, 3, 5)
    assert pair.games == GAMES
    sizes = {game.game: (len(game.treatment.values), len(game.control.values)) for game in pair.by_game}
    assert sizes["Pong"] == (5, 6)
    assert sizes["Qbert"] == (6, 6)
    said = words.headline(pair, partial=True)
    assert "not a verdict" in said
    assert words.partial_sentence(findings.evidence).startswith("1 run of 108 has no result: 1 did not finish.")


def test_runs_without_a_game_are_told_from_runs_that_did_not_finish() -> None:
    plan = plan_of(2)
    evidence = evidence_of(plan, [0.0] * 9, without=[plan.runs[0].folder])
    key = (plan.runs[1].arm, plan.runs[1].spec.game, 0)
    empty = {key: replace(evidence.runs[key], final_return=None)}
    both = replace(evidence, runs={**evidence.runs, **empty})
    assert words.partial_sentence(both).startswith(
        "2 runs of 36 have no result: 1 did not finish and 1 finished no game."
    )
    alone = replace(evidence, runs={**evidence_of(plan, [0.0] * 9).runs, **empty})
    assert words.partial_sentence(alone).startswith(
        "1 run of 36 has no result: 1 finished no game. Nothing can be said"
    )


def test_what_no_run_will_bring_is_not_called_unfinished() -> None:
    plan = plan_of(6)
    evidence = evidence_of(plan, [5.0] * 9)
    key = (plan.runs[0].arm, plan.runs[0].spec.game, 0)
    empty = replace(evidence, runs={**evidence.runs, key: replace(evidence.runs[key], final_return=None)})
    assert empty.ended
    said = words.headline(only(find(empty)), partial=True, ended=empty.ended)
    assert said == "coord is ahead of nature. Some runs ended without a result: this is a look, not a verdict."
    assert not evidence_of(plan, [5.0] * 9, without=[plan.runs[0].folder]).ended


def test_a_game_with_one_seed_does_not_speak_for_the_others() -> None:
    plan = plan_of(8)
    without = [cell.folder for cell in plan.runs if cell.spec.game == "Pong" and cell.spec.seed and cell.arm == COORD]
    pair = only(find(evidence_of(plan, [5.0] * 9, without=without)))
    assert pair.sizes == (8, 8)
    assert pair.smallest is not None
    *first, last = words.power_sentences(pair)
    assert first[0].startswith("With 8 against 8 seeds the smallest p value")
    assert last == "In Pong an arm has fewer than two seeds, and there is no test."


def test_a_verdict_over_some_of_the_games_says_so() -> None:
    plan = plan_of(6)
    some = {game: ends for game, ends in plan.references.items() if game not in ("Pong", "Qbert")}
    pair = only(find(evidence_of(replace(plan, references=some), [5.0] * 9)))
    assert pair.left_out == ("Pong", "Qbert")
    assert words.headline(pair, partial=False) == "coord ends better than nature over 7 of 9 games."
    assert any(sentence.startswith("Pong and Qbert are not in it") for sentence in words.overall(pair, "a human"))


def test_nothing_finished_says_nothing() -> None:
    plan = plan_of(2)
    findings = find(evidence_of(plan, [0.0] * 9, without=[cell.folder for cell in plan.runs]))
    pair = only(findings)
    assert pair.verdict == "none"
    assert (
        words.headline(pair, partial=True) == "No seed of coord and nature is complete yet, so there is nothing to say."
    )
    assert findings.agents[0].profile is None


def test_games_without_reference_scores_are_compared_one_by_one() -> None:
    findings = find(evidence_of(replace(plan_of(8), references={}), [5.0] * 9))
    pair = only(findings)
    assert findings.unreferenced == GAMES
    assert (pair.verdict, pair.differences) == ("none", {})
    assert {game.verdict for game in pair.by_game} == {"better"}
    assert words.headline(pair, partial=False) == "coord and nature are compared game by game alone."
    assert "no scores of random and human play" in words.overall(pair, "a human")[0]


def test_scores_are_normalised_by_the_plans_own_references_and_not_by_what_is_published_since() -> None:
    plan = plan_of(6)
    wider = {game: (random, human + (human - random)) for game, (random, human) in plan.references.items()}
    usual, other = (only(find(evidence_of(one, [0.3] * 9))) for one in (plan, replace(plan, references=wider)))
    assert other.differences["IQM"].estimate == pytest.approx(usual.differences["IQM"].estimate / 2)


def test_the_primary_difference_has_the_interval_that_the_plan_names() -> None:
    assert only(find_with(evidence_of(plan_of(3), [0.3] * 9))).differences["IQM"].method == INTERVAL


def test_few_seeds_are_not_rested_on_even_where_the_interval_is_clear() -> None:
    pair = only(find(evidence_of(plan_of(3), [5.0] * 9)))
    assert (pair.verdict, pair.shown) == ("better", "open")
    assert {game.verdict for game in pair.by_game} <= {"ahead", "behind", "open", "few"}
    assert words.headline(pair, partial=False) == "coord lies above nature in 3 seeds, which are too few to rest on."


def test_summaries_that_point_the_other_way_are_named() -> None:
    # One game with an enormous loss turns the mean and leaves the interquartile mean.
    pair = only(find(evidence_of(plan_of(6), [0.3] * 8 + [-9.0])))
    assert pair.differences["IQM"].estimate > 0 > pair.differences["mean"].estimate
    assert "Not every summary points the same way: the mean differs by" in " ".join(words.overall(pair, "a human"))


def curve(*values: float) -> NDArray[np.float64]:
    filled = np.full(POINTS, np.nan)
    filled[: len(values)] = values
    return filled


def test_a_band_is_the_mean_and_students_interval_of_the_runs_that_are_there() -> None:
    whole = band([curve(1.0, 2.0, 5.0), curve(3.0, 4.0), curve(np.nan, 9.0)], 200)
    assert whole.steps[:3].tolist() == [2.0, 4.0, 6.0]
    assert whole.mean[:3].tolist() == [2.0, 5.0, 5.0]
    assert whole.runs[:4].tolist() == [2, 3, 1, 0]
    # Student's t of two values 1 and 3: 12.706 times their standard error, which is 1.
    assert whole.high[0] - whole.mean[0] == pytest.approx(12.7062, abs=1e-3)
    assert whole.low[1] == pytest.approx(5 - 4.30265 * np.std([2, 4, 9], ddof=1) / math.sqrt(3), abs=1e-4)
    assert np.isnan(whole.low[2])  # one run has no interval
    assert np.isnan(whole.mean[3])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (31672.4, "31,672"),
        (627.0, "627"),
        (17.34, "17.3"),
        (1.7, "1.70"),
        (0.0421, "0.042"),
        (-20.7, "\N{MINUS SIGN}20.7"),
        (None, "\N{EN DASH}"),
    ],
)
def test_numbers_are_written_with_the_digits_that_matter(value: float | None, text: str) -> None:
    assert words.number(value) == text


def test_a_command_that_is_printed_can_be_typed(tmp_path: Path) -> None:
    plan = make_plan("atari9", ["a2c"], ["nature", "coord"], 2, 1000, overrides=["gamma=0.9"])
    evidence = evidence_of(plan, [0.0] * 9)
    assert words.compare_command(evidence, "my runs") == (
        "python -m coordrl.compare --suite atari9 --agents a2c --extractors nature,coord --seeds 2 --steps 1000"
        " --protocol zoo-v4 --eval-every 250000 --eval-episodes 10 --checkpoint-every 50000 --set gamma=0.9 --out 'my runs'"
    )


def test_a_printed_command_names_the_copies_of_recipes_that_were_given_by_path() -> None:
    evidence = replace(evidence_of(plan_of(2), [0.0] * 9), recipes=("a2c",))
    assert " --agents runs/compare/recipes/a2c.toml --extractors" in words.compare_command(evidence, "runs")


@pytest.mark.parametrize("what", ["unplanned", "unfinished"])
def test_no_game_has_a_verdict_before_the_planned_matrix_is_complete(what: str) -> None:
    plan = plan_of(8)
    whole = evidence_of(plan, [5.0] * 9)
    if what == "unplanned":
        evidence = replace(whole, planned=False)
    else:
        evidence = evidence_of(plan, [5.0] * 9, without=[plan.runs[-1].folder])
    pair = only(find(evidence))
    assert {game.verdict for game in only(find(whole)).by_game} == {"better"}
    assert {game.verdict for game in pair.by_game} == {"ahead"}
    assert "ahead in every game, which is no verdict" in words.by_game(pair)
    assert "better in" not in words.by_game(pair)
    assert words.game_sentence(pair.by_game[0], pair).endswith("not a verdict.")
