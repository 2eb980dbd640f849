"""Atari games as one SB3 VecEnv whose emulators live in several processes, each on a core of its own.

The first part of the environments is in this process. Stepped as any VecEnv, it is what AtariVecEnv is, and no
faster. It is there for algorithms that let every process play *and* compute for its own part (see fast_parts).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from coordrl.atari import AtariVecEnv
from coordrl.errors import RequestError
from coordrl.journal import Games, check_state
from coordrl.suites import choose_protocol, find_game
from coordrl.vectors import Indices, OnStep, WholeVecEnv, check_actions
from coordrl.workers import Memory, Worker, default_workers, end, hire

Infos = list[dict[str, Any]]

WORKER = "coordrl.divided_worker"  # the module that is run
_IMAGE = (4, 84, 84)
_ALIGNMENT = 64  # bytes


@final
class PartArrays:
    """What one part of the environments sees and does in some steps, in shared memory or in this process's own.

    Args:
        n_envs: of the part.
        n_steps: that are kept.
        buffer: of `count_bytes` bytes; None for memory of its own.
    """

    def __init__(self, n_envs: int, n_steps: int, buffer: Any = None) -> None:
        if buffer is None:
            buffer = bytearray(count_bytes(n_envs, n_steps))
        places = iter(_layout(n_envs, n_steps))

        def carve() -> Any:
            shape, dtype, start = next(places)
            return np.frombuffer(buffer, dtype, int(np.prod(shape)), start).reshape(shape)

        self.observations: NDArray[np.uint8] = carve()  # (n_steps + 1, n_envs, 4, 84, 84)
        self.finals: NDArray[np.uint8] = carve()  # (n_steps, n_envs, 4, 84, 84): where an episode ended, its last
        self.actions: NDArray[np.int64] = carve()  # (n_steps, n_envs), as all below
        self.raw_rewards: NDArray[np.float32] = carve()  # as the environment gives them
        self.rewards: NDArray[np.float32] = carve()  # with the value of what was cut off
        self.dones: NDArray[np.float32] = carve()
        self.starts: NDArray[np.float32] = carve()
        self.log_probs: NDArray[np.float32] = carve()
        self.advantages: NDArray[np.float32] = carve()
        self.returns: NDArray[np.float32] = carve()
        self.values: NDArray[np.float32] = carve()  # (n_steps + 1, n_envs): the last are of what came after


def _layout(n_envs: int, n_steps: int) -> Iterator[tuple[tuple[int, ...], Any, int]]:
    """Yield shape, dtype and first byte of each array, in their order."""
    start = 0
    images = [((n_steps + 1, n_envs, *_IMAGE), np.uint8), ((n_steps, n_envs, *_IMAGE), np.uint8)]
    numbers = [*[((n_steps, n_envs), np.float32)] * 7, ((n_steps + 1, n_envs), np.float32)]
    for shape, dtype in [*images, ((n_steps, n_envs), np.int64), *numbers]:
        yield shape, dtype, start
        start += -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // _ALIGNMENT) * _ALIGNMENT
    yield (), np.uint8, start  # the end


def count_bytes(n_envs: int, n_steps: int) -> int:
    """Return the size of the memory of `PartArrays`."""
    return [*_layout(n_envs, n_steps)][-1][2]


def pack_infos(infos: Sequence[dict[str, Any]], finals: NDArray[np.uint8]) -> Infos:
    """Return the infos of a step without their images, which go to `finals`, (n_envs, 4, 84, 84)."""
    packed = []
    for index, info in enumerate(infos):
        small = {name: value for name, value in info.items() if name != "terminal_observation"}
        if "terminal_observation" in info:
            finals[index] = info["terminal_observation"]
            small["has_final"] = True
        packed.append(small)
    return packed


def unpack_infos(packed: Infos, finals: NDArray[np.uint8]) -> Infos:
    """Undo `pack_infos`; the images are copies."""
    for index, info in enumerate(packed):
        if info.pop("has_final", False):
            info["terminal_observation"] = finals[index].copy()
    return packed


@final
class Part:
    """One part of the environments that lives in a worker process."""

    def __init__(self, worker: Worker, n_envs: int) -> None:
        self.worker, self.n_envs = worker, n_envs
        self._memory = Memory(count_bytes(n_envs, 1))
        self._arrays = PartArrays(n_envs, 1, self._memory.buffer)

    def make(self, **words: Any) -> None:
        """Let the worker make its environments from AtariVecEnv's arguments; it may still be importing when this returns."""
        self.worker.tell({"do": "make", "n_envs": self.n_envs, "words": words}, [self._memory.fd])

    def reset_async(self, seed: int | None) -> None:
        """Begin a reset; the first environment gets the seed, if there is one."""
        self.worker.tell({"do": "reset", "seed": seed})

    def reset_wait(self) -> tuple[NDArray[np.uint8], Infos]:
        """Return the first observations, a view, and the infos of the reset."""
        infos: Infos = self.worker.answer()["infos"]
        return self._arrays.observations[0], infos

    def save_games(self) -> Games | None:
        """Return the state of the games, if it is kept."""
        self.worker.tell({"do": "save"})
        saved = self.worker.answer()["games"]
        return None if saved is None else Games.from_message(saved)

    def load_async(self, games: Games) -> None:
        """Begin to play the games to a state that was saved."""
        self.worker.tell({"do": "load", "games": games.to_message()})

    def load_wait(self) -> NDArray[np.uint8]:
        """Return the observations of that moment, a view."""
        self.worker.answer()
        observations: NDArray[np.uint8] = self._arrays.observations[0]
        return observations

    def step_async(self, actions: NDArray[np.int64]) -> None:
        """Begin a step."""
        self._arrays.actions[0] = actions
        self.worker.tell({"do": "step"})

    def step_wait(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], Infos]:
        """Return what a step returns; the arrays are views."""
        infos = unpack_infos(self.worker.answer()["infos"], self._arrays.finals[0])
        arrays = self._arrays
        return arrays.observations[0], arrays.raw_rewards[0], arrays.dones[0].astype(bool), infos


@final
class DividedVecEnv(WholeVecEnv):
    """`n_envs` copies of one Atari game, stepped together, their emulators divided over processes.

    Observations, rewards, dones and infos are those of `AtariVecEnv` with the same arguments and actions, bit for
    bit. `coordrl.A2C` with a network of the NatureCNN family lets every process play its own part of a rollout and
    compute its own part of the gradient.

    Args:
        game: in any usual spelling.
        n_envs: at least one for each process.
        workers: processes, this one among them; by default one a core that this process may use, with at least
            four environments each. Or the others themselves, as `hire` started them.
        protocol: the rules, a name of coordrl.suites.PROTOCOLS.
        seed: environment i gets seed + i. None draws one.
        training: as AtariVecEnv's.
        reseed_every: as AtariVecEnv's.

    Raises:
        RequestError: the game, the protocol or a number is wrong; or this system cannot do it.
    """

    made_of = "C++ objects in several processes"
    seen_by = "make a video of a trained agent with: coordrl play RUN"

    def __init__(
        self,
        game: str,
        n_envs: int,
        *,
        workers: int | Sequence[Worker] | None = None,
        protocol: str = "zoo-v4",
        seed: int | None = None,
        training: bool = True,
        reseed_every: int | None = None,
    ) -> None:
        if n_envs < 1:
            raise RequestError(f"n_envs is {n_envs}; it is at least 1")
        game = find_game(game)  # before any process is started
        protocol = choose_protocol([game], protocol).name
        hired = None if workers is None or isinstance(workers, int) else [*workers]
        count = len(hired) + 1 if hired is not None else default_workers(n_envs)
        if isinstance(workers, int):
            count = workers
        if not 1 <= count <= n_envs:
            raise RequestError(f"workers is {count}; it is from 1 to the number of environments, {n_envs}")
        self.sizes = [n_envs // count + (number < n_envs % count) for number in range(count)]
        ends = [*accumulate(self.sizes)]
        self.slices = [slice(end - size, end) for size, end in zip(self.sizes, ends, strict=True)]
        self._waiting = self._closed = False
        self.played_by: object = None  # who plays whole rollouts with the parts: each part can serve one
        # Started before the rest, so that they import while this process goes on.
        others = hire(WORKER, count) if hired is None else hired
        self.parts = [Part(worker, size) for worker, size in zip(others, self.sizes[1:], strict=True)]
        words: dict[str, Any] = {"protocol": protocol, "training": training, "reseed_every": reseed_every}
        try:
            for part in self.parts:  # first: loading a game into an emulator takes a sixth of a second
                part.make(game=game, **words)
            self.mine = AtariVecEnv(game, self.sizes[0], num_threads=1 if self.parts else None, **words)
            self.game, self.protocol, self.training = self.mine.game, self.mine.protocol, training
            self.action_meanings = self.mine.action_meanings
            self._lives = [0] * n_envs
            super().__init__(n_envs, self.mine.observation_space, self.mine.action_space)
            self.seed(seed)
        except BaseException:
            end(others)
            raise

    def reset(self) -> NDArray[np.uint8]:
        """Start a new game everywhere and return the observations, (n_envs, 4, 84, 84)."""
        self._check_open()
        if self._waiting:
            self.step_wait()
        for part, chosen in zip(self.parts, self.slices[1:], strict=True):
            part.reset_async(self._seeds[chosen.start])
        if self._seeds[0] is not None:
            self.mine.seed(self._seeds[0])
        observations, infos = [self.mine.reset()], [*self.mine.reset_infos]
        for part in self.parts:
            first, its = part.reset_wait()
            observations.append(first)
            infos += its
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = infos
        self.note_lives(infos)
        return np.concatenate(observations)

    def save_games(self) -> Games | None:
        """Return the state of the games between two steps; None without `reseed_every`.

        Raises:
            RequestError: a step is under way.
        """
        self._check_open()
        parts = [self.mine.save_games(), *(part.save_games() for part in self.parts)]
        saved = [part for part in parts if part is not None]
        return Games.join(saved) if len(saved) == len(parts) else None

    def load_games(self, games: Games, on_step: OnStep = lambda done, total: None) -> NDArray[np.uint8]:
        """Play the games to a state that was saved, and return the observations of that moment.

        Raises:
            ReplayError: they do not come there. The vector must be reset before it is used.
        """
        self._check_open()
        check_state(games, self.num_envs, len(self.action_meanings))
        for part, chosen in zip(self.parts, self.slices[1:], strict=True):
            part.load_async(games.part(chosen))
        try:
            observations = [self.mine.load_games(games.part(self.slices[0]), on_step)]
            for part in self.parts:
                while not part.worker.has_answered(0.5):
                    on_step(len(games.actions), len(games.actions))  # its games are longer than mine
                observations.append(part.load_wait())
        except BaseException:
            for part in self.parts:
                part.worker.forsake()
            raise
        self.note_lives([{"lives": lives} for lives in games.facts["lives"]])
        self._reset_seeds()
        return np.concatenate(observations)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Send one action to each environment.

        Raises:
            RequestError: wrong shape, an action that the game does not have, or a step is under way already.
        """
        if self._waiting:
            raise RequestError("step_async was called twice; call step_wait in between")
        self._check_open()
        sent = check_actions(actions, self.num_envs, len(self.action_meanings), self.game)
        self.mine.drop_step()  # of a step that was interrupted
        self.mine.step_async(sent[self.slices[0]])
        for part, chosen in zip(self.parts, self.slices[1:], strict=True):
            part.step_async(sent[chosen])
        self._waiting = True

    def step_wait(self) -> VecEnvStepReturn:
        """Return observations, rewards, dones and infos of the step under way, in SB3's form."""
        if not self._waiting:
            raise RequestError("step_wait was called without step_async before it")
        self._waiting = False
        results = [self.mine.step_wait(), *(part.step_wait() for part in self.parts)]
        observations, rewards, dones = (
            np.concatenate([np.asarray(result[place]) for result in results]) for place in (0, 1, 2)
        )
        infos: Infos = [info for result in results for info in result[3]]
        self.note_lives(infos)
        return observations, rewards, dones, infos

    def drop_step(self) -> None:
        """Let a step that is under way come to nothing, if one is; the answers of other processes nobody waits for."""
        self._waiting = False
        self.mine.drop_step()

    def _check_open(self) -> None:
        """Refuse where the environments are closed."""
        if self._closed:
            raise RequestError("this DividedVecEnv is closed; construct another one")

    def note_lives(self, infos: Infos) -> None:
        """Remember the lives of each game."""
        self._lives = [info["lives"] for info in infos]

    def close(self) -> None:
        """Stop the emulators and the worker processes; a second call does nothing."""
        self._waiting = False
        self._closed = True
        self.mine.close()
        end([part.worker for part in self.parts])

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """As in every vector; and the lives of each game."""
        if attr_name == "lives":
            return [self._lives[index] for index in self._get_indices(indices)]
        return super().get_attr(attr_name, indices)
