"""DQN: SB3's, bit for bit, with every switch off; each switch against its formula; small problems solved."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation
from numpy.typing import NDArray
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, IdentityEnv, SimpleMultiObsEnv
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from stable_baselines3.dqn.policies import DQNPolicy

import coordrl
from coordrl.atari import AtariVecEnv
from coordrl.dqn import DQN
from coordrl.errors import RequestError
from coordrl.replay import FrameReplayBuffer

SMALL: dict[str, Any] = {"buffer_size": 300, "learning_starts": 60, "batch_size": 8, "target_update_interval": 40}


def weights(model: stable_baselines3.DQN) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.policy.state_dict().items()}


def chain(states: int = 5) -> gym.Env[Any, Any]:
    return Chain(states)


class Chain(gym.Env[NDArray[np.float32], np.int64]):
    """Five states in a row, right or left; only a step right from the last one pays, and ends the episode."""

    def __init__(self, states: int = 5) -> None:
        self.states = states
        self.observation_space = spaces.Box(0, 1, (states,), np.float32)
        self.action_space = spaces.Discrete(2)

    def observe(self) -> NDArray[np.float32]:
        return np.eye(self.states, dtype=np.float32)[self.state]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(self.states))
        self.steps = 0
        return self.observe(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.steps += 1
        over = bool(action == 1 and self.state == self.states - 1)
        self.state = min(max(self.state + (1 if action == 1 else -1), 0), self.states - 1)
        return self.observe(), float(over), over, self.steps >= 30, {}


def exact_values(states: int, gamma: float) -> NDArray[np.float64]:
    """Compute the chain's optimal Q values by value iteration."""
    q = np.zeros((states, 2))
    for _ in range(500):
        best = q.max(axis=1)
        for state in range(states):
            q[state, 0] = gamma * best[max(state - 1, 0)]
            q[state, 1] = 1.0 if state == states - 1 else gamma * best[state + 1]
    return q


@pytest.mark.parametrize("n_steps", [1, 3])
@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy"])
def test_with_every_switch_off_it_is_sb3s_bit_for_bit(policy: str, n_steps: int) -> None:
    def env() -> gym.Env[Any, Any]:
        if policy == "MlpPolicy":
            return Chain()
        fake = FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=True)
        fake.observation_space.seed(0)  # it draws its pictures from its space
        return fake

    made = []
    for algorithm in (DQN, stable_baselines3.DQN):
        model = algorithm(policy, env(), seed=1, device="cpu", n_steps=n_steps, **SMALL)
        model.learn(250)
        made.append((weights(model), model.logger.name_to_value["train/loss"], np.random.rand(), model._n_updates))
    (mine, *more), (theirs, *others) = made
    assert more == others
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("n_steps", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_on_atari_it_is_sb3s_bit_for_bit_in_an_eighth_of_the_memory(n_steps: int) -> None:
    made = []
    for algorithm in (DQN, stable_baselines3.DQN):
        env = AtariVecEnv("Pong", 1, seed=3)
        model = algorithm(
            "CnnPolicy", env, seed=1, device="cpu", n_steps=n_steps, policy_kwargs=coordrl.policy_kwargs(), **SMALL
        )
        model.learn(130)
        env.close()
        made.append((weights(model), np.random.rand()))
        size = sum(value.nbytes for value in vars(model.replay_buffer).values() if isinstance(value, np.ndarray))
        made[-1] += (size,)  # type: ignore[assignment]
    (mine, drawn, size), (theirs, others, large) = made  # type: ignore[misc]
    assert drawn == others
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert size < 0.17 * large  # room for 300 is mostly room for a stack more; 1/7.6 for a million


def test_the_memory_is_chosen_by_what_is_observed() -> None:
    def stacked() -> gym.Env[Any, Any]:
        return FakeImageEnv(screen_height=40, screen_width=40, n_channels=1, discrete=True, channel_first=True)

    assert type(DQN("MlpPolicy", Chain(), device="cpu").replay_buffer) is ReplayBuffer
    assert type(DQN("MlpPolicy", Chain(), device="cpu", n_steps=3).replay_buffer) is NStepReplayBuffer
    stack = DQN("CnnPolicy", VecFrameStack(DummyVecEnv([stacked]), 3, "first"), device="cpu", buffer_size=50)
    assert isinstance(stack.replay_buffer, FrameReplayBuffer)
    assert stack.replay_buffer.n_stack == 3
    colours = FakeImageEnv(screen_height=40, screen_width=40, n_channels=3, discrete=True)
    assert type(DQN("CnnPolicy", colours, device="cpu", buffer_size=50).replay_buffer) is ReplayBuffer
    assert isinstance(DQN("MlpPolicy", Chain(), device="cpu", prioritized=True).replay_buffer, FrameReplayBuffer)
    env = VecFrameStack(DummyVecEnv([stacked]), 3, "first")
    twice: dict[str, Any] = {
        "optimize_memory_usage": True,
        "replay_buffer_kwargs": {"handle_timeout_termination": False},
    }
    assert type(DQN("CnnPolicy", env, device="cpu", buffer_size=50, **twice).replay_buffer) is ReplayBuffer


@pytest.mark.parametrize(
    ("policy_kwargs", "fused"),
    [
        (None, True),
        ({"optimizer_kwargs": {"eps": 1e-4}}, True),
        ({"optimizer_kwargs": {"foreach": True}}, None),
        ({"optimizer_class": torch.optim.RMSprop}, None),
    ],
)
def test_fast_takes_a_fused_adam_unless_another_optimiser_is_asked_for(policy_kwargs: Any, fused: bool | None) -> None:
    model = DQN("MlpPolicy", Chain(), device="cpu", fast=True, policy_kwargs=policy_kwargs)
    assert model.policy.optimizer.defaults.get("fused") == fused


def test_sb3s_own_dqn_takes_the_memory() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that n_steps is for its own memories
        model = stable_baselines3.DQN(
            "MlpPolicy", Chain(), seed=0, device="cpu", replay_buffer_class=FrameReplayBuffer, **SMALL
        )
    model.learn(150)
    twin = stable_baselines3.DQN("MlpPolicy", Chain(), seed=0, device="cpu", **SMALL)
    twin.learn(150)
    assert all(torch.equal(value, weights(twin)[name]) for name, value in weights(model).items())


class Count(BaseCallback):
    """Counts updates per transition."""

    def __init__(self) -> None:
        super().__init__()
        self.ratios: list[tuple[int, int]] = []

    def _on_step(self) -> bool:
        self.ratios.append((self.num_timesteps, self.model._n_updates))
        return True


@pytest.mark.parametrize(
    ("n_envs", "train_freq", "gradient_steps"), [(1, 4, 1), (8, 4, 1), (3, 4, 1), (16, 4, 2), (2, 8, 3)]
)
def test_the_ratio_of_gradient_steps_to_transitions_does_not_change_with_the_environments(
    n_envs: int, train_freq: int, gradient_steps: int
) -> None:
    model = DQN(
        "MlpPolicy", DummyVecEnv([chain] * n_envs), device="cpu", train_freq=train_freq, gradient_steps=gradient_steps,
        learning_starts=96, batch_size=4, buffer_size=1000,
    )  # fmt: skip
    count = Count()
    model.learn(960, callback=count)
    learnt = [(steps, updates) for steps, updates in count.ratios if updates > 0]
    steps, updates = learnt[-1][0] - learnt[0][0], learnt[-1][1] - learnt[0][1]
    assert updates == pytest.approx(
        steps * gradient_steps / train_freq, abs=1 + max(gradient_steps, n_envs * gradient_steps / train_freq)
    )


def test_environments_explore_each_by_itself() -> None:
    model = DQN(
        "MlpPolicy", DummyVecEnv([chain] * 400), device="cpu", seed=0, buffer_size=400, target_update_interval=400
    )
    model.exploration_rate = 0.5
    observations = np.repeat(np.eye(5, dtype=np.float32)[:1], 400, axis=0)
    greedy = model.predict(observations, deterministic=True)[0]
    assert len(set(greedy.tolist())) == 1
    other = (model.predict(observations)[0] != greedy).mean()
    assert 0.15 < other < 0.35  # half of them explore, and half of those find the other action


def test_the_ladder_gives_each_environment_an_epsilon_of_its_own_for_ever() -> None:
    model = DQN("MlpPolicy", DummyVecEnv([chain] * 5), device="cpu", epsilon_ladder=(0.4, 7.0), **SMALL)
    expected = [0.4 ** (1 + 7 * i / 4) for i in range(5)]
    assert model.epsilons(5) == pytest.approx(expected)
    model.learn(200)
    assert model.epsilons(5) == pytest.approx(expected)
    assert model.exploration_rate == pytest.approx(np.mean(expected))
    assert DQN("MlpPolicy", Chain(), device="cpu", epsilon_ladder=(0.4, 7.0)).epsilons(1) == pytest.approx([0.4])


OPEN: list[AtariVecEnv] = []


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def filled(n_envs: int = 1, **switches: Any) -> DQN:
    """A model with some real play in its memory, and no update yet."""
    env = AtariVecEnv("Pong", n_envs, seed=3)
    settings = {**SMALL, "learning_starts": 200, **switches}
    model = DQN("CnnPolicy", env, seed=1, device="cpu", policy_kwargs=coordrl.policy_kwargs(), **settings)
    model.learn(160)
    OPEN.append(env)
    with torch.no_grad():  # another target than the network, as after some updates
        for parameter in model.q_net_target.parameters():
            parameter.mul_(1.1)
    return model


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("prioritized", [False, True])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_the_update_is_that_of_the_formula_in_double_precision(double: bool, prioritized: bool, n_steps: int) -> None:
    model = filled(double=double, prioritized=prioritized, n_steps=n_steps, max_grad_norm=1e9, learning_rate=0.0)
    memory = model.replay_buffer
    assert isinstance(memory, FrameReplayBuffer)
    if memory.priorities is not None:
        memory.priorities.fill(
            np.where(memory.priorities.values > 0, np.random.default_rng(0).random(memory.priorities.size) + 0.1, 0)
        )
    model._current_progress_remaining = 0.5
    np.random.seed(5)
    draw = memory.draw(8)
    batch = memory.fetch(draw)
    expected = np.ones(8)
    if prioritized:
        assert draw.probabilities is not None
        expected = (len(draw.rows) * draw.probabilities) ** -0.7  # beta, half-way from 0.4 to 1
        expected /= expected.max()
    net, target = model.q_net.double(), model.q_net_target.double()
    observations, following = batch.observations.double() / 255, batch.next_observations.double() / 255

    def q_of(network: Any, images: torch.Tensor) -> torch.Tensor:
        values: torch.Tensor = network.q_net(network.features_extractor(images))
        return values

    with torch.no_grad():
        chosen = q_of(net if double else target, following).argmax(dim=1)
        best = q_of(target, following)[torch.arange(8), chosen]
        discounts = batch.discounts.double().flatten() if batch.discounts is not None else model.gamma
        goal = batch.rewards.double().flatten() + (1 - batch.dones.double().flatten()) * discounts * best
    current = q_of(net, observations)[torch.arange(8), batch.actions.flatten()]
    error = goal - current
    huber = torch.where(error.abs() < 1, 0.5 * error**2, error.abs() - 0.5)
    loss = (torch.as_tensor(expected) * huber).mean()
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    net.float(), target.float()
    np.random.seed(5)
    model.train(1, 8)
    assert model.logger.name_to_value["train/loss"] == pytest.approx(loss.item(), rel=1e-4)
    for parameter, gradient in zip(model.q_net.parameters(), gradients, strict=True):
        assert parameter.grad is not None
        assert (parameter.grad - gradient).norm() <= 1e-4 * gradient.norm() + 1e-9
    if memory.priorities is not None:
        last = {(row, env): place for place, (row, env) in enumerate(zip(draw.rows, draw.envs, strict=True))}
        for (row, env), place in last.items():
            wanted = (abs(error[place].item()) + 1e-6) ** 0.6
            assert memory.priorities.values[row * model.n_envs + env] == pytest.approx(wanted, rel=1e-3)


def test_the_advantages_of_a_dueling_network_have_mean_zero_and_its_value_counts() -> None:
    model = filled(dueling=True)
    net: Any = model.q_net
    images = torch.randint(0, 256, (5, 4, 84, 84), dtype=torch.uint8)
    features = net.extract_features(images, net.features_extractor)
    q, values, advantages = net(images), net.value_net(features), net.q_net(features)
    assert torch.allclose(q.mean(dim=1, keepdim=True), values, atol=1e-6)
    assert torch.allclose(q - q.mean(dim=1, keepdim=True), advantages - advantages.mean(dim=1, keepdim=True), atol=1e-6)
    model.learn(240)
    assert all(parameter.grad is not None for parameter in model.q_net.parameters())


@pytest.mark.parametrize(
    "switches",
    [
        {},
        pytest.param({"double": True}, marks=pytest.mark.slow),
        pytest.param({"dueling": True}, marks=pytest.mark.slow),
        {"double": True, "dueling": True, "prioritized": True, "n_steps": 3},
    ],
)
def test_the_fast_form_makes_the_updates_of_the_other_one(switches: dict[str, Any]) -> None:
    slow, fast = filled(2, **switches), filled(2, **switches, fast=True)
    assert fast.policy.optimizer.defaults["fused"]
    for update in range(40):
        fast.policy.load_state_dict(slow.policy.state_dict())
        state = slow.policy.optimizer.state_dict()
        state["param_groups"] = fast.policy.optimizer.state_dict()["param_groups"]
        fast.policy.optimizer.load_state_dict(state)
        if isinstance(slow.replay_buffer, FrameReplayBuffer) and slow.replay_buffer.priorities is not None:
            fast.replay_buffer.priorities.fill(slow.replay_buffer.priorities.values.copy())  # type: ignore[union-attr]
            fast.replay_buffer.max_priority = slow.replay_buffer.max_priority  # type: ignore[union-attr]
        for model in (slow, fast):
            np.random.seed(update)
            model.train(1, 8)
        losses = [model.logger.name_to_value["train/loss"] for model in (slow, fast)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
        pairs = list(zip(slow.q_net.parameters(), fast.q_net.parameters(), strict=True))
        whole = sum(float(one.grad.norm() ** 2) for one, _ in pairs) ** 0.5  # type: ignore[union-attr]
        apart = sum(float((one.grad - other.grad).norm() ** 2) for one, other in pairs) ** 0.5  # type: ignore[operator]
        assert apart <= 1e-5 * whole


def test_the_fast_form_values_what_follows_several_batches_in_one_pass() -> None:
    model = filled(2, fast=True)
    np.random.seed(0)
    batches = model._draw(3, 8)
    np.random.seed(0)
    for batch in batches:
        (alone,) = model._draw(1, 8)
        assert torch.equal(batch.samples.observations, alone.samples.observations)
        assert torch.allclose(batch.next_q, alone.next_q, rtol=1e-5, atol=1e-6)


def test_actors_give_new_transitions_the_error_of_their_n_steps() -> None:
    env = DummyVecEnv([chain] * 3)
    model = DQN(
        "MlpPolicy", env, seed=0, device="cpu", prioritized=True, actor_priorities=True, n_steps=2, gamma=0.5,
        learning_starts=30, gradient_steps=0, buffer_size=900, epsilon_ladder=(0.4, 7.0), batch_size=4,
    )  # fmt: skip
    model.learn(300)
    memory = model.replay_buffer
    assert isinstance(memory, FrameReplayBuffer)
    assert memory.priorities is not None
    rows = memory.adds
    assert (memory.priorities.values[(rows - 2) * 3 : rows * 3] == 0).all()  # their steps are not over
    for row in range(15, rows - 2):
        for index in range(3):
            reward, discount, value = 0.0, 1.0, None
            for at in (row, row + 1):
                reward += discount * float(memory.rewards[at, index])
                discount *= 0.5
                if memory.dones[at, index]:
                    state = at if memory.timeouts[at, index] else None
                    value = 0.0 if state is None else best_of(model, memory, state, index)
                    break
            if value is None:
                value = best_of(model, memory, row + 2, index)
            observation = memory.frames[index, memory.references[row, index, 0] % memory.capacity]
            taken = q_of(model, observation)[int(memory.actions[row, index, 0])]
            error = abs(reward + discount * value - taken)
            assert memory.priorities.values[row * 3 + index] == pytest.approx((error + 1e-6) ** 0.6, rel=1e-4)


def test_rows_whose_n_steps_will_not_come_to_an_end_are_drawn_all_the_same() -> None:
    model = DQN(
        "MlpPolicy", DummyVecEnv([chain] * 2), seed=0, device="cpu", prioritized=True, actor_priorities=True, n_steps=3,
        learning_starts=0, gradient_steps=0, buffer_size=400,
    )  # fmt: skip
    for _ in range(3):
        model.learn(60)  # begins new games each time
    memory = model.replay_buffer
    assert isinstance(memory, FrameReplayBuffer)
    assert memory.priorities is not None
    waiting = np.flatnonzero(memory.priorities.values[: memory.adds * 2] == 0) // 2
    assert set(waiting.tolist()) == set(range(memory.adds - 3, memory.adds))


def test_updates_of_many_steps_take_no_more_memory_than_some() -> None:
    model = filled(2, fast=True)
    counts: list[int] = []
    draw = model._draw

    def count(number: int, batch_size: int) -> Any:
        counts.append(number)
        return draw(number, batch_size)

    model._draw = count  # type: ignore[method-assign]
    model.train(150, 8)
    assert sum(counts) == 150
    assert max(counts) == 64  # 512 transitions


def test_actors_priorities_need_room_for_their_n_steps() -> None:
    small = DQN("MlpPolicy", Chain(), device="cpu", prioritized=True, actor_priorities=True, n_steps=3, buffer_size=3)
    with pytest.raises(RequestError, match=r"buffer_size is 3: with actor_priorities it is more than n_steps \(3\)"):
        small.learn(10)


def test_a_model_that_was_loaded_alone_knows_that_it_stacks(tmp_path: Path) -> None:
    model = filled(prioritized=True)
    model.save(tmp_path / "model")
    loaded = DQN.load(tmp_path / "model", device="cpu")
    assert isinstance(loaded.replay_buffer, FrameReplayBuffer)
    assert loaded.replay_buffer.n_stack == 4


def test_fast_takes_dictionaries_and_arguments_by_position() -> None:
    env = DummyVecEnv([SimpleMultiObsEnv] * 2)
    model = DQN("MultiInputPolicy", env, 1e-3, 200, 8, fast=True, device="cpu", gradient_steps=4, batch_size=4)
    model.learn(40)
    assert model._n_updates > 0


def q_of(model: DQN, observation: NDArray[Any]) -> NDArray[Any]:
    with torch.no_grad():
        found: NDArray[Any] = model.q_net(torch.as_tensor(observation).reshape(1, -1)).numpy()[0]
    return found


def best_of(model: DQN, memory: FrameReplayBuffer, row: int, index: int) -> float:
    return float(q_of(model, memory.frames[index, memory.references[row, index, 0] % memory.capacity]).max())


EVERY: dict[str, Any] = {"double": True, "dueling": True, "prioritized": True, "n_steps": 3}
SOME: list[dict[str, Any]] = [{"double": True}, {"dueling": True}, {"prioritized": True}, {"n_steps": 3}]


@pytest.mark.parametrize("switches", [{}, EVERY, *(pytest.param(one, marks=pytest.mark.slow) for one in SOME)])
def test_a_chain_of_five_states_gets_its_exact_values(switches: dict[str, Any]) -> None:
    model = DQN(
        "MlpPolicy", DummyVecEnv([chain] * 4), seed=2, device="cpu", learning_rate=3e-3, gamma=0.9, buffer_size=4000,
        learning_starts=200, batch_size=64, target_update_interval=100, train_freq=4, exploration_final_eps=0.5,
        policy_kwargs={"net_arch": [32]}, **switches,
    )  # fmt: skip
    model.learn(6000)
    found = model.q_net(torch.eye(5)).detach().numpy()
    # Of two steps that explore, the first's n-step return knows what the second lost by it.
    exact, tolerance = exact_values(5, 0.9), 0.15 if "n_steps" in switches else 0.04
    assert (found.argmax(axis=1) == 1).all()
    assert np.abs(found - exact)[:, 1].max() < tolerance


def test_the_identity_is_learnt() -> None:
    model = DQN("MlpPolicy", DummyVecEnv([lambda: IdentityEnv(4)] * 2), seed=0, device="cpu", learning_rate=3e-3, gamma=0.0,
                learning_starts=100, prioritized=True, double=True, dueling=True, exploration_final_eps=0.1)  # fmt: skip
    model.learn(3000)
    observations = np.arange(4)
    assert model.predict(observations, deterministic=True)[0].tolist() == [0, 1, 2, 3]


def test_it_is_saved_and_loaded_as_sb3s_is(tmp_path: Path) -> None:
    model = filled(**EVERY, fast=True)
    model.learn(240)
    model.save(tmp_path / "model")
    loaded = DQN.load(tmp_path / "model", env=AtariVecEnv("Pong", 1, seed=3), device="cpu")
    assert (loaded.double, loaded.dueling, loaded.prioritized, loaded.n_steps) == (True, True, True, 3)
    assert isinstance(loaded.replay_buffer, FrameReplayBuffer)
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 84, 84), dtype=np.uint8)
    assert np.array_equal(model.predict(images, deterministic=True)[0], loaded.predict(images, deterministic=True)[0])
    loaded.learn(230)
    plain = stable_baselines3.DQN.load(tmp_path / "model", device="cpu")  # without coordrl's updates
    assert np.array_equal(model.predict(images, deterministic=True)[0], plain.predict(images, deterministic=True)[0])


@pytest.mark.parametrize(
    ("kwargs", "complaint"),
    [
        ({"actor_priorities": True}, "actor_priorities needs prioritized"),
        (
            {"prioritized": True, "replay_buffer_class": ReplayBuffer},
            "prioritized needs coordrl's FrameReplayBuffer, not ReplayBuffer",
        ),
        ({"dueling": True, "policy": "Mlp"}, "dueling takes MlpPolicy, CnnPolicy, MultiInputPolicy, not 'Mlp'"),
        ({"prioritized": True, "buffer_size": 10**14}, "choose a smaller buffer_size"),
        ({"prioritized": True, "priority_exponent": -1.0}, "priority_exponent is -1.0"),
        ({"prioritized": True, "priority_exponent": float("nan")}, "priority_exponent is nan"),
        ({"importance_exponent": 2.0}, "importance_exponent is 2.0"),
        ({"epsilon_ladder": (2.0, 7.0)}, "epsilon_ladder is"),
        ({"epsilon_ladder": (0.4,)}, "epsilon_ladder is"),
    ],
)
def test_switches_that_do_not_fit_are_refused(kwargs: dict[str, Any], complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        DQN(**{"policy": "MlpPolicy", "env": Chain(), "device": "cpu", **kwargs})


# ------------------------------------------------------------------------------------- what scripts do around it


def test_a_gradient_step_for_each_transition_plays_as_many_steps_as_sb3() -> None:
    for kind in (stable_baselines3.DQN, DQN):
        env = make_vec_env("CartPole-v1", n_envs=2)
        model = kind("MlpPolicy", env, learning_starts=0, train_freq=3, gradient_steps=-1, buffer_size=100).learn(3)
        assert (model.num_timesteps, model._n_updates) == (6, 6)


def test_actions_for_a_list_are_those_for_its_array_and_what_reset_returns_is_explained() -> None:
    model = DQN("MlpPolicy", gym.make("CartPole-v1"), buffer_size=100, exploration_initial_eps=0.0)
    model.exploration_rate = 0.0
    one, other = (model.predict(values)[0] for values in ([0.0, 0.1, 0.2, 0.3], np.array([0.0, 0.1, 0.2, 0.3])))
    assert one == other
    with pytest.raises(ValueError, match="mixing Gym API"):
        model.predict(gym.make("CartPole-v1").reset())


def test_updates_asked_for_after_learning_are_made_in_that_number() -> None:
    env = make_vec_env("CartPole-v1", n_envs=8)
    model = DQN("MlpPolicy", env, learning_starts=1000, buffer_size=1000).learn(64)
    model.train(gradient_steps=10, batch_size=8)
    assert model._n_updates == 10


def test_the_class_of_the_memory_is_known_and_is_no_part_of_a_saved_model_unless_asked_for(tmp_path: Path) -> None:
    env = AtariVecEnv("Pong", 1, seed=0)
    model = DQN("CnnPolicy", env, buffer_size=100)
    assert model.replay_buffer_class is FrameReplayBuffer
    model.save(tmp_path / "model")
    assert stable_baselines3.DQN.load(tmp_path / "model").replay_buffer_class is ReplayBuffer
    assert DQN.load(tmp_path / "model", env=env).replay_buffer_class is FrameReplayBuffer


def test_its_signature_names_what_sb3s_takes_and_the_switches() -> None:
    theirs, ours = ([*inspect.signature(kind).parameters] for kind in (stable_baselines3.DQN, DQN))
    assert ours[: len(theirs)] == theirs
    assert {"double", "dueling", "prioritized", "fast"} <= set(ours)


class Grid(gym.Env[Any, Any]):
    """Random pictures, (channels, side, side) or the other way round; games of 1000 steps."""

    def __init__(self, *shape: int, dtype: type[np.generic] = np.uint8) -> None:
        self.observation_space = spaces.Box(0, 255 if dtype is np.uint8 else 1, shape, dtype)
        self.action_space = spaces.Discrete(2)
        self._time = 0

    def _draw(self) -> NDArray[Any]:
        space = self.observation_space
        return self.np_random.uniform(0, float(space.high.max()), space.shape).astype(space.dtype)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._time = 0
        return self._draw(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._time += 1
        return self._draw(), 1.0, self._time >= 1000, False, {}


class Darken(VecEnvWrapper):
    """Stands for a wrapper that changes observations: under it, a stack's pictures do not come again."""

    def reset(self) -> Any:
        return self.venv.reset() // 2

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations // 2, rewards, dones, infos


@pytest.mark.parametrize(
    ("make", "n_stack"),
    [
        (lambda: VecMonitor(VecFrameStack(DummyVecEnv([lambda: Grid(40, 40, 1)]), 4)), 4),
        (lambda: VecNormalize(VecFrameStack(DummyVecEnv([lambda: Grid(1, 40, 40)]), 4, "first"), norm_obs=False), 4),
        (lambda: VecFrameStack(VecTransposeImage(DummyVecEnv([lambda: Grid(40, 40, 1)])), 4), 4),
        (lambda: Darken(VecFrameStack(DummyVecEnv([lambda: Grid(40, 40, 1)]), 4)), None),
        (lambda: Darken(AtariVecEnv("Pong", 1, seed=0)), None),
        (lambda: VecFrameStack(DummyVecEnv([lambda: Grid(40, 40, 3)]), 4), None),
        (lambda: VecFrameStack(DummyVecEnv([lambda: Grid(4, 8, 8, dtype=np.float32)]), 4), None),  # along the last axis
    ],
)
def test_observations_are_taken_for_stacks_only_where_the_environment_says_so(make: Any, n_stack: int | None) -> None:
    env = make()
    OPEN.append(env)
    policy = "CnnPolicy" if env.observation_space.dtype == np.uint8 else "MlpPolicy"
    memory = DQN(policy, env, device="cpu", buffer_size=300, learning_starts=10**6).learn(400).replay_buffer
    if n_stack is None:
        assert type(memory) is ReplayBuffer
    else:
        assert isinstance(memory, FrameReplayBuffer)
        assert (memory.n_stack, memory.lost) == (n_stack, 0)


def test_who_asks_for_the_memory_gets_the_stack_that_it_would_choose_itself() -> None:
    env = DummyVecEnv([lambda: FrameStackObservation(Grid(40, 40), 4)])
    arguments: dict[str, Any] = {"device": "cpu", "buffer_size": 100}
    asked = DQN("CnnPolicy", env, replay_buffer_class=FrameReplayBuffer, **arguments).replay_buffer
    whole = DQN("CnnPolicy", env, prioritized=True, **arguments).replay_buffer
    assert isinstance(asked, FrameReplayBuffer)
    assert isinstance(whole, FrameReplayBuffer)
    assert (asked.n_stack, whole.n_stack) == (4, 1)


def test_a_guess_that_loses_transitions_is_warned_of_once() -> None:
    env = VecFrameStack(DummyVecEnv([lambda: Grid(10, 10, 3)]), 4)  # twelve channels, four pictures
    arguments: dict[str, Any] = {"device": "cpu", "buffer_size": 1000, "learning_starts": 10**6}
    model = stable_baselines3.DQN("MlpPolicy", env, replay_buffer_class=FrameReplayBuffer, **arguments)
    with pytest.warns(UserWarning, match="give it n_stack=1 where observations are no stacks of 10 pictures") as said:
        model.learn(1500)
    assert len(said) == 1


@pytest.mark.parametrize("asked", [None, FrameReplayBuffer])
def test_numbers_of_a_model_win_over_those_that_another_one_left_in_its_arguments(asked: Any) -> None:
    shared: dict[str, Any] = {"handle_timeout_termination": True}
    for n_steps, gamma in ((3, 0.99), (5, 0.9)):
        model = DQN("MlpPolicy", Chain(), n_steps=n_steps, gamma=gamma, replay_buffer_kwargs=shared, device="cpu",
                    replay_buffer_class=asked, prioritized=asked is not None)  # fmt: skip
        memory: Any = model.replay_buffer
        assert (memory.n_steps, memory.gamma) == (n_steps, gamma)
    assert shared == {"handle_timeout_termination": True}
    with pytest.raises(RequestError, match="n_steps is 1, and 3 in replay_buffer_kwargs; leave it out there"):
        DQN("MlpPolicy", Chain(), replay_buffer_kwargs={"n_steps": 3}, device="cpu")


class Masked(DQNPolicy):
    """A policy of a user's own, which takes the first action always."""

    def _predict(self, obs: Any, deterministic: bool = True) -> torch.Tensor:
        return torch.zeros(len(obs), dtype=torch.long)


@pytest.mark.parametrize(
    "switches", [{}, {"fast": True}, {"fast": True, "prioritized": True, "actor_priorities": True}]
)
def test_a_policy_that_decides_otherwise_is_asked(switches: dict[str, Any]) -> None:
    never = {"exploration_initial_eps": 0.0, "exploration_final_eps": 0.0, "learning_starts": 0}
    model = DQN(Masked, make_vec_env("CartPole-v1", 2), seed=0, device="cpu", buffer_size=100, **never, **switches)
    model.learn(60)
    memory = model.replay_buffer
    assert memory is not None
    assert memory.actions.sum() == 0
    assert model.predict(np.ones((50, 4), np.float32))[0].sum() == 0


def test_fast_computes_with_an_extractor_that_wants_pictures_in_their_own_layout() -> None:
    class Views(BaseFeaturesExtractor):
        def __init__(self, space: spaces.Box) -> None:
            super().__init__(space, 8)
            self.conv, self.linear = torch.nn.Conv2d(4, 2, 8, 4), torch.nn.Linear(2 * 9 * 9, 8)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.linear(self.conv(images).view(len(images), -1))

    env = VecFrameStack(DummyVecEnv([lambda: Grid(40, 40, 1)]), 4)
    kwargs = {"features_extractor_class": Views}
    model = DQN("CnnPolicy", env, fast=True, device="cpu", buffer_size=100, learning_starts=8, policy_kwargs=kwargs)
    assert model.learn(40)._n_updates > 0


def test_a_fast_model_is_loaded_with_the_arguments_that_it_was_made_with(tmp_path: Path) -> None:
    given = {"net_arch": [8]}
    DQN("MlpPolicy", Chain(), fast=True, policy_kwargs=given, device="cpu").save(tmp_path / "model")
    loaded = DQN.load(tmp_path / "model", policy_kwargs=given, device="cpu")
    assert loaded.policy.optimizer.defaults["fused"]
    assert given == {"net_arch": [8]}


def test_a_model_with_sb3s_own_memory_keeps_its_numbers_when_it_is_loaded(tmp_path: Path) -> None:
    DQN("MlpPolicy", Chain(), n_steps=5, gamma=0.9, device="cpu").save(tmp_path / "model")
    for kind in (DQN, stable_baselines3.DQN):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # SB3's, that a class was given: its own
            memory: Any = kind.load(tmp_path / "model", device="cpu").replay_buffer
        assert (type(memory), memory.n_steps, memory.gamma) == (NStepReplayBuffer, 5, 0.9)


def test_fast_takes_a_network_of_a_users_own() -> None:
    class Plain(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(5, 2)

        def forward(self, observations: torch.Tensor) -> torch.Tensor:
            return self.linear(observations)

        def _predict(self, observations: torch.Tensor, deterministic: bool = True) -> torch.Tensor:
            return self(observations).argmax(dim=1)

        def set_training_mode(self, mode: bool) -> None:
            self.train(mode)

    class Own(DQNPolicy):
        def make_q_net(self) -> Any:
            return Plain()

    assert DQN(Own, Chain(), fast=True, device="cpu", learning_starts=8, buffer_size=50).learn(40)._n_updates > 0


@pytest.mark.parametrize(
    ("made", "loaded", "complaint"),
    [
        ({}, {"dueling": True}, "a model that was made with dueling=False keeps it"),
        ({"dueling": True}, {"dueling": False}, "a model that was made with dueling=True keeps it"),
        ({}, {"importance_exponent": 7}, "importance_exponent is 7"),
        ({}, {"epsilon_ladder": (9, 9)}, "epsilon_ladder is"),
        ({}, {"replay_buffer_kwargs": {"priority_exponent": 0.5}}, "priority_exponent is no part of"),
    ],
)
def test_switches_are_checked_when_a_model_is_loaded_too(
    made: dict[str, Any], loaded: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    DQN("MlpPolicy", Chain(), device="cpu", **made).save(tmp_path / "model")
    with pytest.raises(RequestError, match=complaint):
        DQN.load(tmp_path / "model", device="cpu", **loaded)


@pytest.mark.parametrize("prioritized", [True, False])
def test_a_memory_that_does_not_fit_the_switch_is_refused_and_the_one_before_kept(
    prioritized: bool, tmp_path: Path
) -> None:
    models = [DQN("MlpPolicy", Chain(), device="cpu", buffer_size=50, prioritized=one) for one in (True, False)]
    mine, other = models if prioritized else models[::-1]
    other.learn(20).save_replay_buffer(tmp_path / "memory")
    before = mine.replay_buffer
    with pytest.raises(RequestError, match=f"prioritized is {prioritized}, and the replay memory"):
        mine.load_replay_buffer(tmp_path / "memory")
    assert mine.replay_buffer is before
    mine.replay_buffer = other.replay_buffer  # by hand
    with pytest.raises(RequestError, match=f"prioritized is {prioritized}, and the replay memory"):
        mine.learn(10)


def test_rows_that_waited_for_actors_priorities_are_drawn_after_a_memory_was_loaded(tmp_path: Path) -> None:
    switches: dict[str, Any] = {"prioritized": True, "actor_priorities": True, "n_steps": 3, "learning_starts": 0}
    model = DQN("MlpPolicy", DummyVecEnv([chain] * 2), seed=0, device="cpu", buffer_size=400, **switches)
    model.learn(60).save_replay_buffer(tmp_path / "memory")
    model.load_replay_buffer(tmp_path / "memory")
    memory: Any = model.replay_buffer
    assert (memory.priorities.values[: memory.adds * 2] > 0).all()
    model.learn(20)
