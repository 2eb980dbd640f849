"""A model's state taken apart for a checkpoint, and put together again: weights, optimiser, generators, games, replay."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor
from torch.optim import Optimizer

from coordrl.checkpoint import Checkpoint
from coordrl.dqn import DQN, Acting
from coordrl.errors import CheckpointError, ReplayError
from coordrl.journal import Games
from coordrl.replay import FrameReplayBuffer
from coordrl.results import WINDOW
from coordrl.segments import Segment, fill
from coordrl.vectors import OnStep, WholeVecEnv


def snapshot(model: BaseAlgorithm, more: Mapping[str, Any], replay: Sequence[Segment] = ()) -> Checkpoint:
    """Take a model's state apart: weights, optimiser, random generators, counters, games, replay. Changes nothing.

    Taken between two updates. Games whose vector keeps no state are not part of it.

    Args:
        model: the model.
        more: JSON state of the caller's, kept under its own names.
        replay: the segments that hold the replay memory, up to its newest row; without them it is left out.
    """
    optimizer = model.policy.optimizer.state_dict()
    moments: dict[str, Tensor] = {}
    scalars: dict[str, float] = {}
    for index, entries in optimizer["state"].items():
        for name, value in entries.items():
            if isinstance(value, Tensor):
                moments[f"{index}.{name}"] = value
            else:
                scalars[f"{index}.{name}"] = value
    numpy_state = np.random.get_state(legacy=False)
    assert isinstance(numpy_state, dict)
    version, words, gauss = random.getstate()
    state = {
        "counters": {name: getattr(model, name) for name in _counters(model)},
        "games": [[episode["r"], episode["l"]] for episode in model.ep_info_buffer or ()],
        "optimizer_scalars": scalars,
        "optimizer_groups": [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer["param_groups"]
        ],
        "python_rng": [version, list(words), gauss],
        "numpy_rng": {key: numpy_state[key] for key in ("has_gauss", "gauss")} | {"pos": numpy_state["state"]["pos"]},
        "action_rng": model.action_space.np_random.bit_generator.state,
        **more,
    }
    arrays = {"torch_rng": torch.get_rng_state().numpy().copy(), "numpy_rng": numpy_state["state"]["key"].copy()}
    if model.device.type == "cuda":
        arrays["cuda_rng"] = torch.cuda.get_rng_state(model.device).numpy().copy()
    env, starts = model.get_env(), model._last_episode_starts
    games = env.save_games() if isinstance(env, WholeVecEnv) else None
    if games is not None and starts is not None:
        state["games_played"] = dict(games.facts)
        arrays |= {"actions": games.actions, "episode_starts": np.asarray(starts, dtype=np.bool_)}
    if replay:
        state["replay"], kept = _take_memory(model)
        arrays |= kept
    tensors: dict[str, Mapping[str, Tensor]] = {"policy": dict(model.policy.named_parameters()), "optimizer": moments}
    return Checkpoint(model.num_timesteps, tensors, arrays, state, replay=replay)


def _take_memory(model: BaseAlgorithm) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Return what there is to know about a replay memory beside its segments: JSON, and arrays."""
    memory = getattr(model, "replay_buffer", None)
    assert isinstance(memory, FrameReplayBuffer)
    assert isinstance(model, DQN)
    arrays: dict[str, NDArray[Any]] = {}
    if memory.priorities is not None:
        arrays["priorities"] = memory.priorities.values.copy()
    if model.acting:
        arrays["acting"] = np.array(model.acting, dtype=np.float64)  # (rows, 2, n_envs)
    return {"adds": memory.adds, "max_priority": memory.max_priority}, arrays


def restore(model: BaseAlgorithm, checkpoint: Checkpoint, replay: Path | None = None) -> None:
    """Put a checkpoint's state into a model that was built from the same spec; all but its games.

    Args:
        model: the model.
        checkpoint: the checkpoint.
        replay: the folder of its replay memory's segments; None leaves the memory empty.

    Raises:
        CheckpointError: it is of another network, or holds what no training wrote. The model must not be used then.
    """
    restore_weights(model, checkpoint)
    restore_counters(model, checkpoint)
    with _suspecting():
        _restore_optimizer(model.policy.optimizer, checkpoint)
        _restore_memory(model, checkpoint, replay)
        restore_generators(model, checkpoint)


def _restore_memory(model: BaseAlgorithm, checkpoint: Checkpoint, replay: Path | None) -> None:
    """Fill a replay memory as it was."""
    memory = getattr(model, "replay_buffer", None)
    if not isinstance(model, DQN) or not isinstance(memory, FrameReplayBuffer) or memory.parts:
        return
    model.acting.clear()
    memory.reset()
    if ("replay" in checkpoint.state) != bool(checkpoint.replay):
        raise ValueError("of the replay memory there is a part alone")
    if replay is None or not checkpoint.replay:
        return
    state = checkpoint.state["replay"]
    fill(memory, replay, checkpoint.replay)
    largest = state["max_priority"]
    if state["adds"] != memory.adds or type(largest) is not float or not 0 < largest < 1e30:
        raise ValueError(f"the replay memory has {memory.adds:,} rows, and {state['adds']!r} by the checkpoint")
    memory.max_priority = largest
    if memory.priorities is not None:
        priorities = checkpoint.arrays["priorities"]
        rows, envs = np.divmod(np.arange(memory.priorities.size), memory.n_envs)
        most = largest ** (memory.priority_exponent or 0.0) * (1 + 1e-9)
        if priorities.dtype != np.float64 or (priorities[~memory.whole(rows, envs)] != 0).any():
            raise ValueError("a transition that is not there has a priority")
        if not (priorities <= most).all():
            raise ValueError("a priority is larger than the largest")
        memory.priorities.fill(priorities)
    if "acting" in checkpoint.arrays:
        acting = checkpoint.arrays["acting"]
        if acting.ndim != 3 or acting.shape[1:] != (2, memory.n_envs) or len(acting) > min(model.n_steps, memory.adds):
            raise ValueError(f"what the actors computed is of shape {acting.shape}")
        if not np.isfinite(acting).all():
            raise ValueError("a Q value is not finite")
        model.acting.extend(Acting(taken, best) for taken, best in acting.astype(np.float64))


@contextmanager
def _suspecting() -> Iterator[None]:
    """Turn what goes wrong with a checkpoint's content into CheckpointError.

    It has a sound manifest, but a stranger can make one: nobody can list all that may be wrong with the rest.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"it holds what no training wrote ({type(error).__name__}: {error})") from error


def restore_games(model: BaseAlgorithm, checkpoint: Checkpoint, on_step: OnStep = lambda done, total: None) -> None:
    """Bring the games of a model to where they were at a checkpoint; `learn` goes on with them.

    Raises:
        ReplayError: they do not come there, or the checkpoint does not say where that is.
    """
    env, facts = model.get_env(), checkpoint.state.get("games_played")
    if not isinstance(env, WholeVecEnv) or not isinstance(facts, dict):
        raise ReplayError("the checkpoint holds no state of the games")
    actions, starts = checkpoint.arrays.get("actions"), checkpoint.arrays.get("episode_starts")
    if actions is None or starts is None or starts.dtype != np.bool_ or starts.shape != (env.num_envs,):
        raise ReplayError("the state of the games is damaged: actions or starts of episodes")
    try:
        model._last_obs = env.load_games(Games(facts, actions), on_step)
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise ReplayError(f"the state of the games is damaged ({type(error).__name__})") from error
    model._last_episode_starts = starts


def restore_counters(model: BaseAlgorithm, checkpoint: Checkpoint) -> None:
    """Put back what is counted, and the last games' returns.

    Raises:
        CheckpointError: it holds what no training wrote.
    """
    with _suspecting():
        _restore_counters(model, checkpoint)


def _restore_counters(model: BaseAlgorithm, checkpoint: Checkpoint) -> None:
    counters = checkpoint.state["counters"]
    if counters["num_timesteps"] != checkpoint.step:
        raise ValueError(f"num_timesteps is {counters['num_timesteps']!r}")
    for name in _counters(model):
        value = counters[name]
        if type(value) is not type(getattr(model, name)) or not -1 <= value < 1e15:
            raise ValueError(f"{name} is {value!r}")
        setattr(model, name, value)
    games = checkpoint.state["games"]
    if not all(type(r) in (int, float) and type(length) is int for r, length in games):
        raise ValueError("games are no returns and lengths")
    model.ep_info_buffer = deque(({"r": r, "l": length, "t": 0.0} for r, length in games), maxlen=WINDOW)
    model.ep_success_buffer = deque(maxlen=WINDOW)


# What torch's optimisers keep of each parameter: RMSprop as SB3's A2C uses it, Adam, and a centred RMSprop.
_MOMENTS = ({"step", "square_avg"}, {"step", "exp_avg", "exp_avg_sq"}, {"step", "square_avg", "grad_avg"})


def _restore_optimizer(optimizer: Optimizer, checkpoint: Checkpoint) -> None:
    """Put back the optimiser's moments; its settings are the recipe's, and must be those of the checkpoint."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries: dict[int, dict[str, Any]] = {}
    for name, value in [*checkpoint.tensors["optimizer"].items(), *checkpoint.state["optimizer_scalars"].items()]:
        index, _, key = name.partition(".")
        number = torch.as_tensor(value)  # a TypeError or ValueError for what is no number
        parameter = parameters[int(index)]
        fits = number.ndim == 0 if key == "step" else isinstance(value, Tensor) and number.shape == parameter.shape
        positive = key in ("exp_avg", "grad_avg") or bool((number >= 0).all())
        if not fits or not torch.isfinite(number).all() or not positive:
            raise ValueError(f"{name} of the optimizer is no moment of such a parameter")
        if key != "step":
            value = torch.empty_like(parameter, requires_grad=False).copy_(value)  # in the parameter's layout
        entries.setdefault(int(index), {})[key] = value
    whole = sorted(entries) == list(range(len(parameters))) and any(
        all(set(entry) == kept for entry in entries.values()) for kept in _MOMENTS
    )
    if entries and not whole:
        raise ValueError("the optimizer's moments are not those of every parameter")
    groups = optimizer.state_dict()["param_groups"]
    for group, saved in zip(groups, checkpoint.state["optimizer_groups"], strict=True):
        # JSON has no tuples: Adam's betas come back as a list.
        found = {name: tuple(value) if isinstance(value, list) else value for name, value in saved.items()}
        if found != {name: value for name, value in group.items() if name != "params"}:
            raise ValueError("the optimizer's settings are not the recipe's")
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def restore_generators(model: BaseAlgorithm, checkpoint: Checkpoint) -> None:
    """Put back the state of every random generator; right before `learn`, for whatever comes between may draw."""
    state, arrays = checkpoint.state, checkpoint.arrays
    version, words, gauss = state["python_rng"]
    random.setstate((version, tuple(words), gauss))
    key, place = arrays["numpy_rng"], state["numpy_rng"]["pos"]
    if key.dtype != np.uint32 or key.shape != (624,) or type(place) is not int or not 0 <= place <= 624:
        raise ValueError("numpy's generator has no such state")  # numpy itself would read beyond its memory
    numpy_rng = {"key": key, "pos": place}
    gaussian = {key: state["numpy_rng"][key] for key in ("has_gauss", "gauss")}
    np.random.set_state({"bit_generator": "MT19937", "state": numpy_rng, **gaussian})
    model.action_space.np_random.bit_generator.state = state["action_rng"]
    torch.set_rng_state(torch.from_numpy(arrays["torch_rng"]))
    if model.device.type == "cuda" and "cuda_rng" in arrays:
        torch.cuda.set_rng_state(torch.from_numpy(arrays["cuda_rng"]), model.device)


def restore_weights(model: BaseAlgorithm, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into a model.

    Raises:
        CheckpointError: it is of another network, or a weight is not finite.
    """
    saved = checkpoint.tensors.get("policy", {})
    parameters = dict(model.policy.named_parameters())
    if {name: (p.shape, p.dtype) for name, p in parameters.items()} != {
        name: (t.shape, t.dtype) for name, t in saved.items()
    }:
        raise CheckpointError("it is of another network than the run's run.json")
    for name, tensor in saved.items():
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"it holds what no training wrote: {name} is not finite")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])


def _counters(model: BaseAlgorithm) -> list[str]:
    """Name the attributes by which SB3 counts."""
    names = ["num_timesteps", "_episode_num", "_n_updates", "_current_progress_remaining"]
    return [*names, "_n_calls", "exploration_rate", "owed"] if isinstance(model, DQN) else names
