"""A2C: SB3's algorithm bit for bit on its general path, and to rounding on its fast one."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper
from torch import nn

import coordrl
from coordrl.a2c import A2C
from coordrl.atari import AtariVecEnv
from coordrl.controls import ControlVecEnv
from coordrl.fast_network import FastNetwork, read_parts
from coordrl.losses import a2c_loss

BOTH = (stable_baselines3.A2C, A2C)
NATURES = ["nature", "coord", "coord-r", "coord-all", "shuffled", "constant"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def build(kind: type[stable_baselines3.A2C], extractor: str, env: VecEnv, **words: Any) -> Any:
    kwargs = coordrl.policy_kwargs(extractor)
    kwargs |= {"optimizer_class": RMSpropTFLike, "optimizer_kwargs": {"alpha": 0.99, "eps": 1e-5}}
    arguments = {"ent_coef": 0.01, "vf_coef": 0.25, "seed": 0, "device": "cpu", **words}
    return kind("CnnPolicy", env, policy_kwargs=kwargs, **arguments)


def weights(model: stable_baselines3.A2C) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.policy.state_dict().items()}


def synchronise(source: stable_baselines3.A2C, target: stable_baselines3.A2C) -> None:
    """Give the target the source's weights and optimiser state."""
    target.policy.load_state_dict(source.policy.state_dict())
    target.policy.optimizer.load_state_dict(source.policy.optimizer.state_dict())


# ------------------------------------------------------------------------------------------------ the loss


@settings(deadline=None)
@given(
    st.integers(1, 9),
    st.integers(2, 7),
    st.floats(0, 1),
    st.floats(0, 2),
    st.integers(0, 2**31),
)
def test_the_loss_and_its_gradients_are_those_of_autograd_in_float64(
    batch: int, n_actions: int, ent_coef: float, vf_coef: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(0, 3, (batch, n_actions)), requires_grad=True)
    values = torch.tensor(rng.normal(size=batch), requires_grad=True)
    actions = torch.tensor(rng.integers(0, n_actions, batch))
    advantages, returns = torch.tensor(rng.normal(size=batch)), torch.tensor(rng.normal(size=batch))
    policy = torch.distributions.Categorical(logits=logits)
    parts = (
        -(advantages * policy.log_prob(actions)).mean(),
        nn.functional.mse_loss(returns, values),
        -policy.entropy().mean(),
    )
    whole = parts[0] + vf_coef * parts[1] + ent_coef * parts[2]
    whole.backward()
    with torch.no_grad():
        ours = a2c_loss(logits, values, actions, advantages, returns, ent_coef=ent_coef, vf_coef=vf_coef)
    for mine, theirs in zip(ours, (*parts, logits.grad, values.grad), strict=True):
        assert theirs is not None
        torch.testing.assert_close(mine, theirs.detach(), rtol=1e-10, atol=1e-12)


def test_the_loss_of_a_known_sample_is_what_it_is_by_hand() -> None:
    loss = a2c_loss(
        torch.zeros(1, 2, dtype=torch.float64),
        torch.tensor([1.0]),
        torch.tensor([0]),
        torch.tensor([3.0], dtype=torch.float64),
        torch.tensor([2.0]),
        ent_coef=0.1,
        vf_coef=0.5,
    )
    assert loss.policy == pytest.approx(3 * np.log(2))
    assert loss.entropy == pytest.approx(-np.log(2))
    assert loss.value == 1.0
    assert loss.logits.tolist() == [[pytest.approx(-1.5), pytest.approx(1.5)]]
    assert loss.values.tolist() == [-1.0]


# ------------------------------------------------------------------------------------------------ beside SB3


def test_the_general_path_is_sb3s_a2c_bit_for_bit() -> None:
    theirs = build(stable_baselines3.A2C, "coord", AtariVecEnv("Pong", 2, seed=0)).learn(60)
    ours = build(A2C, "coord", AtariVecEnv("Pong", 2, seed=0), fast=False).learn(60)
    assert ours.path == "general: the fast path is switched off"
    found = weights(ours)
    for name, value in weights(theirs).items():
        assert torch.equal(value, found[name]), name


def exact_pair(extractor: str) -> tuple[FastNetwork, Any]:
    """Return a fast network and the policy whose weights it has, both in float64."""
    model = build(A2C, extractor, AtariVecEnv("Breakout", 2, seed=0))
    policy = model.policy.double()
    parts = read_parts(policy)
    assert parts is not None
    return FastNetwork(parts, (4, 84, 84), n_envs=2, n_steps=3), policy


@pytest.mark.parametrize("extractor", NATURES)
def test_outputs_and_every_gradient_are_those_of_autograd_in_float64(extractor: str) -> None:
    network, policy = exact_pair(extractor)
    rng = np.random.default_rng(0)
    observations = rng.integers(0, 256, (6, 4, 84, 84), dtype=np.uint8)
    network.refresh()
    outputs = [network.forward(observations[2 * step : 2 * step + 2], step) for step in range(3)]
    features = policy.features_extractor(torch.from_numpy(observations).double() / 255.0)
    logits, values = policy.action_net(features), policy.value_net(features)[:, 0]
    torch.testing.assert_close(torch.cat([one for one, _ in outputs]), logits.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.cat([one for _, one in outputs]), values.detach(), rtol=1e-10, atol=1e-12)
    d_logits, d_values = torch.randn_like(logits), torch.randn_like(values)
    ((logits * d_logits).sum() + (values * d_values).sum()).backward()
    truth = {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}
    policy.zero_grad()
    network.backward(d_logits, d_values)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(network.gradients[parameter], truth[name], rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize(("extractor", "game"), [*((name, "Breakout") for name in NATURES), ("coord", "MsPacman")])
def test_each_update_of_real_play_is_sb3s_to_rounding(extractor: str, game: str) -> None:
    compare_updates(extractor, game, n_envs=4, updates=3)


@pytest.mark.slow
@pytest.mark.parametrize("extractor", ["nature", "coord"])
def test_a_hundred_updates_of_real_play_are_sb3s_to_rounding(extractor: str) -> None:
    compare_updates(extractor, "Breakout", n_envs=4, updates=100)


def compare_updates(extractor: str, game: str, n_envs: int, updates: int) -> None:
    """Let both play the same games: weights and optimiser synchronised before each update, and the actions equal.

    Within 1e-5 of SB3's gradient, and three times what a shift of the values by 4e-6 of themselves makes of it, as
    float64 computes it: the gradient hangs on the small rest of value minus return, and the values are rounded in
    every layer, in batches of another size. That the function is the same, the float64 test above shows.
    """
    models = [build(kind, extractor, AtariVecEnv(game, n_envs, seed=7)) for kind in (stable_baselines3.A2C, A2C)]
    theirs, ours = models
    gradients: list[list[torch.Tensor]] = []
    for model in models:
        model.learn(0)
        note_gradients(model, gradients)
    errors: list[float] = []
    for update in range(updates):
        synchronise(theirs, ours)
        gradients.clear()
        logs: list[dict[str, Any]] = []
        given: tuple[np.ndarray, np.ndarray] | None = None
        for model in models:
            torch.manual_seed(update)
            model.collect_rollouts(model.env, Quiet(model), model.rollout_buffer, 5)
            buffer = model.rollout_buffer
            log = {name: getattr(buffer, name).copy() for name in ("actions", "rewards", "returns", "values")}
            if given is None:
                rounding = 4e-6 * float(np.abs(buffer.values).max())
                truth, shifted = (true_gradients(model, shift) for shift in (0.0, rounding))
            else:  # an advantage is a small difference of values, whose rounding is not the update's
                buffer.advantages[:], buffer.returns[:] = given
            given = buffer.advantages.copy(), buffer.returns.copy()
            model.train()
            logs.append(log | dict(model.logger.name_to_value))
        assert ours.path == "fast"
        np.testing.assert_array_equal(logs[1].pop("actions"), logs[0].pop("actions"))
        for name, value in logs[0].items():
            np.testing.assert_allclose(logs[1][name], value, rtol=1e-4, atol=1e-5, err_msg=f"{name} of {update}")
        error, allowed = distance(gradients[1], gradients[0]), 1e-5 + 3 * distance(shifted, truth)
        errors.append(error)
        # A unit whose sum is 0 up to rounding lets everything through its ReLU on one side, and nothing on the other.
        assert error < 3 * allowed or units_apart(*gradients, ours) == 1, (update, error, allowed)
    assert np.median(errors) < 5e-5


def units_apart(theirs: list[torch.Tensor], ours: list[torch.Tensor], model: Any) -> int:
    """Count the units of the linear layer that have another gradient in one than in the other."""
    place = [name for name, _ in model.policy.named_parameters()].index("features_extractor.linear.0.bias")
    return int(((theirs[place] - ours[place]).abs() > 1e-3 * theirs[place].abs().max()).sum())


def distance(found: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    """Return how far one gradient is from another, relative to that one's length."""
    off = torch.stack([(mine - one).norm() for one, mine in zip(reference, found, strict=True)]).norm()
    return float(off / torch.stack([one.norm() for one in reference]).norm())


def true_gradients(model: Any, shift: float) -> list[torch.Tensor]:
    """Compute the clipped gradient of the rollout in a model's buffer by autograd in float64, its values shifted."""
    buffer, policy = model.rollout_buffer, copy.deepcopy(model.policy).double()
    images = torch.from_numpy(buffer.observations.reshape(-1, 4, 84, 84)).double() / 255.0
    features = policy.features_extractor(images)
    chosen = torch.distributions.Categorical(logits=policy.action_net(features))
    actions, advantages, returns = (
        torch.from_numpy(getattr(buffer, name).reshape(-1)).double() for name in ("actions", "advantages", "returns")
    )
    errors = returns - policy.value_net(features).flatten() - shift
    loss = -(advantages * chosen.log_prob(actions)).mean() + 0.25 * errors.square().mean()
    (loss - 0.01 * chosen.entropy().mean()).backward()
    nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
    return [parameter.grad.float() for parameter in policy.parameters()]


def note_gradients(model: Any, noted: list[list[torch.Tensor]]) -> None:
    """Append the gradients of each of the model's updates to a list."""
    step = model.policy.optimizer.step

    def note() -> None:
        noted.append([parameter.grad.clone() for parameter in model.policy.parameters()])
        step()

    model.policy.optimizer.step = note


class Quiet(BaseCallback):
    """A callback for a model that is driven by hand."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.init_callback(model)

    def _on_step(self) -> bool:
        return True


def test_two_runs_with_one_seed_are_bit_equal() -> None:
    found = []
    for _ in range(2):
        model = build(A2C, "coord", AtariVecEnv("Breakout", 4, seed=3))
        model.learn(400)
        found.append(weights(model))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


# ------------------------------------------------------------------------------------------------ which path


def test_the_fast_path_is_taken_by_the_nature_family_and_by_nothing_else() -> None:
    env = AtariVecEnv("Pong", 2, seed=0)
    for extractor in NATURES:
        assert build(A2C, extractor, env).choose_path() == "fast"
    assert A2C("CnnPolicy", env, device="cpu").choose_path() == "fast"  # SB3's own NatureCNN
    assert "the extractor is a PoolCNN" in build(A2C, "pool", ControlVecEnv("PlaceMatters", 2)).choose_path()
    assert "the policy is" not in build(A2C, "coord", env).choose_path()
    assert A2C("MlpPolicy", "CartPole-v1", device="cpu").choose_path().startswith("general: ")
    deep = A2C("CnnPolicy", env, policy_kwargs={"net_arch": [64]}, device="cpu")
    assert "layers between" in deep.choose_path()
    unshared = A2C("CnnPolicy", env, policy_kwargs={"share_features_extractor": False}, device="cpu")
    assert "layers between" in unshared.choose_path()


def test_what_somebody_changed_in_the_network_takes_the_general_path() -> None:
    model = build(A2C, "coord", AtariVecEnv("Pong", 2, seed=0))
    assert model.choose_path() == "fast"
    handle = model.policy.features_extractor.cnn[2].register_forward_hook(lambda *_: None)
    assert "hooks" in model.choose_path()
    handle.remove()
    assert model.choose_path() == "fast"
    for register in (model.policy.register_forward_pre_hook, model.policy.value_net.weight.register_hook):
        handle = register(lambda *given: None)
        assert "hooks" in model.choose_path()
        handle.remove()
        assert model.choose_path() == "fast"
    model.policy.forward = model.policy.forward
    assert "replaced" in model.choose_path()
    del model.policy.forward
    model.policy.value_net.weight.requires_grad_(False)
    assert "frozen" in model.choose_path()
    model.policy.value_net.weight.requires_grad_(True)
    model.policy.features_extractor.cnn[1] = nn.LeakyReLU()
    assert "layers are not NatureCNN's" in model.choose_path()


def test_a_model_learns_whatever_the_path_and_the_action_space() -> None:
    for words in ({"policy": "MlpPolicy", "env": "CartPole-v1"}, {"policy": "MlpPolicy", "env": "Pendulum-v1"}):
        A2C(**words, device="cpu", seed=0).learn(50)


def test_callbacks_see_what_sb3_would_show_them() -> None:
    seen: list[list[Any]] = [[], []]

    class Watch(BaseCallback):
        def __init__(self, into: list[Any]) -> None:
            super().__init__()
            self.into = into

        def _on_step(self) -> bool:
            names = ("actions", "rewards", "dones", "n_steps", "values", "log_probs", "new_obs", "clipped_actions")
            self.into.append({name: np.asarray(self.locals[name]).copy() for name in names})
            self.into[-1]["steps"] = self.num_timesteps
            assert self.locals["self"] is self.model
            assert len(self.locals["infos"]) == 2
            return True

        def _on_rollout_end(self) -> None:
            buffer = self.locals["rollout_buffer"]
            assert buffer is self.model.rollout_buffer
            self.into.append({name: getattr(buffer, name).copy() for name in ("observations", "returns", "advantages")})

    for kind, into in zip((stable_baselines3.A2C, A2C), seen, strict=True):
        build(kind, "coord", AtariVecEnv("Breakout", 2, seed=0)).learn(10, callback=Watch(into))
    assert len(seen[0]) == len(seen[1]) == 6
    for theirs, ours in zip(*seen, strict=True):
        assert theirs.keys() == ours.keys()
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


def test_a_callback_that_changes_weights_in_mid_rollout_is_heeded() -> None:
    class Meddle(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 2:
                with torch.no_grad():
                    self.model.policy.value_net.bias.add_(100.0)
            self.model.seen.append(float(np.mean(self.locals["values"].numpy())))
            return True

    found = []
    for kind in (stable_baselines3.A2C, A2C):
        model = build(kind, "coord", AtariVecEnv("Pong", 2, seed=0))
        model.seen = []
        model.learn(10, callback=Meddle())
        assert model.seen[1] < 50 < model.seen[2]
        found.append(weights(model))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_callback_that_stops_in_mid_rollout_is_heeded() -> None:
    model = build(A2C, "coord", AtariVecEnv("Pong", 2, seed=0))
    before = weights(model)
    model.learn(100, callback=lambda given, _: given["n_steps"] < 2)
    assert model.num_timesteps == 6
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_a_truncated_game_is_bootstrapped_with_the_value_of_its_last_observation() -> None:
    class Cut(VecEnvWrapper):
        """Says of every third step that it was cut off by time."""

        count = 0

        def reset(self) -> Any:
            return self.venv.reset()

        def step_wait(self) -> Any:
            observations, rewards, dones, infos = self.venv.step_wait()
            self.count += 1
            if self.count % 3 == 0:
                dones = np.array([True, False])
                infos[0] |= {"TimeLimit.truncated": True, "terminal_observation": observations[0].copy()}
            return observations, rewards, dones, infos

    returns = []
    for kind in (stable_baselines3.A2C, A2C):
        model = build(kind, "coord", Cut(AtariVecEnv("Pong", 2, seed=0)))
        model.learn(0)
        with torch.no_grad():
            model.policy.value_net.bias.fill_(7.0)
        torch.manual_seed(0)
        model.collect_rollouts(model.env, Quiet(model), model.rollout_buffer, 5)
        returns.append(model.rollout_buffer.returns.copy())
    np.testing.assert_allclose(returns[1], returns[0], rtol=1e-5)
    assert returns[1][2, 0] > 6


def test_weights_that_are_no_numbers_end_the_training_in_torchs_words() -> None:
    model = build(A2C, "coord", AtariVecEnv("Pong", 2, seed=0))
    with torch.no_grad():
        model.policy.action_net.bias.fill_(float("nan"))
    with pytest.raises(ValueError, match="invalid values"):
        model.learn(10)


def test_a_saved_model_is_loaded_by_sb3s_a2c_and_by_ours(tmp_path: Path) -> None:
    model = build(A2C, "coord", AtariVecEnv("Pong", 2, seed=0)).learn(40)
    model.save(tmp_path / "model")
    observations = model.env.reset()
    wanted, _ = model.predict(observations, deterministic=True)
    for kind in (stable_baselines3.A2C, A2C):
        loaded = kind.load(tmp_path / "model", env=AtariVecEnv("Pong", 2, seed=1), device="cpu")
        np.testing.assert_array_equal(loaded.predict(observations, deterministic=True)[0], wanted)
        loaded.learn(40)
    assert loaded.path == "fast"


def test_normalised_advantages_are_sb3s() -> None:
    found = []
    for kind in (stable_baselines3.A2C, A2C):
        model = build(kind, "nature", AtariVecEnv("Breakout", 4, seed=0), normalize_advantage=True).learn(20)
        found.append(weights(model))
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=1e-4, atol=1e-5, msg=name)


# ------------------------------------------------------------------------------------- what scripts do around it


class Pictures(gym.Env[Any, Any]):
    """Random pictures with values from 0 to `high`; games of 17 steps."""

    def __init__(self, high: int = 255) -> None:
        self.observation_space = gym.spaces.Box(0, high, (4, 40, 40), np.uint8)
        self.action_space = gym.spaces.Discrete(3)
        self._high, self._time = high, 0

    def _draw(self) -> Any:
        return self.np_random.integers(0, self._high + 1, (4, 40, 40)).astype(np.uint8)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._time = 0
        return self._draw(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._time += 1
        return self._draw(), float(action), False, self._time >= 17, {}


class Meddler(BaseCallback):
    """Changes something at some moment, and notes the weights before the update."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def _on_rollout_start(self) -> None:
        buffer = self.model.rollout_buffer
        self.seen = (buffer.pos, buffer.full, buffer.generator_ready, buffer.observations.shape)
        if self.what == "freezes the extractor":
            for parameter in self.model.policy.features_extractor.parameters():
                parameter.requires_grad_(False)

    def _on_step(self) -> bool:
        if self.what == "changes weights through .data" and self.locals["n_steps"] == 1:
            for parameter in self.model.policy.parameters():
                parameter.data.mul_(1.2)
        if self.locals["n_steps"] == 2:
            self._meddle_in_a_step()
        return True

    def _meddle_in_a_step(self) -> None:
        policy: Any = self.model.policy
        if self.what == "resets a filter through .data":
            policy.features_extractor.cnn[0].weight.data[1] = 0.1
        if self.what == "changes a picture in the buffer":
            self.model.rollout_buffer.observations[0] = 7
        if self.what == "shows another picture":
            self.model._last_obs = self.model._last_obs // 2

    def _on_rollout_end(self) -> None:
        if self.what == "changes weights at the end":
            with torch.no_grad():
                for parameter in self.model.policy.parameters():
                    parameter.mul_(1.2)
        if self.what == "turns the pictures upside down":
            self.model.rollout_buffer.observations = self.model.rollout_buffer.observations[..., ::-1, :].copy()
        if self.what == "draws from the buffer":
            assert sum(len(batch.returns) for batch in self.model.rollout_buffer.get(3)) == 10
        policy: Any = self.model.policy
        if self.what == "resets a unit through .data":
            policy.features_extractor.linear[0].weight.data[33] = 0.1
        if self.what == "hooks the value head":
            policy.value_net.register_forward_hook(lambda module, given, output: 2 * output)
        if self.what == "hooks a weight":
            policy.action_net.weight.register_hook(lambda gradient: 0 * gradient)
        if self.what == "puts another buffer there":
            self.model.rollout_buffer = copy.deepcopy(self.model.rollout_buffer)
            self.model.rollout_buffer.returns += 1
        if self.what == "augments the pictures":
            self.model.rollout_buffer.observations[:, :, :, :20] = 0
        self.before = [parameter.detach().clone() for parameter in self.model.policy.parameters()]


@pytest.mark.parametrize(
    "what",
    [
        "nothing",
        "freezes the extractor",
        "changes weights through .data",
        "changes weights at the end",
        "augments the pictures",
        "turns the pictures upside down",
        "draws from the buffer",
        "resets a filter through .data",
        "resets a unit through .data",
        "changes a picture in the buffer",
        "shows another picture",
        "hooks the value head",
        "hooks a weight",
        "puts another buffer there",
    ],
)
def test_an_update_heeds_what_a_callback_has_changed(what: str) -> None:
    updates = []
    for kind in (stable_baselines3.A2C, A2C):
        arguments: Any = {"policy_kwargs": {"optimizer_class": torch.optim.SGD}, "max_grad_norm": 1e9}
        env = DummyVecEnv([Pictures, Pictures])
        model, meddler = kind("CnnPolicy", env, seed=0, device="cpu", **arguments), Meddler(what)
        model.learn(10, callback=meddler)
        after = [parameter.detach() for parameter in model.policy.parameters()]
        updates.append([new - old for new, old in zip(after, meddler.before, strict=True)])
        assert model.rollout_buffer.observations.shape == (10, 4, 40, 40)
        model.learn(10, callback=meddler, reset_num_timesteps=False)
        assert meddler.seen == (0, False, False, (5, 2, 4, 40, 40))
    for theirs, ours in zip(*updates, strict=True):
        assert float((theirs - ours).norm()) <= 1e-4 * float(theirs.norm())
    assert (float(updates[1][0].norm()) == 0) == (what == "freezes the extractor")


def test_pictures_that_sb3_does_not_scale_are_not_scaled() -> None:
    arguments: Any = {"policy_kwargs": {"features_extractor_kwargs": {"normalized_image": True}}, "seed": 0}
    values = []
    for kind in (stable_baselines3.A2C, A2C):
        model = kind("CnnPolicy", Pictures(high=1), device="cpu", **arguments).learn(5)
        values.append(model.rollout_buffer.values)
    assert model.path == "general: the observations are no images of bytes from 0 to 255"
    np.testing.assert_array_equal(*values)


@pytest.mark.parametrize("method", ["predict_values", "extract_features", "_get_action_dist_from_latent"])
def test_a_method_of_the_policy_that_somebody_replaced_is_called(method: str) -> None:
    model = A2C("CnnPolicy", Pictures(), seed=0, device="cpu")
    calls, inner = [], getattr(model.policy, method)
    setattr(model.policy, method, lambda *args, **kwargs: calls.append(1) or inner(*args, **kwargs))
    model.learn(5)
    assert calls
    assert model.path == "general: a method was replaced"


def test_hooks_of_all_modules_and_of_the_layers_between_are_called() -> None:
    calls: list[int] = []
    model = A2C("CnnPolicy", Pictures(), seed=0, device="cpu")
    handle = model.policy.mlp_extractor.policy_net.register_forward_hook(lambda *_: calls.append(1))
    model.learn(5)
    assert len(calls) == 6
    handle.remove()
    with nn.modules.module.register_module_forward_hook(lambda *_: calls.append(2)):
        model.learn(5)
    assert 2 in calls
    model.learn(5)
    assert model.path == "fast"


def test_a_head_without_a_bias_is_learnt() -> None:
    model = A2C("CnnPolicy", Pictures(), seed=0, device="cpu")
    model.policy.action_net = nn.Linear(512, 3, bias=False)
    model.policy.optimizer = torch.optim.Adam(model.policy.parameters())
    assert model.learn(5).path == "general: a head has no bias"


class Greedy(CategoricalDistribution):
    """Takes the best action always."""

    def sample(self) -> torch.Tensor:
        return self.mode()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda policy: policy.value_net.weight.register_post_accumulate_grad_hook(lambda weight: None),
            "a weight has hooks",
        ),
        (lambda policy: setattr(policy, "action_dist", Greedy(3)), "actions are drawn from a Greedy"),
        (
            lambda policy: policy.mlp_extractor.policy_net.append(nn.Tanh()),
            "there are layers between extractor and heads",
        ),
        (
            lambda policy: policy.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
            "the optimizer has parameters that are not the policy's",
        ),
    ],
)
def test_what_takes_no_weights_is_noticed_too(change: Any, reason: str) -> None:
    model = A2C("CnnPolicy", Pictures(), seed=0, device="cpu")
    change(model.policy)
    assert model.learn(5).path == f"general: {reason}"


def test_layers_of_a_users_own_between_extractor_and_heads_are_used() -> None:
    class Own(nn.Module):
        latent_dim_pi = latent_dim_vf = 512

        def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.forward_actor(features), self.forward_critic(features)

        def forward_actor(self, features: torch.Tensor) -> torch.Tensor:
            return features / 2

        def forward_critic(self, features: torch.Tensor) -> torch.Tensor:
            return features / 3

    model = A2C("CnnPolicy", Pictures(), seed=0, device="cpu")
    model.policy.mlp_extractor = Own()
    assert model.learn(5).path == "general: the layers between extractor and heads are a Own"


def test_gradients_and_values_that_somebody_keeps_stay_what_they_were() -> None:
    class Keep(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []

        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            found = [self.locals["values"], *(parameter.grad for parameter in self.model.policy.parameters())]
            self.kept += [(tensor, tensor.clone()) for tensor in found if tensor is not None]

    model, keep = A2C("CnnPolicy", Pictures(), seed=0, device="cpu"), Keep()
    model.learn(20, callback=keep)
    assert model.path == "fast"
    assert len(keep.kept) == 4 + 3 * len([*model.policy.parameters()])
    assert all(torch.equal(tensor, then) for tensor, then in keep.kept)


def test_after_learning_the_rollout_buffer_is_as_sb3_leaves_it() -> None:
    buffers = [build(kind, "coord", AtariVecEnv("Pong", 2, seed=0)).learn(20).rollout_buffer for kind in BOTH]
    for name in ("observations", "actions", "values", "log_probs", "advantages", "returns", "rewards"):
        theirs, ours = (getattr(buffer, name) for buffer in buffers)
        assert theirs.shape == ours.shape
        assert theirs.dtype == ours.dtype
    assert [buffer.generator_ready for buffer in buffers] == [True, True]
    np.testing.assert_array_equal(buffers[0].observations[:5], buffers[1].observations[:5])


def test_its_signature_names_what_sb3s_takes_and_the_switch() -> None:
    theirs, ours = ([*inspect.signature(kind).parameters] for kind in BOTH)
    assert ours == [*theirs, "fast"]
