"""Games that are played again from their seeds and actions: the state of an emulator that cannot be copied."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordrl.atari import AtariVecEnv
from coordrl.controls import ControlVecEnv
from coordrl.divided import DividedVecEnv
from coordrl.errors import ReplayError, RequestError
from coordrl.journal import Games, Journal

# Breakout's games of random play last about 200 steps, so that many end and all get new seeds in some hundred.
WORDS: dict[str, Any] = {"seed": 5, "reseed_every": 60}


def play(env: Any, steps: int, seed: int) -> list[Any]:
    """Step with random actions, and return all that can be seen."""
    rng = np.random.default_rng(seed)
    seen: list[Any] = []
    for _ in range(steps):
        observations, rewards, dones, infos = env.step(rng.integers(0, env.action_space.n, env.num_envs))
        for info in infos:
            info.get("episode", {}).pop("t", None)  # wall clock
            if "terminal_observation" in info:
                info["terminal_observation"] = info["terminal_observation"].tobytes()
        seen.append((observations.tobytes(), rewards.tolist(), dones.tolist(), infos))
    return seen


@pytest.fixture
def closing() -> Iterator[list[Any]]:
    envs: list[Any] = []
    yield envs
    for env in envs:
        env.close()


@pytest.mark.parametrize("game", ["Breakout", "Qbert", "PlaceMatters"])
@pytest.mark.parametrize("steps", [0, 1, 47, pytest.param(500, marks=pytest.mark.slow)])
def test_games_that_are_loaded_go_on_as_those_that_were_saved(game: str, steps: int, closing: list[Any]) -> None:
    def make() -> Any:
        env = ControlVecEnv(game, 3, seed=5) if game == "PlaceMatters" else AtariVecEnv(game, 3, **WORDS)
        closing.append(env)
        return env

    env = make()
    env.reset()
    before = play(env, steps, 0)
    saved = env.save_games()
    other = make()
    other.seed(99)
    other.reset()
    play(other, 30, 3)  # it comes from somewhere else
    calls: list[tuple[int, int]] = []
    observations = other.load_games(saved, lambda done, total: calls.append((done, total)))
    if steps:
        assert observations.tobytes() == before[-1][0]
    assert calls == [(step + 1, len(saved.actions)) for step in range(len(saved.actions))]
    assert other.save_games().facts == saved.facts
    assert play(other, 300, 1) == play(env, 300, 1)
    assert other.save_games().facts == env.save_games().facts  # the new seeds of the time after, too
    if game != "PlaceMatters" and steps == 500:
        assert min(saved.facts["counts"]) >= 1
        assert len(saved.actions) < 450


def test_sticky_actions_and_noops_come_again_too(closing: list[Any]) -> None:
    env, other = (AtariVecEnv("Seaquest", 2, protocol="machado-v5", **WORDS) for _ in range(2))
    closing += [env, other]
    env.reset()
    play(env, 400, 0)
    saved = env.save_games()
    assert saved is not None
    other.load_games(saved)
    assert play(other, 200, 1) == play(env, 200, 1)


@pytest.mark.slow
def test_a_divided_vector_saves_and_loads_what_an_undivided_one_does(closing: list[Any]) -> None:
    whole = AtariVecEnv("Breakout", 5, **WORDS)
    parts = DividedVecEnv("Breakout", 5, workers=2, **WORDS)
    closing += [whole, parts]
    assert whole.reset().tobytes() == parts.reset().tobytes()
    assert play(whole, 300, 0) == play(parts, 300, 0)  # new seeds are the same ones
    saved, divided = whole.save_games(), parts.save_games()
    assert saved is not None
    assert divided is not None
    assert divided.facts == saved.facts
    ages = saved.facts["ages"]
    for index, age in enumerate(ages):  # what lies before is nobody's
        assert divided.actions[len(divided.actions) - age :, index].tolist() == (
            saved.actions[len(saved.actions) - age :, index].tolist()
        )
    play(whole, 50, 1)
    play(parts, 20, 2)
    assert parts.load_games(saved).tobytes() == whole.load_games(divided).tobytes()
    assert parts.get_attr("lives") == whole.get_attr("lives")
    assert play(whole, 200, 3) == play(parts, 200, 3)


def test_a_reset_without_a_seed_can_be_played_again_as_well(closing: list[Any]) -> None:
    env, other = (AtariVecEnv("Pong", 2, **WORDS) for _ in range(2))
    closing += [env, other]
    env.reset()
    play(env, 20, 0)
    first = env.save_games()
    env.reset()
    play(env, 20, 0)
    saved = env.save_games()
    assert first is not None
    assert saved is not None
    assert saved.facts["digests"] != first.facts["digests"]
    other.load_games(saved)
    assert play(other, 50, 1) == play(env, 50, 1)


def test_without_reseeding_games_have_no_state_and_no_new_seeds(closing: list[Any]) -> None:
    env = AtariVecEnv("Pong", 2, seed=5)
    closing.append(env)
    env.reset()
    assert env.save_games() is None
    with pytest.raises(ReplayError, match="keeps no state of its games"):
        env.load_games(Games({}, np.zeros((0, 2), dtype=np.uint8)))


def test_a_state_is_saved_between_two_steps_alone(closing: list[Any]) -> None:
    env = AtariVecEnv("Pong", 2, **WORDS)
    closing.append(env)
    env.reset()
    env.step_async(np.zeros(2, dtype=np.int64))
    with pytest.raises(RequestError, match="call it between two steps"):
        env.save_games()


@pytest.mark.parametrize("every", [0, -1, 1_000_001])
def test_reseeding_takes_a_sensible_number(every: int) -> None:
    with pytest.raises(RequestError, match=f"reseed_every is {every}; it is from 1 to 1,000,000, or None"):
        AtariVecEnv("Pong", 2, reseed_every=every)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reseed_every", 0),
        ("reseed_every", 10**9),
        ("reseed_every", True),
        ("first_seeds", [1]),
        ("first_seeds", [1, -1]),
        ("first_seeds", [1, 2**31]),
        ("first_seeds", None),
        ("counts", [0, 0.5]),
        ("counts", "00"),
        ("ages", [10, 99]),
        ("ages", [3, 4]),
        ("lives", 3),
        ("digests", []),
    ],
)
def test_a_state_that_nobody_saved_is_refused_before_anything_is_played(
    name: str, value: Any, closing: list[Any]
) -> None:
    env = AtariVecEnv("Pong", 2, **WORDS)
    closing.append(env)
    env.reset()
    play(env, 10, 0)
    saved = env.save_games()
    assert saved is not None
    with pytest.raises(ReplayError, match="the state of the games is damaged"):
        env.load_games(Games({**saved.facts, name: value}, saved.actions))
    for actions in (saved.actions[:, :1], saved.actions.astype(np.int64), saved.actions[1:], saved.actions + 6):
        with pytest.raises(ReplayError, match="the state of the games is damaged"):
            env.load_games(Games(saved.facts, actions))
    with pytest.raises(RequestError, match="were never reset"):
        env.step(np.zeros(2, dtype=np.int64))
    env.reset()


@pytest.mark.parametrize("name", ["digests", "lives", "returns", "lengths", "fire_stages", "first_seeds"])
def test_games_that_lead_elsewhere_are_no_silent_success(name: str, closing: list[Any]) -> None:
    env = AtariVecEnv("Breakout", 2, **WORDS)
    closing.append(env)
    env.reset()
    play(env, 40, 0)
    saved = env.save_games()
    assert saved is not None
    wrong = [*saved.facts[name]]
    wrong[1] = "x" if name == "digests" else wrong[1] + 1
    with pytest.raises(ReplayError, match="played again from its seeds and actions led elsewhere"):
        env.load_games(Games({**saved.facts, name: wrong}, saved.actions))


@pytest.mark.parametrize(
    ("name", "value"),
    [("states", [1]), ("states", [1, -1]), ("shown", [0, 144]), ("returns", [0, 20]), ("length", 20), ("length", None)],
)
def test_a_damaged_state_of_a_control_is_refused(name: str, value: Any) -> None:
    env = ControlVecEnv("PlaceMatters", 2, seed=1)
    env.reset()
    saved = env.save_games()
    assert saved is not None
    with pytest.raises(ReplayError, match="the state of the games is damaged"):
        env.load_games(Games({**saved.facts, name: value}, saved.actions))


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=60), st.integers(1, 9))
@settings(deadline=None)
def test_a_journal_keeps_the_actions_since_each_seed_and_no_more(over: list[list[bool]], every: int) -> None:
    journal = Journal(3, every)
    journal.begin([1, 2, 3])
    naive: list[list[int]] = [[], [], []]
    for step, ended in enumerate(over):
        actions = np.array([step % 7, step % 5, step % 3])
        journal.note(actions)
        for index in range(3):
            naive[index].append(int(actions[index]))
        due, seeds = journal.renew(np.array(ended))
        expected = [index for index in range(3) if ended[index] and len(naive[index]) >= every]
        assert due.tolist() == expected
        assert len(set(seeds.tolist()) & {1, 2, 3}) == 0
        for index in expected:
            naive[index] = []
        saved = journal.save({})
        assert saved.facts["ages"] == [len(one) for one in naive]
        assert len(saved.actions) == max(len(one) for one in naive)
        for index, one in enumerate(naive):
            assert saved.actions[len(saved.actions) - len(one) :, index].tolist() == one
    assert Games.from_message(saved.to_message()).actions.tolist() == saved.actions.tolist() if over else True


def test_no_two_environments_of_a_run_get_one_seed_again() -> None:
    journal = Journal(16, 1)
    seen = set(journal.begin(range(100, 116)).tolist())
    for _ in range(500):
        journal.note(np.zeros(16, dtype=np.int64))
        seen |= set(journal.renew(np.ones(16, dtype=np.bool_))[1].tolist())
    assert len(seen) == 16 * 501
