"""CoordConv for reinforcement learning: the layer, SB3 extractors, Atari environments and agents.

Importing coordrl imports nothing else: each public name is loaded at its first use, so that a command's
`--help` and a misspelt game are answered at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from coordrl.a2c import A2C as A2C
    from coordrl.algorithms import load as load
    from coordrl.atari import AtariVecEnv as AtariVecEnv
    from coordrl.coordconv import AddCoords as AddCoords
    from coordrl.coordconv import CoordConv2d as CoordConv2d
    from coordrl.coordconv import CoordConvTranspose2d as CoordConvTranspose2d
    from coordrl.coordconv import convert as convert
    from coordrl.divided import DividedVecEnv as DividedVecEnv
    from coordrl.dqn import DQN as DQN
    from coordrl.extractors import policy_kwargs as policy_kwargs
    from coordrl.replay import FrameReplayBuffer as FrameReplayBuffer

__version__ = "0.1.0"

_HOMES = {
    "A2C": "coordrl.a2c",
    "AddCoords": "coordrl.coordconv",
    "AtariVecEnv": "coordrl.atari",
    "CoordConv2d": "coordrl.coordconv",
    "CoordConvTranspose2d": "coordrl.coordconv",
    "DQN": "coordrl.dqn",
    "DividedVecEnv": "coordrl.divided",
    "FrameReplayBuffer": "coordrl.replay",
    "convert": "coordrl.coordconv",
    "load": "coordrl.algorithms",
    "policy_kwargs": "coordrl.extractors",
}

__all__ = [
    "A2C",
    "DQN",
    "AddCoords",
    "AtariVecEnv",
    "CoordConv2d",
    "CoordConvTranspose2d",
    "DividedVecEnv",
    "FrameReplayBuffer",
    "convert",
    "load",
    "policy_kwargs",
]


def __getattr__(name: str) -> Any:
    """Load a public name from the module that holds it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'coordrl' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*globals(), *_HOMES])
