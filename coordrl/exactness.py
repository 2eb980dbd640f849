"""What the bits of a training hang on beside its spec, and whether a resumed run can promise to be the same."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm

from coordrl.process import processor_name
from coordrl.replay import FrameReplayBuffer

PACKAGES = ("coordrl", "torch", "stable_baselines3", "gymnasium", "ale-py", "numpy", "tensorboard", "safetensors")
_COMPUTING = ("coordrl", "torch", "stable_baselines3", "ale-py", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a training uses."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def conditions(model: BaseAlgorithm, processes: int) -> dict[str, str | int]:
    """Return what the bits of a training hang on here: versions, processor, threads, processes, path."""
    return {
        **{name: version(name) for name in _COMPUTING},
        "processor": processor_name(),
        "device": str(model.device),
        "torch_threads": torch.get_num_threads(),
        "processes": processes,
        "path": str(getattr(model, "path", "general")),
    }


def differences(before: Any, now: Mapping[str, Any]) -> list[str]:
    """Say which conditions are others than they were when a checkpoint was written."""
    if not isinstance(before, dict):
        return ["a checkpoint that does not say how it was made"]
    return [
        f"{name} {before.get(name)!r} before and {value!r} now"
        for name, value in now.items()
        if before.get(name) != value
    ]


def promise(model: BaseAlgorithm) -> str:
    """Say whether a run that is killed and goes on is the same, bit for bit, as one that was not: "yes", or why not."""
    memory = getattr(model, "replay_buffer", None)
    if memory is not None and not isinstance(memory, FrameReplayBuffer):
        return f"no: a {type(memory).__name__} is not part of a checkpoint"
    if isinstance(memory, FrameReplayBuffer) and memory.parts:
        return "no: what actors play is learnt from when it comes"
    if model.device.type != "cpu":
        return f"no: on {model.device.type} sums are not always taken in the same order"
    return "yes"
