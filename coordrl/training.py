"""One run from its first step, or its last checkpoint, to its result."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.utils import get_device

from coordrl.a2c import A2C
from coordrl.algorithms import build_model, check_device, environment_seed, restore, skip_compiler
from coordrl.checkpoint import read_newest
from coordrl.console import ProgressLine
from coordrl.course import Course, Options, StopSignals
from coordrl.curves import TensorBoardView
from coordrl.environments import make_env
from coordrl.errors import DivergedError
from coordrl.fast_parts import one_thread
from coordrl.process import allowed_cores, processor_name
from coordrl.results import RunFolder, Spec, cut_rows
from coordrl.workers import Worker, end


def train(spec: Spec, recipe: str, folder: RunFolder, options: Options, workers: Sequence[Worker] = ()) -> None:
    """Train a run to its end, going on from its last checkpoint if there is one.

    Args:
        spec: what the run is.
        recipe: its recipe as text.
        folder: where it lies.
        options: how it is carried out.
        workers: processes to divide it over, which are ended here.

    Raises:
        RequestError: another run lies in the folder, or the device does not exist.
        BusyError: another process holds the folder.
        OutputError: the folder cannot be written.
        DivergedError: a loss or a weight is not finite any more.
        StoppedError: SIGINT or SIGTERM; a checkpoint was written.
    """
    skip_compiler()
    check_device(options.device)
    with folder.lock(), StopSignals() as signals:
        folder.open(spec, _facts(options), recipe)
        if folder.is_finished(spec):
            return  # by another process, since the caller looked
        checkpoint = read_newest(folder.checkpoints)
        begins_at = checkpoint.step if checkpoint else 0
        n_envs = int(spec.settings["n_envs"])
        # The emulator's state cannot be saved: a resumed run starts new games, from seeds of its own.
        seed = environment_seed(spec.seed, "train", begins_at)
        if get_device(options.device).type != "cpu":
            end(workers)  # the network is where they cannot reach it
            workers = ()
        env = make_env(spec.game, n_envs, protocol=spec.protocol, workers=workers)
        try:
            with one_thread() if workers else nullcontext():  # the cores are busy with starting the workers
                model = build_model(spec, env, device=options.device)
            if checkpoint:
                restore(model, checkpoint)
            facts: dict[str, Any] = {"parameters": _parameters(model), "processes": len(workers) + 1}
            if isinstance(model, A2C):
                model.fast = not options.general
                facts["path"] = model.choose_path()
            folder.add_facts(facts)
            env.seed(seed)  # after SB3's constructor, which seeds it with the run's own
            _cut_back(folder, begins_at)
            seconds = float(checkpoint.state["seconds"]) if checkpoint else 0.0
            view = TensorBoardView(folder, seconds)
            with ProgressLine(f"{spec.game} {spec.agent}-{spec.extractor}", spec.steps, start=begins_at) as line:
                _announce(line, spec, folder, model, begins_at, checkpoint.skipped if checkpoint else [])
                view.write_spec(spec, recipe, options.command)
                course = Course(spec, folder, options, model, view, line, signals, seconds)
                try:
                    # One call, whatever came before: SB3 adds the steps so far to the total by itself, and
                    # calling `learn` in chunks would bend every schedule.
                    learn: Any = model.learn  # SB3's hint forbids the log_interval=None that its code takes
                    learn(spec.steps - begins_at, callback=course, log_interval=None, reset_num_timesteps=False)
                    course.finish()
                except DivergedError as error:
                    course.record_divergence(error)
                    raise
                except ValueError as error:
                    if "invalid values" not in str(error):  # torch's words when it is asked to sample from NaN
                        raise
                    diverged = course.diverged("the policy's probabilities are not numbers")
                    course.record_divergence(diverged)
                    raise diverged from error
                finally:
                    view.close()
        finally:
            env.close()


def _cut_back(folder: RunFolder, step: int) -> None:
    """Take back what an earlier process logged after the checkpoint at `step`: it will come again, otherwise."""
    for log in (folder.progress_file, folder.evaluations_file):
        cut_rows(log, step)
    for file, of_step in folder.position_maps():
        if of_step > step:
            file.unlink()


def _announce(
    line: ProgressLine, spec: Spec, folder: RunFolder, model: BaseAlgorithm, begins_at: int, skipped: list[str]
) -> None:
    """Say what is about to happen."""
    for fault in skipped:
        line.say(f"checkpoint skipped: {fault}")
    parameters = _parameters(model)
    what = f"{spec.agent} with {spec.extractor} on {spec.game}, {spec.protocol}, seed {spec.seed}"
    line.say(f"{what}: {spec.steps:,} steps, {parameters:,} parameters, {model.device}, into {folder.path}")
    if begins_at:
        line.say(f"going on from the checkpoint at step {begins_at:,}")
        if "buffer_size" in spec.settings:
            line.say("the replay memory is not part of a checkpoint: it fills up again before the next update")


def _parameters(model: BaseAlgorithm) -> int:
    """Count the weights that are learnt: those that the optimiser holds, so not DQN's target network."""
    groups = model.policy.optimizer.param_groups
    return sum(parameter.numel() for group in groups for parameter in group["params"])


def _facts(options: Options) -> dict[str, Any]:
    """Return what run.json records beside the spec."""
    packages = ("coordrl", "torch", "stable_baselines3", "gymnasium", "ale-py", "numpy", "tensorboard", "safetensors")
    return {
        "command": options.command,
        "plan": options.plan,
        "options": {name: value for name, value in asdict(options).items() if name not in ("command", "plan")},
        "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        "hardware": {
            "machine": platform.machine(),
            "processor": processor_name(),
            "system": platform.system(),
            "cores": len(allowed_cores()),
            "torch_threads": torch.get_num_threads(),
            "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
        "exact_resume": "no: a resumed run starts new games, from seeds of its own",
    }
