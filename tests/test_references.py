"""Reference scores: complete for the suite, with sources, usable for normalising."""

from __future__ import annotations

import pytest

from coordrl.errors import RequestError
from coordrl.references import published, random_and_human
from coordrl.suites import SUITES


@pytest.mark.parametrize("game", SUITES["atari9"])
def test_every_game_of_the_suite_has_random_human_and_published_a2c_and_dqn_scores(game: str) -> None:
    random, human = random_and_human(game)
    assert human > random
    zoo = {row.algorithm for row in published(game) if row.protocol == "zoo-v4"}
    assert {"A2C", "DQN"} <= zoo
    assert all(row.source for row in published(game))


def test_the_scores_are_those_of_the_sources() -> None:
    assert random_and_human("MsPacman") == (307.3, 6951.6)
    a2c = next(row for row in published("MsPacman") if row.algorithm == "A2C" and row.protocol == "zoo-v4")
    assert (a2c.mean, a2c.std, a2c.steps) == (1672.0, 613.0, 10_000_000)


def test_a_game_without_references_is_refused() -> None:
    with pytest.raises(RequestError, match="no scores of random and human play are known for Skiing"):
        random_and_human("Skiing")
    assert published("Skiing") == []
