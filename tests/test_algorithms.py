"""Models: arms that share weights, state taken apart and put together, runs loaded without pickle."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy

import coordrl
from coordrl.algorithms import build_model, check_device, environment_seed
from coordrl.atari import AtariVecEnv
from coordrl.checkpoint import Checkpoint, read_newest, write_checkpoint
from coordrl.coordinates import first_coordconv
from coordrl.errors import CheckpointError, RequestError
from coordrl.extractors import EXTRACTORS
from coordrl.recipes import find_recipe
from coordrl.results import RunFolder, Spec
from coordrl.snapshot import restore, restore_weights, snapshot

SMALL = {"a2c": ["n_envs=2"], "dqn": ["buffer_size=500", "learning_starts=20", "n_envs=2"]}


def make_spec(agent: str = "a2c", extractor: str = "coord", game: str = "Pong", seed: int = 3) -> Spec:
    recipe = find_recipe(agent, SMALL[agent])
    return Spec(game, agent, recipe.algorithm, extractor, "zoo-v4", seed, 1000, dict(recipe.settings))


@pytest.fixture
def pong() -> Iterator[AtariVecEnv]:
    env = AtariVecEnv("Pong", 2, seed=0)
    yield env
    env.close()


def weights(model: BaseAlgorithm) -> dict[str, torch.Tensor]:
    return {name.replace(".image.", "."): p.detach().clone() for name, p in model.policy.named_parameters()}


@pytest.mark.parametrize("agent", ["a2c", "dqn"])
@pytest.mark.parametrize("extractor", [name for name, found in EXTRACTORS.items() if found.twin == "nature"])
def test_arms_of_one_seed_share_bit_equal_common_weights(agent: str, extractor: str, pong: AtariVecEnv) -> None:
    nature = weights(build_model(make_spec(agent, "nature"), pong, device="cpu"))
    arm = weights(build_model(make_spec(agent, extractor), pong, device="cpu"))
    assert set(nature) == {name for name in arm if ".coordinates." not in name}
    assert all(torch.equal(nature[name], arm[name]) for name in nature)


def test_pool_and_coord_pool_share_theirs(pong: AtariVecEnv) -> None:
    pool = weights(build_model(make_spec(extractor="pool"), pong, device="cpu"))
    arm = weights(build_model(make_spec(extractor="coord-pool"), pong, device="cpu"))
    assert all(torch.equal(pool[name], arm[name]) for name in pool)
    assert set(arm) - set(pool) == {"features_extractor.cnn.0.coordinates.weight"}


def test_another_seed_gives_other_weights(pong: AtariVecEnv) -> None:
    one = weights(build_model(make_spec(seed=1), pong, device="cpu"))
    two = weights(build_model(make_spec(seed=2), pong, device="cpu"))
    assert not torch.equal(one["features_extractor.cnn.0.weight"], two["features_extractor.cnn.0.weight"])


def test_every_generator_is_where_it_would_be_whatever_the_arm_drew(pong: AtariVecEnv) -> None:
    draws = []
    for extractor in ("nature", "coord-all"):
        build_model(make_spec(extractor=extractor), pong, device="cpu")
        draws.append((torch.rand(1).item(), np.random.rand(), pong.action_space.sample()))
    assert draws[0] == draws[1]


@pytest.mark.parametrize("agent", ["a2c", "dqn"])
def test_coord_with_zeroed_coordinates_acts_as_nature_step_by_step(agent: str) -> None:
    played: list[list[Any]] = []
    for extractor in ("nature", "coord"):
        env = AtariVecEnv("MsPacman", 2)
        model = build_model(make_spec(agent, extractor, "MsPacman"), env, device="cpu")
        layer = first_coordconv(model)
        assert (layer is None) == (extractor == "nature")
        if layer is not None:
            torch.nn.init.zeros_(layer.coordinates.weight)
        torch.manual_seed(5)
        np.random.seed(5)
        env.seed(11)
        observations = env.reset()
        trace: list[Any] = []
        for _ in range(150):
            actions, _ = model.predict(observations, deterministic=False)
            observations, rewards, dones, _ = env.step(actions)
            trace.append((actions.tolist(), rewards.tolist(), dones.tolist(), int(observations.sum())))
        played.append(trace)
        env.close()
    assert played[0] == played[1]
    assert len({str(step[0]) for step in played[0]}) > 3 or agent == "dqn"


def test_the_models_settings_are_the_recipes(pong: AtariVecEnv) -> None:
    a2c: Any = build_model(make_spec("a2c"), pong, device="cpu")
    assert isinstance(a2c, A2C)
    assert (a2c.n_steps, a2c.gamma, a2c.ent_coef, a2c.vf_coef, a2c.max_grad_norm) == (5, 0.99, 0.01, 0.25, 0.5)
    group = a2c.policy.optimizer.param_groups[0]
    assert (type(a2c.policy.optimizer).__name__, group["lr"], group["alpha"], group["eps"]) == (
        "RMSpropTFLike",
        7e-4,
        0.99,
        1e-5,
    )
    dqn: Any = build_model(make_spec("dqn"), pong, device="cpu")
    assert isinstance(dqn, DQN)
    assert (dqn.batch_size, dqn.train_freq.frequency, dqn.target_update_interval) == (32, 4, 1000)
    assert dqn.replay_buffer.buffer_size == 250  # 500 transitions, two environments


@pytest.mark.parametrize("agent", ["a2c", "dqn"])
def test_a_snapshot_put_into_a_fresh_model_goes_on_alike(agent: str, tmp_path: Path) -> None:
    env = AtariVecEnv("Pong", 2)
    model = build_model(make_spec(agent), env, device="cpu")
    env.seed(1)
    model.learn(60)
    write_checkpoint(tmp_path, snapshot(model, {"seconds": 1.0}))
    next_draws = (torch.rand(3).tolist(), np.random.rand(3).tolist(), model.action_space.sample())
    fresh = build_model(make_spec(agent), env, device="cpu")
    checkpoint = read_newest(tmp_path)
    assert checkpoint is not None
    restore(fresh, checkpoint)
    assert (torch.rand(3).tolist(), np.random.rand(3).tolist(), fresh.action_space.sample()) == next_draws
    for (name, old), (_, new) in zip(model.policy.named_parameters(), fresh.policy.named_parameters(), strict=True):
        assert torch.equal(old, new), name
    old_state, new_state = model.policy.optimizer.state_dict(), fresh.policy.optimizer.state_dict()
    assert old_state["param_groups"] == new_state["param_groups"]
    assert set(old_state["state"]) == set(new_state["state"])
    for index, entries in old_state["state"].items():
        for name, value in entries.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(new_state["state"][index][name])), name
    for name in ("num_timesteps", "_n_updates", "_episode_num", "_current_progress_remaining"):
        assert getattr(model, name) == getattr(fresh, name)
    if isinstance(model, DQN) and isinstance(fresh, DQN):
        assert (model._n_calls, model.exploration_rate) == (fresh._n_calls, fresh.exploration_rate)
    env.close()


def test_taking_a_snapshot_changes_nothing(pong: AtariVecEnv) -> None:
    model = build_model(make_spec(), pong, device="cpu")
    before = (torch.get_rng_state().tolist(), str(np.random.get_state()))
    first = snapshot(model, {})
    assert (torch.get_rng_state().tolist(), str(np.random.get_state())) == before
    second = snapshot(model, {})
    assert first.state == second.state


def test_a_checkpoint_of_another_network_is_refused(pong: AtariVecEnv) -> None:
    coord = snapshot(build_model(make_spec(), pong, device="cpu"), {})
    nature = build_model(make_spec(extractor="nature"), pong, device="cpu")
    with pytest.raises(CheckpointError, match="is of another network"):
        restore_weights(nature, coord)
    with pytest.raises(CheckpointError, match="is of another network"):
        restore_weights(nature, Checkpoint(0, {}, {}, {}))


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(RequestError, match='there is no device "warp"'):
        check_device("warp")


def test_runs_of_neighbouring_seeds_share_no_environment() -> None:
    seeds = {environment_seed(seed, "train") + index for seed in range(200) for index in range(16)}
    assert len(seeds) == 200 * 16
    assert environment_seed(0, "train") != environment_seed(0, "evaluate")
    assert environment_seed(0, "train", 80) != environment_seed(0, "train")
    assert 0 <= max(seeds) < 2**31 - 16


def test_a_run_is_loaded_and_scored_by_sb3s_own_evaluation(finished_run: RunFolder) -> None:
    model = coordrl.load(finished_run.path, device="cpu")
    env = model.get_env()
    assert isinstance(model, A2C)
    assert env is not None
    mean, _ = evaluate_policy(model, env, n_eval_episodes=1, deterministic=False)
    assert mean >= 0
    env.close()


def test_the_loaded_weights_are_those_of_the_export_for_sb3(finished_run: RunFolder) -> None:
    model = coordrl.load(finished_run.path, device="cpu")
    export = A2C.load(finished_run.export_file, device="cpu")
    for (name, one), (_, other) in zip(model.policy.named_parameters(), export.policy.named_parameters(), strict=True):
        assert torch.equal(one, other), name
    env = model.get_env()
    assert env is not None
    env.close()


def test_loading_a_run_unpickles_nothing(finished_run: RunFolder) -> None:
    armed = [True]

    def refuse(event: str, _: tuple[Any, ...]) -> None:
        if armed[0] and event == "pickle.find_class":
            raise AssertionError("something was unpickled")

    sys.addaudithook(refuse)  # stays for the process, so it is disarmed below
    try:
        env = coordrl.load(finished_run.path, device="cpu").get_env()
    finally:
        armed[0] = False
    assert env is not None
    env.close()


def test_loading_what_is_no_run_or_has_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is no run"):
        coordrl.load(tmp_path)
    folder = RunFolder(tmp_path / "run")
    folder.open(make_spec(), {}, "")
    with pytest.raises(RequestError, match="has no checkpoint: a training writes one"):
        coordrl.load(folder.path)
