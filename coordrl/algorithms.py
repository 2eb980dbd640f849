"""From a recipe to a model: build it, take its state apart, put it together again, load it from a run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from stable_baselines3.common.utils import get_device, set_random_seed
from stable_baselines3.common.vec_env import VecEnv
from torch.optim import Optimizer

from coordrl.a2c import A2C
from coordrl.checkpoint import Checkpoint, read_newest
from coordrl.dqn import DQN
from coordrl.environments import make_env
from coordrl.errors import RequestError
from coordrl.extractors import EXTRACTORS, policy_kwargs
from coordrl.process import check_device_name
from coordrl.recipes import Value
from coordrl.results import RunFolder, Spec
from coordrl.snapshot import restore_weights

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
    """Translate the settings of recipe dqn, and of those that differ from it, into DQN and its arguments."""
    ours = ("n_envs", "evaluation_epsilon")
    return DQN, {**{name: value for name, value in settings.items() if name not in ours}, "policy_kwargs": kwargs}


def _apex(settings: Mapping[str, Value], kwargs: dict[str, Any]) -> tuple[type[BaseAlgorithm], dict[str, Any]]:
    """Translate the settings of recipe apex: DQN with all of its extensions, actors' epsilons and their priorities."""
    ours = ("n_envs", "evaluation_epsilon", "ladder_base", "ladder_exponent", "rmsprop_alpha", "rmsprop_eps")
    optimizer = {"alpha": settings["rmsprop_alpha"], "eps": settings["rmsprop_eps"], "centered": True}
    return DQN, {
        **{name: value for name, value in settings.items() if name not in ours},
        **dict.fromkeys(("double", "dueling", "prioritized", "actor_priorities"), True),
        "epsilon_ladder": (settings["ladder_base"], settings["ladder_exponent"]),
        "policy_kwargs": {**kwargs, "optimizer_class": torch.optim.RMSprop, "optimizer_kwargs": optimizer},
    }


ALGORITHMS: dict[str, Build] = {"a2c": _a2c, "dqn": _dqn, "apex": _apex}


def environment_seed(seed: int, purpose: str, step: int = 0) -> int:
    """Derive the seed of a vector of environments from a run's seed, what it is for, and the step it begins at.

    Environment i of it gets this plus i, as everywhere in SB3. Were that the run's seed itself, the
    environments of run 0 and run 1 would be almost the same ones.
    """
    words = np.random.SeedSequence([seed, step, *purpose.encode()]).generate_state(1)
    return int(words[0]) % 2**30


def build_model(spec: Spec, env: VecEnv, *, device: str = "auto", fast: bool = True) -> BaseAlgorithm:
    """Build the model of a run; `fast` False keeps to SB3's own way to compute.

    The weights that the arms of one seed share (image convolutions, linear layer, heads) are bit-equal:
    they are copied from a twin without coordinates that is built with the same seed. Afterwards every
    generator is seeded again, so that the number of weights drawn changes nothing either. The
    environment's own seeds are the caller's affair.
    """
    set_random_seed(spec.seed)
    model = _construct(spec, spec.extractor, env, device, fast=fast)
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
    spec: Spec,
    extractor: str,
    env: VecEnv,
    device: str,
    settings: Mapping[str, Value] | None = None,
    *,
    fast: bool = True,
) -> BaseAlgorithm:
    """Call SB3's constructor for an extractor; without a seed, which it would pass on to the environment."""
    kwargs = policy_kwargs(extractor)
    algorithm, arguments = ALGORITHMS[spec.algorithm](settings or spec.settings, kwargs)
    constructor: Any = algorithm  # BaseAlgorithm's own signature knows none of these arguments
    model: BaseAlgorithm = constructor("CnnPolicy", env, device=device, fast=fast, **arguments)
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
        torch.zeros(1, device=get_device(device) if device == "auto" else device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        instead = "cpu" if device == "auto" else "auto or cpu"
        raise RequestError(f'device "{device}" cannot be used here: {reason}. Use {instead}') from error


def load(run: str | Path, *, device: str = "auto") -> BaseAlgorithm:
    """Return the trained model of a run's folder: an SB3 model, from its newest checkpoint, without pickle.

    Its environment, `model.get_env()`, is one game under the run's protocol for evaluation (whole games,
    raw rewards). A DQN comes without its replay memory: `learn` makes a new one, of the run's size. Its `predict` explores
    as little as its evaluation does. Warns if a newer checkpoint is damaged.

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
    if isinstance(model, DQN):
        model.buffer_size, model.replay_buffer = int(spec.settings["buffer_size"]), None
        model.epsilon_ladder = None  # of the training's environments
        model.exploration_rate = float(spec.settings["evaluation_epsilon"])
    return model
