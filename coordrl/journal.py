"""What the environments of a vector were told since they were last seeded: enough to play their games again.

An emulator cannot be copied, but after a seeded reset it is a function of its seed and of the actions after it. So
the state of a vector of games is their seeds, the actions since, and a digest of what they led to, to compare with.
That the actions stay few, every environment gets a new seed at the end of a game, once it has played for some time.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from coordrl.errors import ReplayError
from coordrl.suites import FRAMES_PER_STEP, MAX_GAME_FRAMES, MAX_RESEED_EVERY

MAX_SEED = 2**31 - 1  # Atari's emulator takes a C int and reads negative seeds as "none"


@dataclass(frozen=True)
class Games:
    """The state of a vector of games between two steps.

    Attributes:
        facts: JSON; a list of one entry for each environment under every name, and `reseed_every`.
        actions: (steps, n_envs) uint8: the last `ages[i]` of column i are those of environment i since it was seeded.
    """

    facts: Mapping[str, Any]
    actions: NDArray[np.uint8]

    def part(self, chosen: slice) -> Games:
        """Return the state of some of the environments, with no more actions than theirs."""
        facts = {name: value[chosen] if isinstance(value, list) else value for name, value in self.facts.items()}
        steps = max(facts["ages"], default=0)
        return Games(facts, self.actions[len(self.actions) - steps :, chosen])

    @staticmethod
    def join(parts: Sequence[Games]) -> Games:
        """Put the states of several vectors behind each other."""
        names = parts[0].facts
        facts = {
            name: [entry for part in parts for entry in part.facts[name]] if isinstance(value, list) else value
            for name, value in names.items()
        }
        steps = max(len(part.actions) for part in parts)
        padded = [np.pad(part.actions, ((steps - len(part.actions), 0), (0, 0))) for part in parts]
        return Games(facts, np.concatenate(padded, axis=1))

    def to_message(self) -> dict[str, Any]:
        """Return JSON for another process."""
        return {
            "facts": dict(self.facts),
            "shape": [*self.actions.shape],
            "actions": base64.b64encode(self.actions.tobytes()).decode(),
        }

    @staticmethod
    def from_message(message: Mapping[str, Any]) -> Games:
        """Undo `to_message`."""
        actions = np.frombuffer(base64.b64decode(message["actions"]), np.uint8).reshape(message["shape"])
        return Games(message["facts"], actions)


@final
class Journal:
    """Seeds and actions of a vector of environments.

    Args:
        n_envs: how many environments.
        reseed_every: steps of an environment after which it gets a new seed at the end of its game; at least 1.
    """

    def __init__(self, n_envs: int, reseed_every: int) -> None:
        self.n_envs, self.reseed_every = n_envs, reseed_every
        self.first_seeds = [0] * n_envs  # that a run began with; later ones follow from them
        self.counts = [0] * n_envs  # of new seeds since
        self.ages = np.zeros(n_envs, dtype=np.int64)  # steps since the last seed
        self._rows: list[bytes] = []  # actions, (n_envs,) uint8 each: as many as the greatest age

    @property
    def seeds(self) -> list[int]:
        """The seed that each environment got last."""
        return [_seed(first, count) for first, count in zip(self.first_seeds, self.counts, strict=True)]

    def begin(self, seeds: Sequence[int] | None) -> NDArray[np.int32]:
        """Begin with these seeds, or where there are none with the next of every environment; returns them."""
        if seeds is not None:
            self.first_seeds, self.counts = [*seeds], [0] * self.n_envs
        else:
            self.counts = [count + 1 for count in self.counts]
        self.ages[:] = 0
        self._rows = []
        return np.array(self.seeds, dtype=np.int32)

    def note(self, actions: NDArray[np.int64]) -> None:
        """Note the actions of a step, (n_envs,)."""
        self._rows.append(actions.astype(np.uint8).tobytes())
        self.ages += 1

    def renew(self, over: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.int32]]:
        """Choose new seeds for the environments whose games are over and whose time has come.

        Returns which they are and the seeds, which they must be reset with at once.
        """
        (due,) = np.nonzero(over & (self.ages >= self.reseed_every))
        for index in due:
            self.counts[index] += 1
        if due.size:
            self.ages[due] = 0
            del self._rows[: len(self._rows) - int(self.ages.max())]
        return due, np.array([_seed(self.first_seeds[index], self.counts[index]) for index in due], dtype=np.int32)

    def save(self, facts: Mapping[str, Any]) -> Games:
        """Return the state of the games, with what else there is to know about each environment."""
        mine = {
            "reseed_every": self.reseed_every,
            "first_seeds": [*self.first_seeds],
            "counts": [*self.counts],
            "ages": self.ages.tolist(),
        }
        actions = np.frombuffer(b"".join(self._rows), np.uint8).reshape(len(self._rows), self.n_envs)
        return Games({**mine, **facts}, actions)

    def load(self, games: Games, n_actions: int) -> None:
        """Take over a state.

        Raises:
            ReplayError: it is none of `n_envs` environments with so many actions.
        """
        check_state(games, self.n_envs, n_actions)
        facts = games.facts
        self.reseed_every = facts["reseed_every"]
        self.first_seeds, self.counts = [*facts["first_seeds"]], [*facts["counts"]]
        self.ages[:] = facts["ages"]
        self._rows = [row.tobytes() for row in games.actions]


def check_state(games: Games, n_envs: int, n_actions: int) -> None:
    """Check a state, which somebody may have tampered with, before anything is played from it.

    Raises:
        ReplayError: it is none of `n_envs` environments with so many actions.
    """

    def refuse(why: str) -> ReplayError:
        return ReplayError(f"the state of the games is damaged: {why}")

    facts, actions = games.facts, games.actions
    every: Any = facts.get("reseed_every")
    if not _is_count(every) or not 1 <= every <= MAX_RESEED_EVERY:
        raise refuse(f"reseed_every is {every!r:.40}")
    for name in ("digests", "lives", "returns", "lengths", "fire_stages"):  # compared with, and taken apart before
        if not isinstance(facts.get(name), list) or len(facts[name]) != n_envs:
            raise refuse(f"{name} are not of {n_envs} environments")
    if actions.ndim != 2 or actions.shape[1] != n_envs:
        raise refuse(f"actions are of shape {actions.shape}")
    oldest = min(len(actions), every + MAX_GAME_FRAMES // FRAMES_PER_STEP)  # new seeds come when a game ends
    for name, high in (("first_seeds", MAX_SEED), ("counts", 2**31), ("ages", oldest)):
        numbers: Any = facts.get(name)
        whole = isinstance(numbers, list) and len(numbers) == n_envs
        if not whole or not all(_is_count(number) and number <= high for number in numbers):
            raise refuse(f"{name} are no {n_envs} numbers up to {high:,}")
    if actions.dtype != np.uint8 or actions.shape != (max(facts["ages"]), n_envs):
        raise refuse(f"actions are of shape {actions.shape} and {actions.dtype}")
    if actions.size and actions.max() >= n_actions:
        raise refuse(f"action {actions.max()} of {n_actions}")


def digests(observations: NDArray[Any]) -> list[str]:
    """Return a digest of each environment's observation."""
    return [hashlib.blake2b(np.ascontiguousarray(one).data, digest_size=16).hexdigest() for one in observations]


def compare(saved: Mapping[str, Any], now: Mapping[str, Any], game: str) -> None:
    """Check that what was played again led to what was saved.

    Raises:
        ReplayError: it did not.
    """
    for name, value in now.items():
        if value != saved.get(name):
            raise ReplayError(f"{game} played again from its seeds and actions led elsewhere: other {name}")


def _seed(first: int, count: int) -> int:
    """Return an environment's seed after `count` new ones: of no other environment's state, nor of their number."""
    if count == 0:
        return first
    return int(np.random.SeedSequence([first, count]).generate_state(1)[0]) % (MAX_SEED + 1)


def _is_count(value: Any) -> bool:
    """Say whether a value is a whole number from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
