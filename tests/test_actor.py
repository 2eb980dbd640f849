"""An actor of Ape-X: it plays and sends just what a DQN with all actors in one process plays and keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import set_random_seed

from coordrl.actor import Actor, Games, Place
from coordrl.algorithms import build_model
from coordrl.dqn import DQN
from coordrl.environments import make_env
from coordrl.errors import DivergedError, RequestError
from coordrl.exactness import versions
from coordrl.recipes import find_recipe
from coordrl.replay import Draw, FrameReplayBuffer
from coordrl.results import Spec
from coordrl.segments import append
from tests.test_replay import same

N_ENVS = 2


def spec_of(game: str = "Pong", **changes: Any) -> Spec:
    words = [f"{name}={value}" for name, value in {"n_envs": N_ENVS, "buffer_size": 400, **changes}.items()]
    recipe = find_recipe("apex", words)
    return Spec(game, recipe.name, recipe.algorithm, "coord", "zoo-v4", 0, 1000, dict(recipe.settings))


def place_of(index: int = 0, actors: int = 1, adds: int = 0, written: int = 0, **changes: str) -> Place:
    return Place(
        index, actors, N_ENVS, 5, adds, np.full(N_ENVS, written), {"coordrl": versions()["coordrl"], **changes}
    )


def playing(spec: Spec, seed: int, steps: int) -> DQN:
    """Return a DQN that has played `steps` of each environment, and learnt nothing."""
    env = make_env(spec.game, N_ENVS, protocol=spec.protocol)
    model: Any = build_model(spec, env, device="cpu")
    set_random_seed(seed)
    model.action_space.seed(seed)
    env.seed(seed)
    games = Games()
    model._setup_learn(10**6, games)
    model.collect_rollouts(env, games, TrainFreq(steps * N_ENVS, TrainFrequencyUnit.STEP), model.replay_buffer)
    assert isinstance(model, DQN)
    return model


def weights(model: Any) -> dict[str, Any]:
    return {name: parameter.detach().numpy() for name, parameter in model.q_net.named_parameters()}


def test_what_an_actor_sends_is_what_ape_x_in_one_process_keeps() -> None:
    spec = spec_of()
    model = playing(spec, 5, 90)
    whole = model.replay_buffer
    assert isinstance(whole, FrameReplayBuffer)
    assert whole.priorities is not None
    part = FrameReplayBuffer(
        400, whole.observation_space, whole.action_space, "cpu", N_ENVS, n_steps=3, priority_exponent=0.6
    )
    assert part.priorities is not None
    actor = Actor(spec, place_of())
    for steps in (40, 30, 20):
        chunk = actor.play(weights(model), steps)
        append(part, chunk.first, chunk.last, chunk.rows)
        rows = np.arange(chunk.settled, chunk.settled + len(chunk.priorities))
        part.priorities.set(np.add.outer(rows * N_ENVS, np.arange(N_ENVS)), chunk.priorities)
        assert chunk.last - chunk.first == steps
    assert np.array_equal(part.priorities.values, whole.priorities.values)
    assert np.count_nonzero(part.priorities.values) == (90 - 3) * N_ENVS  # the n steps of the last are not over
    rows, envs = np.divmod(np.arange(90 * N_ENVS), N_ENVS)
    same(part.fetch(Draw(rows, envs, None)), whole.fetch(Draw(rows, envs, None)))


def test_actors_share_the_epsilon_ladder() -> None:
    spec = spec_of()
    found = []
    for index in range(3):
        model = Actor(spec, place_of(index, actors=3))._begin()
        found += model.epsilons(N_ENVS).tolist()
    assert found == pytest.approx([0.4 ** (1 + 7 * i / 5) for i in range(6)])


def test_an_actor_goes_on_with_the_shard_of_one_that_is_gone() -> None:
    spec = spec_of()
    model = playing(spec, 5, 1)
    first = Actor(spec, place_of()).play(weights(model), 30)
    memory = model.replay_buffer
    assert isinstance(memory, FrameReplayBuffer)
    part = FrameReplayBuffer(
        400, memory.observation_space, memory.action_space, "cpu", N_ENVS, n_steps=3, priority_exponent=0.6
    )
    append(part, first.first, first.last, first.rows)
    part.cut()
    place = Place(0, 1, N_ENVS, 77, part.adds, part.written.copy(), {})
    second = Actor(spec, place).play(weights(model), 30)
    append(part, second.first, second.last, second.rows)
    assert (part.adds, second.settled) == (60, 30)
    assert part.whole(np.arange(60), np.zeros(60, np.int64)).all()
    # The return of the last row before the loss is cut there: one step, whose value is that of what followed it.
    last = part.fetch(Draw(np.array([29]), np.array([0]), None))
    assert last.discounts is not None
    assert last.discounts.item() == pytest.approx(0.99)


def test_actors_of_one_training_explore_differently() -> None:
    spec = spec_of()
    model = playing(spec, 5, 1)
    chunks = [Actor(spec, replace(place_of(), seed=seed)).play(weights(model), 40) for seed in (5, 5, 6)]
    assert chunks[0].rows == chunks[1].rows
    assert chunks[0].rows != chunks[2].rows


def test_a_node_with_other_versions_is_named_with_both() -> None:
    with pytest.raises(RequestError, match=r"has torch 2\..* and the learner 0\.0; install the same versions"):
        Actor(spec_of(), place_of(torch="0.0")).play({}, 1)


def test_weights_that_are_no_numbers_end_the_play() -> None:
    spec = spec_of()
    broken = {name: np.full_like(value, np.nan) for name, value in weights(playing(spec, 5, 1)).items()}
    with pytest.raises(DivergedError, match="Q values are not numbers"):
        Actor(spec, place_of()).play(broken, 30)
