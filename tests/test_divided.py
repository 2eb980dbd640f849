"""Environments and training divided over processes: the same numbers, and no process that outlives its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.vec_env import VecCheckNan

import coordrl
from coordrl.a2c import A2C
from coordrl.atari import AtariVecEnv
from coordrl.divided import DividedVecEnv, PartArrays, count_bytes, pack_infos, unpack_infos
from coordrl.errors import RequestError, ResumableError
from coordrl.fast_network import FastNetwork, make_network
from coordrl.fast_parts import may_be_late
from coordrl.fast_rollout import gradients
from coordrl.process import allowed_cores
from coordrl.results import RunFolder
from coordrl.train import TrainArguments, _count_workers, _specify, main
from coordrl.workers import Memory, Worker, default_workers


@contextmanager
def divided(game: str, n_envs: int, workers: int, **words: Any) -> Iterator[DividedVecEnv]:
    env = DividedVecEnv(game, n_envs, workers=workers, **words)
    try:
        yield env
    finally:
        env.close()


_KEPT: dict[str, DividedVecEnv] = {}


@contextmanager
def shared(game: str) -> Iterator[DividedVecEnv]:
    """Four environments in two processes that tests use one after another: to start a process takes seconds."""
    if game not in _KEPT:
        _KEPT[game] = DividedVecEnv(game, 4, workers=2, seed=0)
    yield _KEPT[game]
    for name in ("step_wait", "step"):
        vars(_KEPT[game]).pop(name, None)  # what a test has put in its place
        vars(_KEPT[game].mine).pop(name, None)


@pytest.fixture(scope="module", autouse=True)
def end_shared() -> Iterator[None]:
    yield
    while _KEPT:
        _KEPT.popitem()[1].close()


def build(env: Any, extractor: str = "coord", **words: Any) -> A2C:
    kwargs = coordrl.policy_kwargs(extractor)
    kwargs |= {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"alpha": 0.99, "eps": 1e-5}}
    arguments = {"ent_coef": 0.01, "vf_coef": 0.25, "seed": 0, "device": "cpu", **words}
    return A2C("CnnPolicy", env, policy_kwargs=kwargs, **arguments)


def is_running(pid: int) -> bool:
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_for_end(pids: list[int]) -> None:
    until = time.monotonic() + 20
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < until, "a worker outlived its parent"
        time.sleep(0.1)


# ------------------------------------------------------------------------------------------- the environments


SLOW = pytest.mark.slow


@pytest.mark.parametrize("game", ["Breakout", pytest.param("MsPacman", marks=SLOW), pytest.param("Pong", marks=SLOW)])
def test_it_is_atarivecenv_bit_for_bit(game: str) -> None:
    rng = np.random.default_rng(0)
    whole = AtariVecEnv(game, 5, seed=3)
    with divided(game, 5, 2, seed=3) as parts:
        assert parts.sizes == [3, 2]
        for seed in (None, 7):  # as constructed, and seeded anew
            for env in (whole, parts):
                if seed is not None:
                    env.seed(seed)
            np.testing.assert_array_equal(parts.reset(), whole.reset())
            assert parts.reset_infos == whole.reset_infos
            for _ in range(150):
                actions = rng.integers(whole.action_space.n, size=5)
                one, other = whole.step(actions), parts.step(actions)
                for wanted, found in zip(one[:3], other[:3], strict=True):
                    assert found.dtype == wanted.dtype
                    np.testing.assert_array_equal(found, wanted)
                for wanted, found in zip(one[3], other[3], strict=True):
                    assert found.keys() == wanted.keys()
                    final = wanted.pop("terminal_observation", None), found.pop("terminal_observation", None)
                    np.testing.assert_array_equal(*final)
                    for info in (wanted, found):
                        info.get("episode", {}).pop("t", None)
                    assert found == wanted
            assert parts.get_attr("lives") == whole.get_attr("lives")
    whole.close()


def test_numbers_of_processes_are_checked() -> None:
    for workers in (0, 3, -1):
        with pytest.raises(RequestError, match=f"workers is {workers}; it is from 1 to the number of environments, 2"):
            DividedVecEnv("Pong", 2, workers=workers)
    with pytest.raises(RequestError, match="n_envs is 0"):
        DividedVecEnv("Pong", 0)
    with pytest.raises(RequestError, match="did you mean Pong"):
        DividedVecEnv("Pongg", 2, workers=2)


def test_by_default_each_core_that_may_be_used_gets_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(allowed_cores())
    assert default_workers(1) == default_workers(7) == 1
    assert default_workers(400) == cores
    assert default_workers(8) == min(cores, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert default_workers(400) == 1


def test_one_worker_is_this_process_alone() -> None:
    with divided("Pong", 2, 1) as env:
        assert env.parts == []
        model = build(env)
        assert model.choose_path() == "fast"


def test_steps_out_of_order_and_wrong_actions_are_refused() -> None:
    with divided("Pong", 2, 2, seed=0) as env:
        with pytest.raises(RequestError, match="never reset"):
            env.step(np.zeros(2, dtype=int))
        env.reset()
        with pytest.raises(RequestError, match="without step_async"):
            env.step_wait()
        with pytest.raises(RequestError, match="Pong has 0 to 5"):
            env.step(np.array([0, 6]))
        env.step_async(np.zeros(2, dtype=int))
        with pytest.raises(RequestError, match="twice"):
            env.step_async(np.zeros(2, dtype=int))
        env.reset()  # finishes the step under way
        env.step(np.zeros(2, dtype=int))


def test_infos_survive_their_way_through_json() -> None:
    final = np.full((4, 84, 84), 7, dtype=np.uint8)
    infos = [{"lives": 3}, {"lives": 0, "terminal_observation": final, "episode": {"r": 2.5, "l": 10, "t": 1.0}}]
    finals = np.zeros((2, 4, 84, 84), dtype=np.uint8)
    back = unpack_infos(json.loads(json.dumps(pack_infos(infos, finals))), finals)
    np.testing.assert_array_equal(back[1].pop("terminal_observation"), infos[1].pop("terminal_observation"))
    assert back == infos


def test_arrays_in_shared_memory_do_not_overlap() -> None:
    memory = Memory(count_bytes(3, 2))
    arrays = PartArrays(3, 2, memory.buffer)
    for number, array in enumerate(vars(arrays).values(), 1):
        array[:] = number
    for number, array in enumerate(vars(arrays).values(), 1):
        assert (array == number).all()
        assert array.ctypes.data % 64 == 0


# ------------------------------------------------------------------------------------------------ the training


OTHERS = [pytest.param(name, marks=SLOW) for name in ("nature", "coord-all", "coord-r", "shuffled", "constant")]


@pytest.mark.parametrize("extractor", ["coord", *OTHERS])
def test_the_parts_of_the_gradient_add_up_to_that_of_the_whole_rollout(extractor: str) -> None:
    """The whole: SB3's own loss and autograd, in float64, of the rollout that all parts have played."""
    with divided("Breakout", 5, 2, seed=0) as env:
        model = build(env, extractor)
        model.learn(0)
        callback = CallbackList([])
        callback.init_callback(model)
        for _ in range(3):
            assert model.collect_rollouts(env, callback, model.rollout_buffer, 5)
            assert model.path == "fast, divided over 2 processes"
            found = [model._network.gradients[parameter].double() for parameter in model.policy.parameters()]
            policy, buffer = build(AtariVecEnv("Breakout", 1, seed=0), extractor).policy, model.rollout_buffer
            policy.load_state_dict(model.policy.state_dict())
            policy = policy.double()
            images = torch.from_numpy(buffer.observations.reshape(-1, 4, 84, 84)).double() / 255.0
            features = policy.features_extractor(images)
            chosen = torch.distributions.Categorical(logits=policy.action_net(features))
            actions, advantages, returns = (
                torch.from_numpy(getattr(buffer, name).reshape(-1)).double()
                for name in ("actions", "advantages", "returns")
            )
            values = policy.value_net(features).flatten()
            np.testing.assert_allclose(buffer.values.reshape(-1), values.detach(), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(
                buffer.log_probs.reshape(-1), chosen.log_prob(actions).detach(), rtol=1e-4, atol=1e-5
            )
            value_loss = (returns - values).square().mean()
            policy_loss = -(advantages * chosen.log_prob(actions)).mean()
            (policy_loss + 0.25 * value_loss - 0.01 * chosen.entropy().mean()).backward()
            truth = [parameter.grad for parameter in policy.parameters()]
            error = torch.stack([(mine - one).norm() for mine, one in zip(found, truth, strict=True)]).norm()
            assert error < 2e-4 * torch.stack([one.norm() for one in truth]).norm()
            model.train()
            assert model.logger.name_to_value["train/value_loss"] == pytest.approx(value_loss.item(), rel=1e-3)
            assert model.logger.name_to_value["train/policy_loss"] == pytest.approx(policy_loss.item(), abs=1e-4)


class Late(BaseCallback):
    """Does something at each step of a rollout that is over."""

    may_be_late = True

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.act = act

    def _on_step(self) -> bool:
        return self.act(self) is not False


class Diagnose(BaseCallback):
    """Makes a backward pass of its own when a rollout is over, and clears what it left."""

    may_be_late = True

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        policy: Any = self.model.policy
        observations = torch.from_numpy(np.asarray(self.model._last_obs))
        policy.predict_values(observations).sum().backward()
        policy.optimizer.zero_grad(set_to_none=False)


def test_a_backward_pass_of_somebody_else_does_not_touch_the_update() -> None:
    found = []
    for callback in (None, Diagnose()):
        with shared("Breakout") as env:
            model = build(env)
            model.learn(4 * 5 * 3, callback=callback)
            assert model.path == "fast, divided over 2 processes"
            found.append(torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()]))
    assert torch.equal(*found)


def test_returns_are_discounted_by_the_buffers_numbers_as_in_sb3() -> None:
    class Change(BaseCallback):
        may_be_late = True

        def _on_rollout_start(self) -> None:
            self.model.gamma, self.model.rollout_buffer.gamma, self.model.rollout_buffer.gae_lambda = 0.9, 0.5, 1.0

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            buffer = self.model.rollout_buffer
            going_on = buffer.episode_starts[1:] == 0
            wanted = buffer.rewards[:-1] + 0.5 * buffer.returns[1:]
            assert going_on.any()
            np.testing.assert_allclose(buffer.returns[:-1][going_on], wanted[going_on], rtol=1e-5, atol=1e-6)

    with shared("Breakout") as env:
        assert build(env).learn(40, callback=Change()).path == "fast, divided over 2 processes"


def test_a_divided_rollout_is_what_its_actions_do_in_one_process() -> None:
    with shared("Breakout") as env:
        model, noted = build(env), []

        def note(callback: Late) -> None:
            names = ("actions", "rewards", "dones", "new_obs")
            noted.append({name: np.asarray(callback.locals[name]).copy() for name in names})

        model.learn(4 * 100, callback=Late(note))
        assert model.path == "fast, divided over 2 processes"
        last = model._last_obs
        np.testing.assert_array_equal(model._last_episode_starts, noted[-1]["dones"])
        whole = AtariVecEnv("Breakout", 4, seed=0)  # the model's seed, which SB3 gives to its environments
        whole.reset()
        for step in noted:
            observations, rewards, dones, _ = whole.step(step["actions"])
            np.testing.assert_array_equal(step["rewards"], rewards)
            np.testing.assert_array_equal(step["dones"], dones)
            np.testing.assert_array_equal(step["new_obs"], observations)
        np.testing.assert_array_equal(last, observations)
        assert sum(step["dones"].sum() for step in noted) > 0
        assert env.get_attr("lives") == whole.get_attr("lives")
        whole.close()


def cut_off_every_third_step(env: DividedVecEnv) -> None:
    """Say of the first environment that each third step ended its game by time."""
    step_wait, steps = env.mine.step_wait, []

    def cut() -> Any:
        observations, rewards, dones, infos = step_wait()
        steps.append(1)
        if len(steps) % 3 == 0:
            dones[0] = True
            infos[0] |= {"TimeLimit.truncated": True, "terminal_observation": observations[0].copy()}
        return observations, rewards, dones, infos

    env.mine.step_wait = cut  # type: ignore[method-assign]  # games are cut off after half an hour otherwise


def test_returns_and_advantages_are_those_of_the_formula_and_cut_off_games_are_bootstrapped() -> None:
    with shared("Breakout") as env:
        model = build(env, gamma=0.9, gae_lambda=0.8)
        model.learn(4 * 400)  # until there are rewards, and lives are lost
        with torch.no_grad():
            model.policy.value_net.bias.fill_(7.0)
        cut_off_every_third_step(env)
        starts_before = model._last_episode_starts.copy()
        seen: dict[str, list[Any]] = {name: [] for name in ("rewards", "dones", "new_obs")}

        def note(callback: Late) -> None:
            for name, into in seen.items():
                into.append(np.asarray(callback.locals[name]).copy())

        callback = Late(note)
        callback.init_callback(model)
        for rollout in range(8):
            for into in seen.values():
                into.clear()
            model.collect_rollouts(env, callback, model.rollout_buffer, 5)
            buffer = model.rollout_buffer
            dones, rewards = np.stack(seen["dones"]).astype(float), np.stack(seen["rewards"]).astype(float)
            with torch.no_grad():
                after = model.policy.predict_values(torch.from_numpy(np.stack(seen["new_obs"]).reshape(-1, 4, 84, 84)))
            after = after.numpy().reshape(5, 4).astype(float)
            for step in range(5):
                if (5 * rollout + step + 1) % 3 == 0:
                    assert dones[step, 0] == 1
                    rewards[step, 0] += 0.9 * after[step, 0]
            values = buffer.values.astype(float)
            np.testing.assert_allclose(values[1:], after[:-1], rtol=1e-4, atol=1e-5)
            advantage, advantages = np.zeros(4), np.zeros((5, 4))
            for step in reversed(range(5)):
                left = 1.0 - dones[step]
                following = after[step]
                advantage = rewards[step] + 0.9 * following * left - values[step] + 0.9 * 0.8 * left * advantage
                advantages[step] = advantage
            np.testing.assert_allclose(buffer.rewards, rewards, rtol=1e-4, atol=1e-4)
            np.testing.assert_allclose(buffer.advantages, advantages, rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(buffer.returns, advantages + values, rtol=1e-3, atol=1e-3)
            np.testing.assert_array_equal(buffer.episode_starts, np.vstack([starts_before, dones[:-1]]))
            np.testing.assert_allclose(callback.locals["values"].numpy()[:, 0], after[-1], rtol=1e-4, atol=1e-5)
            np.testing.assert_array_equal(callback.locals["rewards"], buffer.rewards[-1])
            starts_before = dones[-1]
        assert buffer.full


def test_a_divided_gradient_is_the_undivided_one_update_by_update() -> None:
    compare_divided(updates=5)


@pytest.mark.slow
def test_a_divided_gradient_is_the_undivided_one_at_each_of_a_hundred_updates() -> None:
    compare_divided(updates=100)


def compare_divided(updates: int) -> None:
    """Compute each update's gradient again in one process, from the same weights and the same rollout."""
    errors = []
    with shared("Breakout") as env:
        model = build(env)
        model.learn(0)
        callback = CallbackList([])
        callback.init_callback(model)
        for _ in range(updates):
            model.collect_rollouts(env, callback, model.rollout_buffer, 5)
            found = [model._network.gradients[parameter].clone() for parameter in model.policy.parameters()]
            whole, buffer = make_network(model.policy, 4, 5), model.rollout_buffer
            assert isinstance(whole, FastNetwork)
            whole.refresh()
            for step in range(5):
                whole.forward(buffer.observations[step], step)
            weights = {"ent_coef": 0.01, "vf_coef": 0.25, "normalize_advantage": False}
            loss = gradients(whole, buffer, **weights)
            wanted = [whole.gradients[parameter] for parameter in model.policy.parameters()]
            error = torch.stack([(mine - one).norm() for mine, one in zip(found, wanted, strict=True)]).norm()
            errors.append(float(error / torch.stack([one.norm() for one in wanted]).norm()))
            for mine, one in zip(model._loss[:3], loss[:3], strict=True):
                assert float(mine) == pytest.approx(float(one), rel=1e-4, abs=1e-5)
            model.train()
    # A unit whose sum is 0 up to rounding lets everything through its ReLU on one side, and nothing on the other.
    assert np.median(errors) < 1e-5
    assert max(errors) < 1e-2


def by_step(model: Any, name: str) -> Any:
    """Return what the rollout buffer held before the update flattened it, (n_steps, n_envs, ...)."""
    flat = getattr(model.rollout_buffer, name)
    return flat.reshape(model.n_envs, model.n_steps, *flat.shape[1:]).swapaxes(0, 1)


def test_two_models_on_the_same_environments_take_turns() -> None:
    with shared("Pong") as env:
        one, other = build(env), build(env)
        with torch.no_grad():
            other.policy.action_net.bias[3] = 1000.0  # plays 3 alone
        for model in (one, other, one, other):
            model.learn(40)
            assert model.path == "fast, divided over 2 processes"
            actions = by_step(model, "actions")
            assert (len(np.unique(actions[:, :2])), len(np.unique(actions[:, 2:]))) == (
                (1, 1) if model is other else pytest.approx((4, 4), abs=2)
            )
            np.testing.assert_array_equal(
                by_step(model, "observations")[0, :, -1] > 255, np.zeros((4, 84, 84), dtype=bool)
            )


def test_two_runs_with_one_seed_and_one_number_of_processes_are_bit_equal() -> None:
    found = []
    for _ in range(2):
        with shared("Breakout") as env:
            model = build(env)
            model.learn(400)
            assert model.path == "fast, divided over 2 processes"
            found.append([parameter.detach().clone() for parameter in model.policy.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_callback_that_must_see_each_step_at_once_does() -> None:
    with shared("Pong") as env:
        model, steps = build(env), []
        step_wait = env.step_wait

        def count() -> Any:
            steps.append(1)
            return step_wait()

        class Eager(BaseCallback):
            def _on_step(self) -> bool:
                assert len(steps) == self.n_calls
                return True

        env.step_wait = count  # type: ignore[method-assign]  # to see when a step is made
        model.learn(40, callback=Eager())
        assert model.path == "fast"
        assert len(steps) == 10
        model.learn(40, callback=None, reset_num_timesteps=False)
        assert model.path == "fast, divided over 2 processes"
        assert len(steps) == 10


def test_which_callbacks_may_be_late() -> None:
    eager = CheckpointCallback(10, "nowhere")
    assert may_be_late(None)
    assert may_be_late(CallbackList([]))
    assert may_be_late(CallbackList([Late(print), CallbackList([Late(print)])]))
    assert not may_be_late(eager)
    assert not may_be_late(CallbackList([Late(print), eager]))


def test_a_late_callback_that_stops_or_changes_weights_is_heeded() -> None:
    def change(callback: Late) -> None:
        if callback.n_calls == 3:
            with torch.no_grad():
                callback.model.policy.value_net.bias.add_(100.0)

    with shared("Pong") as env:
        model = build(env)
        before = [parameter.detach().clone() for parameter in model.policy.parameters()]
        model.learn(400, callback=Late(lambda callback: callback.n_calls < 3))
        assert model.num_timesteps == 12
        assert all(torch.equal(one, other) for one, other in zip(before, model.policy.parameters(), strict=True))
        model.learn(20, callback=Late(change))
        assert model.policy.value_net.bias.item() > 99  # and the update was made from the changed weights
        assert model.logger.name_to_value["train/value_loss"] > 5000


def test_what_cannot_be_divided_goes_on_in_one_process() -> None:
    with shared("Pong") as env:
        assert build(env, normalize_advantage=True).learn(20).path == "fast"
        assert build(env, fast=False).learn(20).path.startswith("general")
        assert build(VecCheckNan(env)).learn(20).path == "fast"


def test_weights_that_are_no_numbers_end_a_divided_training_in_torchs_words() -> None:
    with shared("Pong") as env:
        model = build(env).learn(20)
        with torch.no_grad():
            model.policy.action_net.bias.fill_(float("nan"))
        with pytest.raises(ValueError, match="invalid values"):
            model.learn(20)
        with torch.no_grad():
            model.policy.action_net.bias.fill_(0.0)
        model.learn(20)  # and the workers are still there


def test_a_model_learns_on_after_it_was_interrupted_in_mid_rollout() -> None:
    with shared("Pong") as env:
        model = build(env).learn(20)
        step = env.mine.step_wait

        def interrupt() -> Any:
            env.mine.step_wait = step
            step()
            raise KeyboardInterrupt

        env.mine.step_wait = interrupt  # type: ignore[method-assign]  # Ctrl-C in a notebook, at its worst moment
        with pytest.raises(KeyboardInterrupt):
            model.learn(200)
        steps = model.num_timesteps
        model.learn(40, reset_num_timesteps=False)
        assert model.num_timesteps == steps + 40
        assert model.path == "fast, divided over 2 processes"
        observations = by_step(model, "observations")
        np.testing.assert_array_equal(observations[1:, :, :-1], observations[:-1, :, 1:])  # stacks of frames go on


# ------------------------------------------------------------------------------------------------ the processes


def test_an_error_in_a_worker_is_raised_as_itself() -> None:
    with shared("Pong") as env:
        worker = env.parts[0].worker
        env.reset()
        worker.tell({"do": "reset", "seed": -5})
        with pytest.raises(RequestError, match="seed is -5") as caught:
            worker.answer()
        assert "In a worker process" in caught.value.__notes__[0]
        worker.tell({"do": "dance"})
        with pytest.raises(AttributeError, match="do_dance"):
            worker.answer()
        env.reset()


def test_answers_belong_to_their_requests_whatever_is_interrupted() -> None:
    with shared("Pong") as env:
        env.reset()
        worker = env.parts[0].worker
        receive = worker._channel.receive

        def interrupt() -> Any:
            worker._channel.receive = receive
            raise KeyboardInterrupt

        whole = AtariVecEnv("Pong", 4, seed=0)
        for seed in range(3):
            worker._channel.receive = interrupt  # type: ignore[method-assign]  # Ctrl-C while waiting
            with pytest.raises(KeyboardInterrupt):
                env.step(np.zeros(4, dtype=int))
            for one in (env, whole):
                one.seed(seed)
            np.testing.assert_array_equal(env.reset(), whole.reset())
            np.testing.assert_array_equal(env.step(np.full(4, 2))[0], whole.step(np.full(4, 2))[0])
        whole.close()
        assert {"infos", "number"} == worker_answer(worker, {"do": "reset", "seed": 3}).keys()
        worker.tell({"do": "dance"})
        worker.forsake()
        assert "infos" in worker_answer(worker, {"do": "step"})
        worker.tell({"do": "dance"})
        with pytest.raises(AttributeError, match="do_dance"):
            worker.tell({"do": "step"})


def worker_answer(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    worker.tell(request)
    return worker.answer()


def test_a_network_that_a_worker_cannot_make_ends_the_training() -> None:
    with shared("Pong") as env:
        model = build(env).learn(20)
        tell = env.parts[0].worker.tell

        def spoil(message: Any, fds: Any = ()) -> None:
            tell({**message, **({"n_steps": -1} if message["do"] == "network" else {})}, fds)

        env.parts[0].worker.tell = spoil  # type: ignore[method-assign]  # as if memory had run out there
        other = build(env)
        with pytest.raises((ValueError, RuntimeError, OSError, ArithmeticError)):
            other.learn(20)
        with pytest.raises((ValueError, RuntimeError, OSError, AssertionError)):
            other.learn(20)
        env.parts[0].worker.tell = tell  # type: ignore[method-assign]
        model.learn(20)
        assert model.path == "fast, divided over 2 processes"


def test_closed_environments_are_said_to_be_closed() -> None:
    with divided("Pong", 4, 2, seed=0) as env:
        env.reset()
    for use in (env.reset, lambda: env.step(np.zeros(4, dtype=int))):
        with pytest.raises(RequestError, match="this DividedVecEnv is closed"):
            use()


def test_a_worker_heeds_its_parent_while_it_still_imports(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time; time.sleep(120)")
    script = f"import sys, time\nsys.path.insert(0, {str(tmp_path)!r})\n"
    script += "from coordrl.workers import Worker\nw = Worker('slow', 'x')\n"
    script += "print(w.pid, flush=True)\ntime.sleep(300)\n"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.4)
        os.kill(pid, signal.SIGTERM) if is_ignoring(pid) else None
        assert is_running(pid)
        parent.kill()
        parent.wait()
        wait_for_end([pid])


def test_a_worker_that_was_asked_nothing_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "slow.py").write_text("import time; time.sleep(120)")
    monkeypatch.syspath_prepend(tmp_path)
    began = time.monotonic()
    worker = Worker("slow", "2 of 2")  # minutes from its first answer
    worker.close()
    worker.close()
    assert not is_running(worker.pid)
    assert time.monotonic() - began < 30


def test_a_worker_that_cannot_be_imported_says_why_when_it_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken.py").write_text("raise ValueError('a library is missing')")
    monkeypatch.syspath_prepend(tmp_path)
    worker = Worker("broken", "2 of 2")
    worker.tell({"do": "make"})
    with pytest.raises(ValueError, match="a library is missing"):
        worker.answer()
    worker.close()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("seconds", [0.4, 1.0, 2.0])
def test_ctrl_c_while_everything_is_imported_ends_at_once(seconds: float, tmp_path: Path) -> None:
    words = ["-m", "coordrl", "train", "--game", "Pong", "--workers", "2", "--out", str(tmp_path)]
    with subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True) as process:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not (pids := children.read_text().split()):
            time.sleep(0.01)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    wait_for_end([int(pid) for pid in pids])


def is_ignoring(pid: int) -> bool:
    """Whether a process ignores SIGTERM by now."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    ignored = next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn"))
    return bool(ignored >> (signal.SIGTERM - 1) & 1)


def test_paths_that_are_no_strings_do_not_disturb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, Path("/nowhere")])
    with divided("Pong", 4, 2, seed=0) as env:
        env.reset()


def test_the_end_of_a_worker_is_said_in_one_line() -> None:
    with divided("Pong", 4, 2, seed=0) as env:
        model = build(env).learn(20)
        os.kill(env.parts[0].worker.pid, signal.SIGKILL)
        with pytest.raises(ResumableError, match="worker process 2 of 2 was ended by signal 9"):
            model.learn(100)


def test_workers_take_no_notice_of_signals_that_the_parent_answers() -> None:
    with divided("Pong", 4, 2, seed=0) as env:
        env.reset()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(env.parts[0].worker.pid, number)
        env.step(np.zeros(4, dtype=int))


def test_closing_twice_and_forgetting_end_the_workers() -> None:
    env = DividedVecEnv("Pong", 4, workers=2)
    pids = [part.worker.pid for part in env.parts]
    env.close()
    env.close()
    wait_for_end(pids)
    env = DividedVecEnv("Pong", 4, workers=2)
    pids = [part.worker.pid for part in env.parts]
    env.mine.close()
    del env
    wait_for_end(pids)


_SCRIPT = """
import coordrl, sys
env = coordrl.DividedVecEnv("Pong", 4, workers=2, seed=0)
print(env.parts[0].worker.pid, flush=True)
model = coordrl.A2C("CnnPolicy", env, device="cpu", seed=0).learn(40)
print(model.path, flush=True)
"""


@pytest.mark.parametrize(
    "end", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=SLOW), pytest.param(signal.SIGSEGV, marks=SLOW)]
)
def test_no_worker_outlives_a_parent_that_is_killed_in_mid_training(end: signal.Signals) -> None:
    script = _SCRIPT + "model.learn(10_000_000)\n"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert parent.stdout.readline() == "fast, divided over 2 processes\n"
        assert is_running(pid)
        parent.send_signal(end)
        parent.wait(timeout=20)
        wait_for_end([pid])


@pytest.mark.slow
def test_no_worker_outlives_a_parent_whose_fork_lives_on() -> None:
    """The fork holds a copy of the parent's end of the socket, which therefore does not close."""
    script = (
        _SCRIPT
        + "import os\nif os.fork() == 0:\n    import time; time.sleep(300)\nprint('forked', flush=True)\nimport time; time.sleep(300)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert parent.stdout.readline() == "fast, divided over 2 processes\n"
        assert parent.stdout.readline() == "forked\n"
        parent.kill()
        parent.wait(timeout=20)
        wait_for_end([pid])
        os.killpg(parent.pid, signal.SIGKILL)  # the fork


@pytest.mark.parametrize("way", ["script", pytest.param("stdin", marks=SLOW)])
def test_it_works_from_an_unguarded_script_and_without_any_file(way: str, tmp_path: Path) -> None:
    """In a folder with a module that would be fatal if a worker took it for torch."""
    (tmp_path / "torch.py").write_text("raise SystemExit('the wrong torch')\n")
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "elsewhere" / "script.py"
    file.write_text(_SCRIPT)
    command = [sys.executable, str(file)] if way == "script" else [sys.executable, "-P", "-"]
    with file.open() as text:
        done = subprocess.run(
            command, stdin=text, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("fast, divided over 2 processes\n")
    assert done.stderr == ""
    assert not is_running(int(done.stdout.split()[0]))


@pytest.mark.slow
def test_a_divided_training_that_is_killed_goes_on_from_its_checkpoint_and_leaves_no_worker(tmp_path: Path) -> None:
    words = [
        "--game",
        "Breakout",
        "--steps",
        "1600",
        "--workers",
        "2",
        "--eval-every",
        "0",
        "--checkpoint-every",
        "400",
        "--out",
    ]
    command = [sys.executable, "-m", "coordrl.train", *words, str(tmp_path)]
    folder = tmp_path / "zoo-v4" / "a2c-coord" / "Breakout" / "seed-0"
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as training:
        until = time.monotonic() + 120
        while not [*folder.glob("checkpoints/0*")] and time.monotonic() < until:
            time.sleep(0.02)
        children = Path(f"/proc/{training.pid}/task/{training.pid}/children").read_text().split()
        assert len(children) == 1
        training.kill()
        training.wait()
        wait_for_end([int(child) for child in children])
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "going on from the checkpoint at step" in done.stderr
    assert json.loads((folder / "run.json").read_text())["path"] == "fast, divided over 2 processes"
    assert json.loads((folder / "result.json").read_text())["steps"] == 1600


def test_a_run_that_goes_on_keeps_its_number_of_processes_unless_asked_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = TrainArguments(game="Pong", out=tmp_path)
    spec, recipe = _specify(arguments)
    folder = RunFolder(spec.folder(tmp_path))
    assert _count_workers(spec, arguments, folder) == 1
    folder.open(spec, {"processes": 3}, recipe)
    assert _count_workers(spec, arguments, folder) == 3
    assert _count_workers(spec, replace(arguments, workers=2), folder) == 2
    assert _count_workers(spec, replace(arguments, general=True), folder) == 1
    for damaged in (0, 17, "3", None, True):
        folder.add_facts({"processes": damaged})
        assert _count_workers(spec, arguments, folder) == 1


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("--workers 0", "it is from 1 to the number of environments, 16"),
        ("--workers 17", "it is from 1 to the number of environments, 16"),
        ("--workers 2 --general", "the general path has one process; leave it out"),
        ("--workers 2 --agent dqn", "dqn has one process; leave it out"),
        ("--workers 2 --game PlaceMatters", "PlaceMatters is played in one process; leave it out"),
        ("--workers 2 --device cuda", "the network is not on a CPU; leave it out"),
    ],
)
def test_numbers_of_workers_that_cannot_be_are_refused(
    words: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--game", "Pong", *words.split(), "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"coordrl: --workers is {words.split()[1]}, but {reason}\n"
    assert [*tmp_path.iterdir()] == []


def test_a_worker_that_ends_at_its_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ending.py").write_text("import os; os._exit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    worker = Worker("ending", "1 of 1")
    worker.tell({"do": "make"})
    with pytest.raises(ResumableError, match="worker process 1 of 1 ended with exit code 3"):
        worker.answer()
    worker.close()
