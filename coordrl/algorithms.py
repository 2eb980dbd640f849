"""From a recipe to a model: build it, take its state apart, put it together again, load it from a run."""

from __future__ import annotations

import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor
from torch.optim import Optimizer

from coordrl.a2c import A2C
from coordrl.checkpoint import Checkpoint, read_newest
from coordrl.environments import make_env
from coordrl.errors import CheckpointError, ReplayError, RequestError
from coordrl.extractors import EXTRACTORS, policy_kwargs
from coordrl.journal import Games
from coordrl.process import check_device_name
from coordrl.recipes import Value
from coordrl.results import WINDOW, RunFolder, Spec
from coordrl.vectors import OnStep, WholeVecEnv

Build = Callable[[Mapping[str, Value], dict[str, Any]], tuple[type[BaseAlgorithm], dict[str, Any]]]


def _a2c(settings: Mapping[str, Value], kwargs: dict[str, Any]) -> tuple[type[BaseAlgorithm], dict[str, Any]]:
    """Translate the settings of recipe a2c into A2C and its arguments."""
    optimizer = {"alpha": settings["rmsprop_alpha"], "eps": settings["rmsprop_eps"]}
    names = ("learning_rate", "n_steps", "gamma", "gae_lambda", "ent_coef", "vf_coef", "max_grad_norm")
    return A2C, {
        **{name: settings[name] for name in names},
        "policy_kwargs": {**kwargs, "optimizer_class": RMSpropTFLike, "optimizer_kwargs": optimizer},
    }


def _dqn(settings: Mapping[str, Value], kwargs: dict[str, Any]) -> tuple[type[BaseAlgorithm], dict[str, Any]]:
    """Translate the settings of recipe dqn into SB3's DQN and its arguments."""
    ours = ("n_envs", "evaluation_epsilon")
    return DQN, {**{name: value for name, value in settings.items() if name not in ours}, "policy_kwargs": kwargs}


ALGORITHMS: dict[str, Build] = {"a2c": _a2c, "dqn": _dqn}


def environment_seed(seed: int, purpose: str, step: int = 0) -> int:
    """Derive the seed of a vector of environments from a run's seed, what it is for, and the step it begins at.

    Environment i of it gets this plus i, as everywhere in SB3. Were that the run's seed itself, the
    environments of run 0 and run 1 would be almost the same ones.
    """
    words = np.random.SeedSequence([seed, step, *purpose.encode()]).generate_state(1)
    return int(words[0]) % 2**30


def build_model(spec: Spec, env: VecEnv, *, device: str = "auto") -> BaseAlgorithm:
    """Build the model of a run.

    The weights that the arms of one seed share (image convolutions, linear layer, heads) are bit-equal:
    they are copied from a twin without coordinates that is built with the same seed. Afterwards every
    generator is seeded again, so that the number of weights drawn changes nothing either. The
    environment's own seeds are the caller's affair.
    """
    set_random_seed(spec.seed)
    model = _construct(spec, spec.extractor, env, device)
    twin = EXTRACTORS[spec.extractor].twin
    if twin != spec.extractor:
        # The twin lives for its weights alone: no room for its replay memory.
        small = {name: 1 if name == "buffer_size" else value for name, value in spec.settings.items()}
        set_random_seed(spec.seed)
        copy_shared_weights(_construct(spec, twin, env, device, small), model)
    set_random_seed(spec.seed, using_cuda=model.device.type == "cuda")
    model.action_space.seed(spec.seed)
    return model


def _construct(
    spec: Spec, extractor: str, env: VecEnv, device: str, settings: Mapping[str, Value] | None = None
) -> BaseAlgorithm:
    """Call SB3's constructor for an extractor; without a seed, which it would pass on to the environment."""
    kwargs = policy_kwargs(extractor)
    algorithm, arguments = ALGORITHMS[spec.algorithm](settings or spec.settings, kwargs)
    constructor: Any = algorithm  # BaseAlgorithm's own signature knows none of these arguments
    model: BaseAlgorithm = constructor("CnnPolicy", env, device=device, **arguments)
    return model


def _way_out(folder: RunFolder, spec: Spec) -> str:
    """Say how a run without checkpoints comes by one."""
    if folder.is_finished(spec):
        return "it is finished and has lost them. Restore them from a copy, or remove the folder and train it again"
    return "a training writes one every --checkpoint-every steps, when it is stopped with Ctrl-C, and at its end"


def copy_shared_weights(twin: BaseAlgorithm, model: BaseAlgorithm) -> None:
    """Copy every weight that `twin` has too; a CoordConv layer's image half is the twin's convolution."""
    source = dict(twin.policy.named_parameters())
    with torch.no_grad():
        for name, parameter in model.policy.named_parameters():
            shared = source.get(name.replace(".image.", "."))
            if shared is not None:
                parameter.copy_(shared)


def skip_compiler() -> None:
    """Keep torch from importing its compiler, which takes seconds; for commands, where nothing is compiled.

    torch hides some methods of its optimisers from torch.compile, and imports the whole compiler to do so at
    their first call. They are marked here as hidden already.
    """
    for method in vars(Optimizer).values():
        original = getattr(method, "__wrapped__", None)
        if original is not None and method.__module__ == Optimizer.__module__:
            setattr(original, "__dynamo_disable", original)


def check_device(device: str) -> None:
    """Check that torch can compute on a device.

    Raises:
        RequestError: it cannot.
    """
    check_device_name(device)
    try:
        if device != "auto":
            torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise RequestError(f'device "{device}" cannot be used here: {reason}. Use auto or cpu') from error


def snapshot(model: BaseAlgorithm, more: Mapping[str, Any]) -> Checkpoint:
    """Take a model's state apart: weights, optimiser, random generators, counters, games. Changes nothing.

    Taken between two updates. The replay memory of DQN is not part of it, nor are games whose vector keeps no state.

    Args:
        model: the model.
        more: JSON state of the caller's, kept under its own names.
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
    tensors: dict[str, Mapping[str, Tensor]] = {"policy": dict(model.policy.named_parameters()), "optimizer": moments}
    return Checkpoint(model.num_timesteps, tensors, arrays, state)


def restore(model: BaseAlgorithm, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's state into a model that was built from the same spec; all but its games.

    Raises:
        CheckpointError: it is of another network, or holds what no training wrote. The model must not be used then.
    """
    restore_weights(model, checkpoint)
    with _suspecting():
        _restore_counters(model, checkpoint)
        _restore_optimizer(model.policy.optimizer, checkpoint)
        restore_generators(model, checkpoint)


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


def _restore_counters(model: BaseAlgorithm, checkpoint: Checkpoint) -> None:
    """Put back what SB3 counts."""
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


# What torch's optimisers keep of each parameter: RMSprop as SB3's A2C uses it, and Adam.
_MOMENTS = ({"step", "square_avg"}, {"step", "exp_avg", "exp_avg_sq"})


def _restore_optimizer(optimizer: Optimizer, checkpoint: Checkpoint) -> None:
    """Put back the optimiser's moments; its settings are the recipe's, and must be those of the checkpoint."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries: dict[int, dict[str, Any]] = {}
    for name, value in [*checkpoint.tensors["optimizer"].items(), *checkpoint.state["optimizer_scalars"].items()]:
        index, _, key = name.partition(".")
        number = torch.as_tensor(value)  # a TypeError or ValueError for what is no number
        parameter = parameters[int(index)]
        fits = number.ndim == 0 if key == "step" else isinstance(value, Tensor) and number.shape == parameter.shape
        positive = key == "exp_avg" or bool((number >= 0).all())
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
    return [*names, "_n_calls", "exploration_rate"] if isinstance(model, DQN) else names


def load(run: str | Path, *, device: str = "auto") -> BaseAlgorithm:
    """Return the trained model of a run's folder: an SB3 model, from its newest checkpoint, without pickle.

    Its environment, `model.get_env()`, is one game under the run's protocol for evaluation (whole games,
    raw rewards). A DQN comes without its replay memory. Warns if a newer checkpoint is damaged.

    Raises:
        RequestError: the folder is no run, or the run has no checkpoint.
        ResumableError: no checkpoint of it verifies.
    """
    check_device(device)
    folder = RunFolder(Path(run))
    spec = folder.read_spec()
    folder.refuse_links()
    seed = environment_seed(spec.seed, "load")
    env = make_env(spec.game, 1, protocol=spec.protocol, seed=seed, training=False)
    settings = {**spec.settings, **({"buffer_size": 1} if "buffer_size" in spec.settings else {})}
    model = _construct(spec, spec.extractor, env, device, settings)

    def use(checkpoint: Checkpoint) -> None:
        restore_weights(model, checkpoint)
        if isinstance(model, DQN):  # for the epsilon of its `predict`
            with _suspecting():
                _restore_counters(model, checkpoint)

    try:
        checkpoint = read_newest(folder.checkpoints, use)
        if checkpoint is None:
            raise RequestError(f"{folder.path} has no checkpoint: {_way_out(folder, spec)}")
    except BaseException:
        env.close()
        raise
    for fault in checkpoint.skipped:
        warnings.warn(f"checkpoint skipped: {fault}; this is the one of step {checkpoint.step:,}", stacklevel=2)
    model.num_timesteps = checkpoint.step
    return model
