"""AtariVecEnv against the real emulator, against a twin stepped frame by frame, and against SB3's wrappers."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import os
import subprocess
import sys
import textwrap
import weakref
from typing import Any

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import pytest
from ale_py import roms
from gymnasium import spaces
from sb3_reference import make_aligned_reference, make_reference, set_start_frames
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.atari_wrappers import EpisodicLifeEnv
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecFrameStack, VecMonitor, VecNormalize

from coordrl.atari import AtariVecEnv, available_cores, make_emulators
from coordrl.errors import RequestError
from coordrl.suites import ATARI, FRAMES_PER_STEP, MAX_GAME_FRAMES, PROTOCOLS, find_protocol, games

ATARI_PROTOCOLS = [name for name, protocol in PROTOCOLS.items() if protocol.world is ATARI]

BOX = spaces.Box(0, 255, (4, 84, 84), np.uint8)
NOOP = 0


@pytest.fixture
def make(request):
    """Construct an AtariVecEnv, reset it, and close it when the test ends."""

    def _make(game, n_envs=1, *, seed=0, reset=True, **options):
        env = AtariVecEnv(game, n_envs, seed=seed, **options)
        request.addfinalizer(env.close)
        if reset:
            env.reset()
        return env

    return _make


@pytest.fixture(scope="module")
def breakout():
    """Three games of Breakout for tests that leave them as they find them: loading a ROM takes 0.1 s and more."""
    env = AtariVecEnv("Breakout", 3, seed=0)
    env.reset()
    yield env
    env.close()


@pytest.fixture
def watch(monkeypatch):
    """Keep the infos of an environment's emulator, which hold the frame numbers; the emulator stays the real one."""

    def _watch(env):
        seen = []

        def keep_info(method):
            def call(*args, **kwargs):
                result = method(*args, **kwargs)
                seen.append(result[-1])
                return result

            return call

        for place, name in ((env._ale, "reset"), (env, "_receive")):
            monkeypatch.setattr(place, name, keep_info(getattr(place, name)))
        return seen

    return _watch


@pytest.fixture
def change_protocol(monkeypatch):
    """Play under a protocol with some rules changed."""

    def _change(name, **rules):
        monkeypatch.setitem(PROTOCOLS, name, dataclasses.replace(find_protocol(name), **rules))

    return _change


def random_actions(env: AtariVecEnv, steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(env.action_space.n, size=(steps, env.num_envs))


def noops(env: AtariVecEnv) -> np.ndarray:
    return np.zeros(env.num_envs, dtype=np.int64)


def play(
    env: AtariVecEnv, actions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[list[dict[str, Any]]]]:
    """Step through (steps, n_envs) actions; return the four results of `step`, the arrays with a leading step axis."""
    observations, rewards, dones, infos = zip(*(env.step(row) for row in actions), strict=True)
    return np.stack(observations), np.stack(rewards), np.stack(dones), list(infos)


def until_a_game_ends(env: AtariVecEnv, seed: int = 0, limit: int = 3000):
    """Step environment 0 of `env` with random actions; yield (observation before, result of step) to its game's end."""
    before = None
    for row in random_actions(env, limit, seed):
        result = env.step(row)
        yield before, result
        if "episode" in result[3][0]:
            return
        before = result[0]
    pytest.fail(f"no game of {env.game} ended in {limit} steps")


class EmulatorTwin:
    """One game on ale-py's single emulator, preprocessed in Python: what AtariVecEnv must show, bit for bit."""

    def __init__(self, game: str, seed: int, *, sticky_actions: float, full_action_space: bool) -> None:
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        self.ale = ale_py.ALEInterface()
        self.ale.setFloat("repeat_action_probability", sticky_actions)
        self.ale.setInt("random_seed", seed)
        self.ale.loadROM(roms.get_rom_path(games()[game]))
        self.actions = self.ale.getLegalActionSet() if full_action_space else self.ale.getMinimalActionSet()

    def start(self, frames: int, *, fire: bool) -> np.ndarray:
        """Start a game and emulate `frames` frames, the first of them FIRE if `fire`; return the observation."""
        self.ale.reset_game()
        for frame in range(frames):
            self.ale.act(ale_py.Action.FIRE if fire and frame == 0 else ale_py.Action.NOOP)
        self.stack = [np.zeros((84, 84), np.uint8)] * 3 + [self._shrink(self.ale.getScreenGrayscale())]
        return np.stack(self.stack)

    def step(self, action: int) -> tuple[np.ndarray, int, bool]:
        """Emulate four frames; return observation, score and whether the game is over."""
        score, screens = 0, []
        for _ in range(4):
            score += self.ale.act(self.actions[action])
            screens.append(self.ale.getScreenGrayscale())
            if self.ale.game_over():
                break
        self.stack = [*self.stack[1:], self._shrink(np.maximum(*screens[-2:]) if len(screens) > 1 else screens[0])]
        return np.stack(self.stack), score, self.ale.game_over()

    @staticmethod
    def _shrink(screen: np.ndarray) -> np.ndarray:
        return cv2.resize(screen, (84, 84), interpolation=cv2.INTER_AREA)


# ---------------------------------------------------------------------------------------------- what it looks like


def test_observations_are_four_grey_frames_of_84_by_84_bytes(make):
    env = make("Pong", 2, reset=False)
    assert env.observation_space == BOX
    observations = env.reset()
    assert observations.shape == (2, 4, 84, 84)
    assert observations.dtype == np.uint8
    assert all(env.observation_space.contains(observation) for observation in observations)
    observations, *_ = env.step(noops(env))
    assert observations.shape == (2, 4, 84, 84)
    assert observations.dtype == np.uint8


def test_a_game_starts_with_three_empty_frames_and_the_newest_frame_is_last(make):
    env = make("MsPacman", reset=False)
    first = env.reset()[0]
    assert not first[:3].any()
    assert first[3].any()
    second = env.step(noops(env))[0][0]
    assert not second[:2].any()
    np.testing.assert_array_equal(second[2], first[3])


def test_rewards_are_float32_and_dones_are_bool_in_training_and_in_evaluation(make):
    for training in (True, False):
        env = make("Pong", 1, training=training)
        _, rewards, dones, infos = env.step(noops(env))
        assert (rewards.dtype, rewards.shape) == (np.float32, (1,))
        assert (dones.dtype, dones.shape) == (np.bool_, (1,))
        assert len(infos) == 1


def test_zoo_v4_has_the_games_minimal_actions_and_machado_v5_all_18(make):
    minimal, full = make("Breakout", reset=False), make("Breakout", protocol="machado-v5", reset=False)
    assert minimal.action_space == spaces.Discrete(4)
    assert minimal.action_meanings == ("NOOP", "FIRE", "RIGHT", "LEFT")
    assert full.action_space == spaces.Discrete(18)
    assert len(set(full.action_meanings)) == 18
    full.reset()
    full.step(np.array([17]))


def test_every_public_name_of_the_game_is_accepted(make):
    assert make("ms. pac-man", reset=False).game == "MsPacman"


# ------------------------------------------------------------------------------------------- one step, frame by frame


@pytest.mark.parametrize(
    ("game", "protocol", "steps"),
    [("Breakout", "zoo-v4", 350), ("Asterix", "zoo-v4", 300), ("Breakout", "machado-v5", 300)],
)
def test_every_frame_score_life_and_end_is_what_the_single_emulator_gives(make, watch, game, protocol, steps):
    rules = find_protocol(protocol)
    env = make(game, seed=3, protocol=protocol, training=False, reset=False)
    seen = watch(env)
    fire = rules.fire and "FIRE" in env.action_meanings
    twin = EmulatorTwin(
        game, 3, sticky_actions=rules.sticky_actions, full_action_space=rules.full_action_space
    )  # the numbers of start frames are read off: C++ draws them, Python cannot draw the same
    np.testing.assert_array_equal(env.reset()[0], twin.start(seen[-1]["episode_frame_number"][0], fire=fire))
    ended, lost = 0, 0
    for row in random_actions(env, steps):
        lives = env.get_attr("lives")[0]
        observations, rewards, dones, infos = env.step(row)
        expected, score, over = twin.step(infos[0].get("replaced_action", row[0]))
        assert rewards[0] == score
        assert dones[0] == over
        if over:  # what the last frame of a finished game shows does not matter, and SB3 says so too
            np.testing.assert_array_equal(infos[0]["terminal_observation"][:3], expected[:3])
            expected = twin.start(seen[-1]["episode_frame_number"][0], fire=fire)
            ended += 1
        np.testing.assert_array_equal(observations[0], expected)
        assert infos[0]["lives"] == twin.ale.lives()
        lost += infos[0]["lives"] < lives
    assert ended  # the comparison went through an automatic reset
    assert lost >= 2


def test_sticky_actions_repeat_with_probability_one_quarter_and_no_other(make):
    env = make("SpaceInvaders", seed=3, protocol="machado-v5", training=False, reset=False)
    actions = random_actions(env, 60)
    shown = [env.reset()[0]] + [env.step(row)[0][0] for row in actions]
    for sticky_actions, same in ((0.25, True), (0.2, False), (0.3, False)):
        twin = EmulatorTwin("SpaceInvaders", 3, sticky_actions=sticky_actions, full_action_space=True)
        expected = [twin.start(0, fire=False)] + [twin.step(row[0])[0] for row in actions]
        assert np.array_equal(shown, expected) == same, sticky_actions


@pytest.mark.parametrize("protocol", ATARI_PROTOCOLS)
def test_one_step_is_four_frames_and_not_sixteen(make, watch, protocol):
    env = make("SpaceInvaders", 2, protocol=protocol, reset=False)
    seen = watch(env)
    env.reset()
    for _ in range(20):
        env.step(noops(env))
    numbers = np.stack([info["frame_number"] for info in seen])
    assert (np.diff(numbers, axis=0) == FRAMES_PER_STEP).all()
    assert FRAMES_PER_STEP == 4


def test_zoo_v4_starts_games_after_up_to_29_frames_and_machado_v5_after_none(make, watch):
    starts = {}
    for protocol in ATARI_PROTOCOLS:
        env = make("MsPacman", 2, protocol=protocol, reset=False)
        seen = watch(env)
        for _ in range(15):
            env.reset()
        starts[protocol] = {int(frames) for info in seen for frames in info["episode_frame_number"]}
    assert len(starts["zoo-v4"]) > 10
    assert starts["zoo-v4"] <= set(range(30))
    assert max(starts["zoo-v4"]) > 20
    assert starts["machado-v5"] == {0}


# ---------------------------------------------------------------------------------------------------------- purity


def _slot_one_after_another_history(make, game, protocol, *, history: int, steps: int):
    """Play seed 7 in slot 0 of one environment, and in slot 1 of another after `history` other steps."""
    one, other = make(game, 2, seed=7, protocol=protocol, reset=False), make(game, 2, seed=1000, protocol=protocol)
    actions = random_actions(one, steps, seed=1)
    play(other, random_actions(other, history, seed=2))
    other.seed(6)  # slot 1 gets 6 + 1
    start = other.reset()
    elsewhere = np.stack([random_actions(one, steps, seed=3)[:, 0], actions[:, 0]], axis=1)
    np.testing.assert_array_equal(one.reset()[0], start[1])
    return play(one, actions), play(other, elsewhere)


@pytest.mark.parametrize(
    ("game", "protocol", "steps"),  # machado-v5 has sticky actions, zoo-v4 has none
    [
        ("Breakout", "zoo-v4", 300),
        ("Breakout", "machado-v5", 300),
        pytest.param("MsPacman", "zoo-v4", 600, marks=pytest.mark.slow),
        pytest.param("MsPacman", "machado-v5", 600, marks=pytest.mark.slow),
    ],
)
def test_a_seed_and_the_actions_fix_everything_in_any_slot_and_through_automatic_resets(make, game, protocol, steps):
    here, there = _slot_one_after_another_history(make, game, protocol, history=40, steps=steps)
    for name, left, right in zip(("observations", "rewards", "dones"), here, there, strict=False):
        np.testing.assert_array_equal(left[:, 0], right[:, 1], err_msg=name)
    games_ended = 0
    for left, right in zip(here[3], there[3], strict=True):
        assert left[0]["lives"] == right[1]["lives"]
        assert left[0].get("replaced_action") == right[1].get("replaced_action")
        assert ("episode" in left[0]) == ("episode" in right[1])
        if "episode" in left[0]:
            games_ended += 1
            assert left[0]["episode"]["r"] == right[1]["episode"]["r"]
            assert left[0]["episode"]["l"] == right[1]["episode"]["l"]
            np.testing.assert_array_equal(left[0]["terminal_observation"], right[1]["terminal_observation"])
    assert games_ended  # the tail after an automatic reset was compared too


def test_the_number_of_threads_changes_nothing(make):
    one, two = make("Breakout", 2, seed=5, num_threads=1), make("Breakout", 2, seed=5, num_threads=2)
    actions = random_actions(one, 60)
    for left, right in zip(play(one, actions)[:3], play(two, actions)[:3], strict=True):
        np.testing.assert_array_equal(left, right)


def test_with_sticky_actions_the_seed_matters_and_without_them_it_does_not(make, change_protocol):
    actions = random_actions(make("SpaceInvaders", 2, protocol="machado-v5", reset=False), 60)
    actions[:, 1] = actions[:, 0]  # two environments, two seeds, the same actions
    observations = play(make("SpaceInvaders", 2, protocol="machado-v5"), actions)[0]
    assert not np.array_equal(observations[:, 0], observations[:, 1])
    change_protocol("machado-v5", sticky_actions=0.0)
    observations = play(make("SpaceInvaders", 2, protocol="machado-v5"), actions)[0]
    np.testing.assert_array_equal(observations[:, 0], observations[:, 1])


def test_without_a_seed_each_environment_draws_its_own_and_numpys_global_state_is_left_alone(make):
    before = np.random.get_state()[1].copy()
    first, second = make("Pong", seed=None), make("Pong", seed=None, reset=False)
    assert second._seeds[0] not in (None, first.seed(None)[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before)


# ----------------------------------------------------------------------------------------------- actions and refusals


@pytest.fixture(scope="module")
def breakout_twins():
    """Two environments with the same seed, which the tests step alike."""
    twins = tuple(AtariVecEnv("Breakout", 2, seed=1) for _ in range(2))
    for env in twins:
        env.reset()
    yield twins
    for env in twins:
        env.close()


@pytest.mark.parametrize(
    "actions",
    [
        pytest.param(np.array([0, 4]), id="one too large"),
        pytest.param(np.array([-1, 0]), id="negative"),
        pytest.param(np.array([2**40, 0]), id="huge"),
        pytest.param(np.array([2**63, 0], dtype=np.uint64), id="unsigned and huge"),
        pytest.param(np.array([0.0, 1.0]), id="floating"),
        pytest.param(np.array([True, False]), id="boolean"),
        pytest.param(np.array([0]), id="one action for two environments"),
        pytest.param(np.array([0, 0, 0]), id="three for two"),
        pytest.param(np.array([[0], [0]]), id="two-dimensional"),
        pytest.param(np.array(0), id="no dimension"),
        pytest.param(np.array(["0", "1"]), id="text"),
    ],
)
def test_a_wrong_action_is_refused_before_it_reaches_the_emulator_which_would_hang(breakout_twins, actions):
    env, twin = breakout_twins
    with pytest.raises(RequestError, match=r"actions (are|have shape)"):
        env.step(actions)
    # The refusal left no trace: the environment goes on exactly as its twin does.
    for left, right in zip(env.step(np.array([1, 2]))[:3], twin.step(np.array([1, 2]))[:3], strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_refusal_of_an_action_names_it_the_game_and_the_range(breakout):
    with pytest.raises(RequestError, match=r"\[0, 4, 0\].*Breakout has 0 to 3"):
        breakout.step(np.array([0, 4, 0]))


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_any_integer_type_of_action_is_accepted_and_left_unchanged(breakout_twins, dtype):
    actions = np.array([3, 2], dtype=dtype)
    for env in breakout_twins:
        env.step(actions)
    assert actions.tolist() == [3, 2]
    assert actions.dtype == dtype


@pytest.mark.parametrize("n_envs", [0, -1])
def test_fewer_than_one_environment_is_refused(n_envs):
    with pytest.raises(RequestError, match=rf"n_envs is {n_envs}; it is at least 1"):
        AtariVecEnv("Pong", n_envs)


@pytest.mark.parametrize("num_threads", [0, -2])
def test_fewer_than_one_thread_is_refused(num_threads):
    with pytest.raises(RequestError, match=rf"num_threads is {num_threads}; it is at least 1"):
        AtariVecEnv("Pong", 1, num_threads=num_threads)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux can confine a process to cores")
def test_the_default_number_of_threads_counts_the_cores_that_this_process_may_use():
    allowed = os.sched_getaffinity(0)
    assert available_cores() == len(allowed)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize("seed", [-1, 2**31 - 3, 2**31 - 1, 2**31, 2**40])
def test_a_seed_outside_the_emulators_range_is_refused(breakout, seed):
    with pytest.raises(RequestError, match=rf"seed is {seed}; it is from 0"):
        breakout.seed(seed)  # of three environments


def test_the_constructor_refuses_such_a_seed_too():
    with pytest.raises(RequestError, match=r"seed is -1; it is from 0"):
        AtariVecEnv("Pong", 1, seed=-1)


@pytest.mark.parametrize("seed", [0, 2**31 - 2])
def test_the_smallest_and_the_largest_seed_work(make, seed):
    env = make("Pong", seed=seed)
    env.step(noops(env))


def test_a_misspelt_game_and_a_misspelt_protocol_are_refused_with_a_suggestion():
    with pytest.raises(RequestError, match=r'"MsPacmn"; did you mean MsPacman'):
        AtariVecEnv("MsPacmn", 1)
    with pytest.raises(RequestError, match=r'"zoo-v5".*did you mean zoo-v4'):
        AtariVecEnv("Pong", 1, protocol="zoo-v5")


# ------------------------------------------------------------------------------------------------ the end of a game


def test_at_a_games_end_the_observation_is_the_next_games_first_and_the_old_one_is_in_the_info(make):
    env = make("Breakout", 2)
    *_, (before, (observations, _, dones, infos)) = until_a_game_ends(env)
    assert dones[0]
    assert not observations[0, :3].any()  # a game that has just started
    assert observations[0, 3].any()
    assert infos[0]["lives"] == 5
    final = infos[0]["terminal_observation"]
    assert BOX.contains(final)
    np.testing.assert_array_equal(final[:3], before[0, 1:])  # the old game's last frames
    assert final[3].any()


def test_the_terminal_observation_is_there_exactly_when_an_episode_ends(make):
    env = make("Breakout", 2)
    _, _, dones, infos = play(env, random_actions(env, 200))
    assert dones.any()
    for done, info in zip(dones.ravel(), (info for row in infos for info in row), strict=True):
        assert ("terminal_observation" in info) == done
        assert info["TimeLimit.truncated"] is False


@pytest.mark.parametrize("protocol", ATARI_PROTOCOLS)
def test_the_raw_score_of_a_whole_game_is_reported_though_rewards_are_clipped(make, protocol):
    training, raw = (make("Qbert", seed=4, protocol=protocol, training=training) for training in (True, False))
    actions = random_actions(training, 500)
    _, clipped, _, infos = play(training, actions)
    _, scores, _, raw_infos = play(raw, actions)
    assert scores.max() > 1
    np.testing.assert_array_equal(clipped, np.sign(scores))
    start, finished = 0, 0
    for step, ((info,), (raw_info,)) in enumerate(zip(infos, raw_infos, strict=True)):
        assert ("episode" in info) == ("episode" in raw_info)
        if "episode" in info:
            for reported in (info["episode"], raw_info["episode"]):
                assert reported["r"] == scores[start : step + 1].sum()
                assert reported["l"] == step + 1 - start
                assert isinstance(reported["r"], float)
                assert isinstance(reported["l"], int)
            start, finished = step + 1, finished + 1
    assert finished


def test_a_games_time_grows_from_game_to_game(make, monkeypatch):
    monkeypatch.setattr("coordrl.atari.MAX_GAME_FRAMES", 40)  # short games; see below
    env = make("Breakout")
    _, _, _, infos = play(env, random_actions(env, 40))
    times = [row[0]["episode"]["t"] for row in infos if "episode" in row[0]]
    assert len(times) == 4
    assert times[0] > 0
    assert times == sorted(times)


# The cap of 108,000 frames takes 27,000 steps to reach, so three tests lower it where make_emulators reads it. The
# emulator that counts up to it is the real one; the slow test at the end of this group reaches the real cap.


def test_the_frame_cap_truncates_the_game_and_says_so(make, monkeypatch):
    monkeypatch.setattr("coordrl.atari.MAX_GAME_FRAMES", 200)
    env = make("Pong", 2)
    before, ends = None, []
    for step in range(1, 121):
        observations, _, dones, infos = env.step(noops(env))
        assert dones.all() == dones.any()
        if dones.any():
            ends.append(step)
            for index, info in enumerate(infos):
                assert info["TimeLimit.truncated"] is True
                assert info["episode"]["l"] == 50
                np.testing.assert_array_equal(info["terminal_observation"][:3], before[index, 1:])
                assert not observations[index, :3].any()
        before = observations
    assert ends == [50, 100]


def test_a_cap_in_the_middle_of_a_step_ends_the_game_within_that_step(make, monkeypatch):
    monkeypatch.setattr("coordrl.atari.MAX_GAME_FRAMES", 202)
    env = make("Pong")
    _, _, dones, infos = play(env, np.zeros((51, 1), dtype=np.int64))
    assert np.flatnonzero(dones).tolist() == [50]
    assert infos[50][0]["TimeLimit.truncated"] is True
    assert infos[50][0]["episode"]["l"] == 51


def test_the_score_at_the_frame_cap_is_reported_like_any_other(make, monkeypatch):
    monkeypatch.setattr("coordrl.atari.MAX_GAME_FRAMES", 400)
    env = make("MsPacman", training=False)
    _, rewards, dones, infos = play(env, random_actions(env, 100))
    assert dones[-1, 0]
    assert rewards.sum() > 0
    assert infos[-1][0]["episode"]["r"] == rewards.sum()


@pytest.mark.slow
def test_without_fire_breakout_stands_still_until_the_cap_of_108000_frames(make):
    env = make("Breakout", protocol="machado-v5")
    steps = MAX_GAME_FRAMES // FRAMES_PER_STEP
    for _ in range(steps - 1):
        _, _, dones, infos = env.step(noops(env))
        assert not dones[0]
    _, _, dones, infos = env.step(noops(env))
    assert dones[0]
    assert infos[0]["TimeLimit.truncated"] is True
    assert infos[0]["episode"]["l"] == steps == 27_000
    assert infos[0]["episode"]["r"] == 0


# ------------------------------------------------------------------------------------------------------------- lives


def test_a_lost_life_ends_the_training_episode_and_the_same_game_goes_on(make):
    # ale-py's own episodic_life would start the whole game again: five lives for ever.
    env, lives, scores, step = make("Breakout", seed=1), [5], 0.0, 0
    for step, (_, (observations, rewards, dones, infos)) in enumerate(until_a_game_ends(env), start=1):  # noqa: B007 - the count is read after the loop
        scores += rewards[0]
        if dones[0] and "episode" not in infos[0]:
            lives.append(infos[0]["lives"])
            assert observations[0, :3].any()  # the stack of frames goes on
    assert lives == [5, 4, 3, 2, 1]
    assert infos[0]["episode"]["l"] == step  # of the whole game
    assert infos[0]["episode"]["r"] == scores > 0  # no brick of these rows is worth more than 1


def test_in_evaluation_a_lost_life_ends_nothing(make):
    env, lives = make("Breakout", seed=1, training=False), []
    for _, (_, _, dones, infos) in until_a_game_ends(env):
        assert dones[0] == ("episode" in infos[0])
        if not dones[0]:
            lives.append(infos[0]["lives"])
    assert sorted(set(lives), reverse=True) == [5, 4, 3, 2, 1]


def test_machado_v5_ends_no_episode_at_a_lost_life_in_training_either(make):
    env, lives = make("Breakout", protocol="machado-v5"), []
    for _, (_, _, dones, infos) in until_a_game_ends(env):
        assert dones[0] == ("episode" in infos[0])
        if not dones[0]:
            lives.append(infos[0]["lives"])
    assert sorted(set(lives), reverse=True) == [5, 4, 3, 2, 1]


def test_at_a_lost_life_the_terminal_observation_is_the_returned_one_and_no_uninitialised_memory(make):
    env = make("Breakout", 2)
    seen = 0
    before = None
    for row in random_actions(env, 150):
        observations, _, dones, infos = env.step(row)
        for index in np.flatnonzero(dones):
            if "episode" not in infos[index]:
                seen += 1
                final = infos[index]["terminal_observation"]
                np.testing.assert_array_equal(final, observations[index])
                np.testing.assert_array_equal(final[:3], before[index, 1:])
                kept = observations[index].copy()
                final[:] = 7  # a learner may write into one of them
                np.testing.assert_array_equal(observations[index], kept)
                observations[index] = 9
                assert (final == 7).all()
                observations[index] = kept
        before = observations
    assert seen >= 4


def test_fire_is_pressed_after_each_lost_life_so_that_breakout_does_not_stand_still(make):
    env = make("Breakout", 2)
    _, _, dones, infos = play(env, np.zeros((250, 2), dtype=np.int64))
    for index in range(2):
        replaced = {
            step: row[index]["replaced_action"] for step, row in enumerate(infos) if "replaced_action" in row[index]
        }
        lost = [step for step in np.flatnonzero(dones[:, index]) if "episode" not in infos[step][index]]
        assert replaced == {step + offset: action for step in lost for offset, action in ((1, 1), (2, 2))}
        assert len(lost) >= 4
        assert any("episode" in row[index] for row in infos)  # a whole game, lost without any action of the agent


def test_without_fire_after_a_lost_life_breakout_stands_still(make, change_protocol):
    # What the test above would see if nothing were pressed.
    change_protocol("zoo-v4", fire=False)
    env = make("Breakout")
    _, _, dones, infos = play(env, np.zeros((300, 1), dtype=np.int64))
    assert not dones.any()
    assert infos[-1][0]["lives"] == 5


def test_the_replaced_actions_really_reach_the_emulator(make):
    # Two environments differ only in what they asked for in the two steps after a lost life.
    first, second = make("Breakout"), make("Breakout")
    replaced = 0
    for row in random_actions(first, 200):
        twin_row = row if first._fire_stage[0] == 2 else (row + 1) % 4
        left, right = first.step(row), second.step(twin_row)
        np.testing.assert_array_equal(left[0], right[0])
        replaced += "replaced_action" in left[3][0]
    assert replaced >= 4


def test_fire_is_not_pressed_in_a_game_without_it_nor_under_machado_v5(make):
    for game, protocol in (("Asterix", "zoo-v4"), ("Breakout", "machado-v5")):
        env = make(game, protocol=protocol)
        lives = env.get_attr("lives")[0]
        _, _, _, infos = play(env, random_actions(env, 150))
        assert min(row[0]["lives"] for row in infos) < lives
        assert not any("replaced_action" in row[0] for row in infos)


def test_machado_v5_leaves_breakouts_first_fire_to_the_agent(make, watch):
    env = make("Breakout", protocol="machado-v5", reset=False)
    seen = watch(env)
    env.reset()
    assert seen[-1]["episode_frame_number"][0] == 0
    observations = play(env, np.zeros((60, 1), dtype=np.int64))[0]
    assert (observations[10:, 0, 3] == observations[10, 0, 3]).all()


def test_a_real_reset_presses_fire_by_itself_and_forgets_a_sequence_under_way(make):
    env = make("Breakout")
    while not env.step(noops(env))[2][0]:
        pass
    assert env._fire_stage[0] == 0  # two replaced actions would come now
    env.reset()
    assert "replaced_action" not in env.step(noops(env))[3][0]


def test_a_sequence_under_way_when_the_game_ends_is_not_carried_into_the_next_game(make, monkeypatch):
    env, steps = make("Breakout"), 1
    while not env.step(noops(env))[2][0]:
        steps += 1
    monkeypatch.setattr("coordrl.atari.MAX_GAME_FRAMES", FRAMES_PER_STEP * (steps + 1))  # one step after the lost life
    env = make("Breakout")
    _, _, dones, infos = play(env, np.zeros((steps + 3, 1), dtype=np.int64))
    assert np.flatnonzero(dones).tolist() == [steps - 1, steps]
    assert infos[steps - 1][0]["lives"] == 4
    assert infos[steps][0]["TimeLimit.truncated"] is True
    assert [row[0].get("replaced_action") for row in infos[steps - 1 :]] == [None, 1, None, None]


def test_a_count_of_zero_lives_before_the_game_is_over_ends_no_episode(make):
    # SB3's comment tells this of Qbert. In ale-py 0.12.1 Qbert's count reaches zero with the game's end, as the next
    # test shows; in Frogger the last life is still played with a count of zero.
    env, zeros, lives_lost = make("Frogger"), 0, []
    for _, (_, _, dones, infos) in until_a_game_ends(env):
        if "episode" in infos[0]:
            assert dones[0]
        elif infos[0]["lives"] == 0:
            zeros += 1
            assert not dones[0]
        elif dones[0]:
            lives_lost.append(infos[0]["lives"])
    assert zeros
    assert lives_lost == [3, 2, 1]


def test_a_game_of_qbert_has_four_terminals(make):
    env, terminals = make("Qbert"), 0
    for _, (_, _, dones, _) in until_a_game_ends(env):
        terminals += dones[0]
    assert terminals == 4  # 4 lives to 3, to 2, to 1, and the end


# ---------------------------------------------------------------------------------------------------- memory and exit


def test_every_step_returns_fresh_arrays_which_a_rollout_can_keep_without_a_copy(make):
    env = make("Breakout", reset=False)
    kept = [(env.reset(), noops(env), noops(env))]
    kept += [env.step(row)[:3] for row in random_actions(env, 60)]
    env.reset()
    again = make("Breakout", reset=False)
    copies = [(again.reset().copy(), noops(env), noops(env))]
    copies += [tuple(part.copy() for part in again.step(row)[:3]) for row in random_actions(env, 60)]
    for step, (left, right) in enumerate(zip(kept, copies, strict=True)):
        for part, expected in zip(left, right, strict=True):
            np.testing.assert_array_equal(part, expected, err_msg=f"step {step}")
    for one, next_one in itertools.pairwise(kept):
        assert not np.shares_memory(one[0], next_one[0])
        assert not np.shares_memory(one[1], next_one[1])
    assert all(observations.flags.writeable for observations, *_ in kept)


def test_the_emulator_is_freed_with_the_environment_that_nobody_closed():
    env = AtariVecEnv("Pong", 1, seed=0)
    env.reset()
    emulator = weakref.ref(env._ale)
    assert emulator() is not None
    del env
    gc.collect()
    assert emulator() is None


@pytest.fixture(scope="module")
def careless_script():
    """Run a script that closes neither an idle environment, held by a thread, nor one in the middle of a step."""
    script = """
        import threading
        import numpy as np
        from coordrl import AtariVecEnv

        idle, busy = AtariVecEnv("Pong", 2), AtariVecEnv("Breakout", 2)
        for env in (idle, busy):
            env.reset()
            env.step(np.zeros(2, dtype=np.int64))
        busy.step_async(np.zeros(2, dtype=np.int64))
        threading.Thread(target=lambda held: threading.Event().wait(), args=(idle,), daemon=True).start()
        print("done")
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_loaders_banner_stays_off_stderr(careless_script):
    assert careless_script.stdout == "done\n"
    assert "Arcade Learning Environment" not in careless_script.stderr


def test_a_script_that_closes_nothing_ends_in_silence(careless_script):
    # nanobind complains of leaks at length if an emulator outlives the interpreter, as one held by a thread does.
    assert careless_script.stderr == ""
    assert careless_script.returncode == 0


# --------------------------------------------------------------------------------------------- SB3's VecEnv contract


def test_seed_returns_one_seed_per_environment_and_counts_for_the_next_reset_only(make):
    env = make("MsPacman", 2, seed=0, reset=False)
    assert env.seed(40) == [40, 41]
    first = env.reset()
    second = env.reset()
    assert not np.array_equal(first, second)
    env.seed(40)
    np.testing.assert_array_equal(env.reset(), first)
    env.seed(39)
    np.testing.assert_array_equal(env.reset()[1], first[0])


def test_the_seed_of_the_constructor_is_that_of_the_first_reset(make):
    env = make("MsPacman", seed=40, reset=False)
    first = env.reset()
    env.seed(40)
    np.testing.assert_array_equal(env.reset(), first)


def test_seed_without_a_number_draws_one_in_range(breakout):
    seeds = breakout.seed(None)
    assert seeds == [seeds[0], seeds[0] + 1, seeds[0] + 2]
    assert 0 <= seeds[0] <= 2**31 - 4
    assert breakout.seed(None) != seeds


def test_options_are_accepted_and_forgotten_at_the_next_reset(make):
    env = make("Pong")
    env.set_options({"anything": 1})
    env.reset()
    assert env._options == [{}]


def test_reset_infos_tell_the_lives(breakout):
    assert breakout.reset_infos == [{"lives": 5}] * 3


def test_attributes_are_read_once_per_environment_and_for_the_indices_asked(breakout):
    assert breakout.get_attr("game") == ["Breakout"] * 3
    assert breakout.get_attr("lives") == [5, 5, 5]
    assert breakout.get_attr("lives", 1) == [5]
    assert breakout.get_attr("lives", [0, 2]) == [5, 5]
    assert breakout.get_attr("training", indices=[1]) == [True]
    assert breakout.get_attr("action_space", 0) == [spaces.Discrete(4)]
    assert breakout.get_attr("observation_space", 0) == [BOX]
    assert breakout.get_attr("protocol", 0) == [PROTOCOLS["zoo-v4"]]
    assert breakout.get_attr("action_meanings", 0) == [("NOOP", "FIRE", "RIGHT", "LEFT")]
    assert breakout.get_attr("spec", 0) == breakout.get_attr("render_mode", 0) == [None]


def test_has_attr_agrees_with_get_attr(breakout):
    assert breakout.has_attr("lives")
    assert breakout.has_attr("render_mode")
    assert not breakout.has_attr("ale")
    with pytest.raises(AttributeError, match=r"no attribute 'ale' .* C\+\+ objects"):
        breakout.get_attr("ale")


def test_attributes_cannot_be_set(breakout):
    with pytest.raises(AttributeError, match="'training' cannot be set"):
        breakout.set_attr("training", False)


def test_the_only_method_of_single_environments_is_get_action_meanings(breakout):
    assert breakout.env_method("get_action_meanings", indices=[0, 2]) == [["NOOP", "FIRE", "RIGHT", "LEFT"]] * 2
    with pytest.raises(AttributeError, match="'clone_state' cannot be called"):
        breakout.env_method("clone_state")


def test_an_environment_that_does_not_exist_is_refused(breakout):
    for indices in (3, [0, 5]):
        with pytest.raises(IndexError):
            breakout.get_attr("lives", indices)
        with pytest.raises(IndexError):
            breakout.get_attr("game", indices)
        with pytest.raises(IndexError):
            breakout.env_method("get_action_meanings", indices=indices)
        with pytest.raises(IndexError):
            breakout.env_is_wrapped(Monitor, indices)


def test_it_is_wrapped_in_monitor_and_in_nothing_else(breakout):
    assert breakout.env_is_wrapped(Monitor) == [True] * 3
    assert breakout.env_is_wrapped(Monitor, indices=[1]) == [True]
    assert breakout.env_is_wrapped(EpisodicLifeEnv) == [False] * 3
    assert breakout.env_is_wrapped(gym.wrappers.TimeLimit, indices=0) == [False]


def test_there_is_nothing_to_render(breakout):
    assert breakout.render_mode is None
    assert breakout.metadata == {"render_modes": []}
    with pytest.raises(RequestError, match="renders nothing; make a video"):
        breakout.get_images()
    with pytest.warns(UserWarning, match="no `render_mode`"):
        assert breakout.render() is None


def test_step_wait_without_step_async_is_refused(make):
    env = make("Pong")
    with pytest.raises(RequestError, match="without step_async"):
        env.step_wait()
    env.step(noops(env))
    with pytest.raises(RequestError, match="without step_async"):
        env.step_wait()


def test_step_async_twice_is_refused_and_the_first_goes_on(make):
    env, twin = make("Breakout"), make("Breakout")
    env.step_async(np.array([2]))
    with pytest.raises(RequestError, match="step_wait"):
        env.step_async(np.array([3]))
    np.testing.assert_array_equal(env.step_wait()[0], twin.step(np.array([2]))[0])
    np.testing.assert_array_equal(env.step(np.array([0]))[0], twin.step(np.array([0]))[0])


def test_a_step_before_the_first_reset_is_refused_and_reset_still_works(make):
    env = make("Pong", reset=False)
    with pytest.raises(RequestError, match="never reset; call reset before the first step"):
        env.step(noops(env))
    assert env.reset().shape == (1, 4, 84, 84)
    env.step(noops(env))


def test_a_reset_in_the_middle_of_a_step_drops_that_step(make):
    env, twin = make("Breakout"), make("Breakout", reset=False)
    actions = random_actions(env, 20)
    play(env, actions)
    env.step_async(actions[0])
    env.seed(0)
    np.testing.assert_array_equal(env.reset(), twin.reset())
    with pytest.raises(RequestError, match="without step_async"):
        env.step_wait()
    for left, right in zip(play(env, actions)[:3], play(twin, actions)[:3], strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_reset_in_the_middle_of_a_game_counts_the_next_game_from_zero(make, monkeypatch):
    monkeypatch.setattr("coordrl.atari.MAX_GAME_FRAMES", 400)
    env = make("MsPacman", training=False)
    play(env, random_actions(env, 90))
    env.reset()
    _, rewards, dones, infos = play(env, random_actions(env, 100, seed=1))
    assert np.flatnonzero(dones).tolist() == [99]
    assert infos[99][0]["episode"]["l"] == 100
    assert infos[99][0]["episode"]["r"] == rewards.sum() > 0


def test_closing_twice_is_fine_and_use_after_closing_is_refused():
    env = AtariVecEnv("Pong", 1)
    env.reset()
    env.close()
    env.close()
    for use in (env.reset, lambda: env.step(noops(env))):
        with pytest.raises(RequestError, match="closed"):
            use()


def test_closing_in_the_middle_of_a_step_does_not_hang():
    env = AtariVecEnv("Pong", 2)
    env.reset()
    env.step_async(noops(env))
    env.close()
    with pytest.raises(RequestError):
        env.step_wait()


def test_closing_before_the_first_reset_does_not_hang():
    AtariVecEnv("Pong", 2).close()


# ----------------------------------------------------------------------------------------------- in the company of SB3


class RandomModel:
    """The least that evaluate_policy takes for a model."""

    def __init__(self, env: AtariVecEnv) -> None:
        self.n_actions = env.action_space.n
        self.generator = np.random.default_rng(0)

    def predict(self, observation, state=None, episode_start=None, deterministic=True):
        return self.generator.integers(self.n_actions, size=len(observation)), state


def test_evaluate_policy_scores_whole_games_with_raw_rewards_in_training_mode_too(make):
    scores = []
    for training in (True, False):
        env = make("Qbert", seed=3, reset=False, training=training)
        scores.append(evaluate_policy(RandomModel(env), env, n_eval_episodes=2, return_episode_rewards=True))
    assert scores[0] == scores[1]  # the same games, in which lives and clipping made no difference
    returns, lengths = scores[0]
    assert len(returns) == 2
    assert min(lengths) > 150  # four lives
    assert min(returns) >= 50  # raw: 25 a cube


def test_vec_monitor_constructs_and_steps_but_says_that_monitor_is_already_there(make):
    env = make("Breakout", 2, reset=False)
    with pytest.warns(UserWarning, match="already wrapped with a `Monitor` wrapper"):
        wrapped = VecMonitor(env)
    assert wrapped.reset().shape == (2, 4, 84, 84)
    observations, rewards, _, _ = wrapped.step(noops(env))
    assert observations.shape == (2, 4, 84, 84)
    assert rewards.shape == (2,)


def test_vec_normalize_scales_the_rewards_and_leaves_the_games_return_alone(make):
    env = make("Qbert", reset=False, training=False)
    wrapped = VecNormalize(env, norm_obs=False, norm_reward=True)
    wrapped.reset()
    raw, scaled, reported = 0.0, 0.0, None
    for row in random_actions(env, 1000):
        _, rewards, _, infos = wrapped.step(row)
        raw, scaled = raw + wrapped.get_original_reward()[0], scaled + rewards[0]
        if "episode" in infos[0]:
            reported = infos[0]["episode"]["r"]
            break
    assert reported == raw
    assert 0 < scaled < raw


def test_vec_frame_stack_stacks_our_stacks_and_the_terminal_observation_with_them(make):
    env = make("Breakout", 2, reset=False)
    wrapped = VecFrameStack(env, n_stack=2)
    assert wrapped.reset().shape == (2, 8, 84, 84)
    for row in random_actions(env, 60):
        _, _, dones, infos = wrapped.step(row)
        if dones.any():
            break
    assert infos[int(np.argmax(dones))]["terminal_observation"].shape == (8, 84, 84)


def test_a2c_learns_on_it_without_a_wrapper_of_its_own_and_sees_whole_games(make, monkeypatch):
    monkeypatch.setattr("coordrl.atari.MAX_GAME_FRAMES", 200)  # games of 50 steps, in which lives are lost
    env = make("Breakout", 2, reset=False)
    model = A2C("CnnPolicy", env, n_steps=5, seed=0, device="cpu")
    assert model.get_env() is env  # no transposition, no second Monitor
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(110)
    assert model.num_timesteps == 110
    assert any(not value.equal(before[name]) for name, value in model.policy.state_dict().items())
    assert [info["l"] for info in model.ep_info_buffer] == [50] * 2


def test_dqn_learns_on_it_and_its_replay_holds_the_terminal_observation_not_the_next_game(make):
    env = make("Breakout", reset=False)
    model = DQN("CnnPolicy", env, buffer_size=250, learning_starts=200, seed=0, device="cpu")
    assert model.get_env() is env
    model.learn(240)
    replay = model.replay_buffer
    assert model._n_updates == 10
    assert replay.dones[:240].any()
    for step in range(239):
        if replay.dones[step, 0]:  # (4, 84, 84): the last three frames before are the first three after
            np.testing.assert_array_equal(replay.next_observations[step, 0, :3], replay.observations[step, 0, 1:])
            assert replay.next_observations[step, 0, 0].any()


# ------------------------------------------------------------------------------------------ against SB3's environment


def test_gymnasiums_atari_ids_exist_only_after_ale_py_is_registered():
    # The first line of tests/sb3_reference.py. Every process that makes an environment needs it.
    script = """
        import gymnasium
        assert "MsPacmanNoFrameskip-v4" not in gymnasium.registry
        assert "ALE/MsPacman-v5" not in gymnasium.registry
        import ale_py
        gymnasium.register_envs(ale_py)
        assert "MsPacmanNoFrameskip-v4" in gymnasium.registry
        assert "ALE/MsPacman-v5" in gymnasium.registry
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, timeout=120)


def test_the_reference_is_what_it_should_be():
    reference = make_reference("MsPacman", 2)
    try:
        unwrapped = reference.unwrapped.envs[0].unwrapped
        assert unwrapped._frameskip == 1  # ALE/*-v5 skips 4, and AtariWrapper 4 more: 16 frames a step
        assert unwrapped.ale.getFloat("repeat_action_probability") == 0.0
        assert reference.observation_space.shape == (84, 84, 4)
        assert reference.env_is_wrapped(Monitor) == [True, True]
        assert reference.env_is_wrapped(EpisodicLifeEnv) == [True, True]
    finally:
        reference.close()


@dataclasses.dataclass
class Tally:
    """What a lockstep comparison has compared, so that a test can say it was not nothing."""

    games: int = 0
    lives: int = 0
    rewards: int = 0
    pixels: float = 0.0  # sum over steps of the mean absolute difference of the newest frames
    steps: int = 0


def _compare_in_lockstep(env, reference, seen, actions, *, after_life, games_wanted) -> Tally:
    """Feed both one sequence of actions and compare every result; return what was compared.

    `after_life`: how many steps of AtariVecEnv correspond to what SB3 does inside `reset` after a lost life; the
    no-op, which any player can send, or the two actions that AtariVecEnv replaces.
    """
    tally = Tally()
    set_start_frames(reference, start := int(seen[-1]["episode_frame_number"][0]))
    _compare_frames(env.last, reference.reset(), tally)
    extra_frames = 0  # that only SB3's Monitor has counted
    actions = iter(actions)
    while tally.games < games_wanted:
        action = next(actions)
        observations, rewards, dones, infos = env.step(np.array([action]))
        over = "episode" in infos[0]
        if over:
            # SB3's automatic reset comes inside its step, so its next start is set before.
            next_start = int(seen[-1]["episode_frame_number"][0])
            set_start_frames(reference, next_start)
        theirs = reference.step([action])
        assert rewards[0] == theirs[1][0]
        assert dones[0] == theirs[2][0]
        assert over == ("episode" in theirs[3][0])
        tally.rewards += rewards[0] != 0
        tally.steps += 1
        if over:
            assert infos[0]["episode"]["r"] == theirs[3][0]["episode"]["r"]
            # Monitor counts frames, ours steps; the last step of a game can be shorter than four frames.
            frames = start + FRAMES_PER_STEP * infos[0]["episode"]["l"] + extra_frames
            assert 0 <= frames - theirs[3][0]["episode"]["l"] < FRAMES_PER_STEP
            assert infos[0]["TimeLimit.truncated"] == theirs[3][0]["TimeLimit.truncated"] == False  # noqa: E712 - a chain of three, of which one is numpy's False
            tally.games += 1
            start = next_start
        else:
            assert infos[0]["lives"] == theirs[3][0]["lives"]
        if dones[0] and not over:
            tally.lives += 1
            for _ in range(after_life):
                observations, _, dones, _ = env.step(np.array([NOOP]))
                assert not dones[0]
        _compare_frames(observations, theirs[0], tally)
    return tally


def _compare_frames(ours, theirs, tally):
    """Add the difference of the newest frames: grey before the maximum here, after it there."""
    tally.pixels += np.abs(ours[0, 3].astype(float) - theirs[0, :, :, 3]).mean()


def _policy(kind: str, n_actions: int):
    """Yield actions for ever: random ones, or each action held for nine steps in turn."""
    generator = np.random.default_rng(11)
    step = 0
    while True:
        yield int(generator.integers(n_actions)) if kind == "random" else step // 9 % n_actions
        step += 1


def _lockstep(make, watch, game, reference, kind, *, training=True, after_life, games_wanted=1) -> Tally:
    env = make(game, seed=1, training=training, reset=False)  # seed 1 draws no start without a no-op
    seen = watch(env)
    env.last = env.reset()
    try:
        return _compare_in_lockstep(
            env, reference, seen, _policy(kind, env.action_space.n), after_life=after_life, games_wanted=games_wanted
        )
    finally:
        reference.close()


@pytest.mark.parametrize(
    ("game", "kind", "games_wanted"),
    [
        ("MsPacman", "random", 1),
        ("Asterix", "random", 2),
        pytest.param("MsPacman", "scripted", 2, marks=pytest.mark.slow),
    ],
)
def test_in_a_game_without_fire_training_agrees_with_sb3s_untouched_wrappers_step_by_step(
    make, watch, game, kind, games_wanted
):
    # The number of no-ops is set to ours; after a lost life the no-op that SB3 takes inside reset is sent here.
    tally = _lockstep(make, watch, game, make_reference(game), kind, after_life=1, games_wanted=games_wanted)
    assert tally.games == games_wanted
    assert tally.lives == 2 * games_wanted  # two of three in each game; the third ends it
    assert tally.rewards >= 5
    assert tally.pixels / tally.steps < 1.5  # of 255


def test_in_a_game_without_fire_evaluation_agrees_with_sb3s_untouched_wrappers_step_by_step(make, watch):
    reference = make_reference("Asterix", training=False)
    tally = _lockstep(make, watch, "Asterix", reference, "scripted", training=False, after_life=0)
    assert (tally.games, tally.lives) == (1, 0)
    assert tally.rewards >= 1


@pytest.mark.parametrize(
    ("game", "kind", "lives"),
    [
        ("Breakout", "random", 4),
        pytest.param("Breakout", "scripted", 4, marks=pytest.mark.slow),
        ("SpaceInvaders", "random", 2),
        ("Qbert", "scripted", 3),
        pytest.param("Seaquest", "random", 3, marks=pytest.mark.slow),
        pytest.param("Atlantis", "random", 5, marks=pytest.mark.slow),  # at zero lives the game is not over yet
    ],
)
def test_in_a_game_with_fire_training_agrees_with_sb3s_wrappers_started_alike(make, watch, game, kind, lives):
    # The untouched wrappers cannot agree step by step: at a game's start they press FIRE for four frames after the
    # no-ops, ale-py for one frame before them; after a lost life they begin with a no-op which cannot be sent to one
    # environment alone. make_aligned_reference changes those two and nothing else.
    tally = _lockstep(make, watch, game, make_aligned_reference(game), kind, after_life=2)
    assert tally.games == 1
    assert tally.lives == lives
    assert tally.rewards >= 1
    assert tally.pixels / tally.steps < 1.5


def test_with_fire_and_untouched_wrappers_the_lives_and_terminals_of_a_game_are_the_same(make):
    # A player that does nothing: in both, FIRE launches every ball, and five lost balls are a game.
    def lives_per_game(env):
        env.reset()
        found: list[list[int]] = [[]]
        for _ in range(1000):
            _, _, dones, infos = env.step([NOOP])
            if "episode" in infos[0]:
                found.append([])
                if len(found) == 3:
                    return found[:-1]
            elif dones[0]:
                found[-1].append(infos[0]["lives"])
        pytest.fail("Breakout stands still")

    reference = make_reference("Breakout")
    try:
        assert lives_per_game(make("Breakout", reset=False)) == lives_per_game(reference) == [[4, 3, 2, 1]] * 2
    finally:
        reference.close()


@pytest.mark.slow
def test_a_random_players_scores_are_those_of_the_untouched_wrappers_up_to_chance(make):
    # Means of 24 games each of Space Invaders; the standard error of their difference is about 28 points of 150.
    def returns(env):
        env.seed(0)
        env.reset()
        generator, found = np.random.default_rng(5), []
        while len(found) < 24:
            _, _, _, infos = env.step(generator.integers(6, size=env.num_envs))
            found += [info["episode"]["r"] for info in infos if "episode" in info]
        return np.array(found)

    reference = make_reference("SpaceInvaders", 4)
    try:
        ours, theirs = returns(make("SpaceInvaders", 4, reset=False)), returns(reference)
    finally:
        reference.close()
    error = np.sqrt(ours.var(ddof=1) / len(ours) + theirs.var(ddof=1) / len(theirs))
    assert abs(ours.mean() - theirs.mean()) < 3 * error


# ---------------------------------------------------------------------------------------------------------- all games


def _steps(make, game, protocol):
    env = make(game, protocol=protocol)
    _, rewards, _, infos = play(env, random_actions(env, 10))
    assert np.isfinite(rewards).all()
    assert all(row[0]["lives"] >= 0 for row in infos)


@pytest.mark.parametrize("protocol", ATARI_PROTOCOLS)
@pytest.mark.parametrize("game", ["Backgammon", "VideoCheckers", "TicTacToe3D", "Skiing"])
def test_games_with_unusual_actions_construct_and_step(make, game, protocol):
    _steps(make, game, protocol)  # FIRE is action 0, action 0 again, a name with a digit, no FIRE


@pytest.mark.slow
@pytest.mark.parametrize("game", list(games()))
def test_every_game_constructs_and_steps(make, game):
    _steps(make, game, "zoo-v4")


def test_make_emulators_refuses_a_misspelt_protocol():
    with pytest.raises(RequestError, match="no protocol"):
        make_emulators("Pong", 1, protocol="zoo", num_threads=1)


INTERRUPTED = """
import os, signal, sys, threading
import numpy as np
from coordrl import AtariVecEnv, DividedVecEnv

kind, then = sys.argv[1:]

def make():
    if kind == "one":
        return AtariVecEnv("Breakout", 8, seed=0, num_threads=1, reseed_every=10000)
    return DividedVecEnv("Breakout", 8, seed=0, workers=2, reseed_every=10000)

env = make()
env.reset()
actions = np.ones(8, dtype=np.int64)
for _ in range(5):
    threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    try:
        while True:
            env.step(actions)
    except KeyboardInterrupt:
        if env.save_games() is None or then == "reset":  # there is none where the bookkeeping was interrupted
            env.reset()
        observations = env.step(actions)[0]
again = make()
again.reset()
np.testing.assert_array_equal(again.load_games(env.save_games()), observations)
env.close()
again.close()
"""


@pytest.mark.parametrize(
    ("kind", "then"),
    [
        ("one", "step"),
        ("divided", "reset"),
        pytest.param("one", "reset", marks=pytest.mark.slow),
        pytest.param("divided", "step", marks=pytest.mark.slow),
    ],
)
def test_after_ctrl_c_in_mid_step_the_games_go_on(kind: str, then: str) -> None:
    """Ctrl-C comes while C++ emulates, as good as always, and Python hears of it when the results are there.

    What was emulated then is part of the games: what is saved of them can be loaded.
    """
    words = [sys.executable, "-c", INTERRUPTED, kind, then]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
