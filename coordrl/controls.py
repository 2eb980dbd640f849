"""Two games that must come out right before anyone trusts a comparison on Atari: the controls.

A picture is black but for one of four white shapes of five pixels, at one of 36 places that keep it whole:
144 pictures, each as likely as any other, whatever was shown and answered before. A game is 20 pictures; a
right answer is worth 1.

- PlaceMatters: the right answer is the quadrant that the shape's centre lies in.
- PlaceIsNoise: the right answer is which shape it is.

With one seed both games show the same pictures, bit for bit; length, actions, rewards and the number of
pictures for each answer (36 of 144) are the same too. They differ in what the answer depends on, and in
nothing else. All pictures of one shape are one picture, rolled, and each quadrant holds a quarter of them:
so an agent that is blind to rolling gets a quarter of the answers of PlaceMatters, 5 of 20, whatever it
does, as a random one does, and can have all of PlaceIsNoise.

In training every answer ends an episode, as a lost life does on Atari (the game goes on, and its return is
reported at its end): no answer changes what comes next, so that no agent need learn how it does.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any, final

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from coordrl.errors import ReplayError, RequestError
from coordrl.journal import Games
from coordrl.suites import CONTROLS, choose_protocol, find_game
from coordrl.vectors import OnStep, WholeVecEnv, check_actions

PICTURES_PER_GAME = 20
# None is another one, rolled, and none is brighter than another.
SHAPES = {
    "PLUS": (".#.", "###", ".#."),
    "CROSS": ("#.#", ".#.", "#.#"),
    "TEE": ("###", ".#.", ".#."),
    "CORNER": ("#..", "#..", "###"),
}
QUADRANTS = ("UPPER LEFT", "UPPER RIGHT", "LOWER LEFT", "LOWER RIGHT")
_ANSWERS: dict[str, tuple[str, ...]] = {"PlaceMatters": QUADRANTS, "PlaceIsNoise": tuple(SHAPES)}
_PLACES = CONTROLS.image[1] - 2  # along each side: those of a shape of 3x3 pixels
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: the step of SplitMix64


@cache
def pictures() -> NDArray[np.uint8]:
    """Return every picture there is, (4 shapes, 6 rows, 6 columns, 1, 8, 8); do not write into it."""
    drawn = np.zeros((len(SHAPES), _PLACES, _PLACES, *CONTROLS.image), dtype=np.uint8)
    for number, rows in enumerate(SHAPES.values()):
        shape = np.array([[255 * (pixel == "#") for pixel in row] for row in rows], dtype=np.uint8)
        for row, column in np.ndindex(_PLACES, _PLACES):
            drawn[number, row, column, 0, row : row + 3, column : column + 3] = shape
    drawn.flags.writeable = False
    return drawn


@cache
def answers(game: str) -> NDArray[np.int64]:
    """Return the right action for every picture of a game, (4 shapes, 6 rows, 6 columns).

    Raises:
        RequestError: it is no control.
    """
    if game not in _ANSWERS:
        raise RequestError(f"{game} is no control; there are {', '.join(_ANSWERS)}")
    shape, row, column = np.indices((len(SHAPES), _PLACES, _PLACES))
    half = _PLACES // 2
    right: NDArray[np.int64] = 2 * (row >= half) + (column >= half) if game == "PlaceMatters" else shape
    right.flags.writeable = False
    return right


@final
class ControlVecEnv(WholeVecEnv):
    """`n_envs` copies of a control, stepped together, without a Python object for any of them.

    Observations (n_envs, 1, 8, 8) uint8; rewards (n_envs,) float32, 1 for a right answer and 0 for a wrong
    one. When a *game* ends, `info["episode"]` holds its return "r", its length "l" in steps and the time
    since construction in seconds "t", as Monitor writes it, and `env_is_wrapped(Monitor)` is true. The last
    answer of a game leaves nothing to see: its terminal observation is the next game's first picture.

    With a seed, everything is a function of the seed and the actions; the pictures, of the seed alone.

    Args:
        game: PlaceMatters or PlaceIsNoise, in any usual spelling.
        n_envs: at least 1.
        protocol: the rules.
        seed: environment i gets seed + i, as in SB3; 0 to 2**31 - 1 - n_envs. None draws one.
        training: each answer ends an episode. False plays whole games.

    Raises:
        RequestError: the game, the protocol or a number is wrong.
    """

    made_of = "rows of arrays"
    seen_by = "its observations are all there is to see"

    def __init__(
        self,
        game: str,
        n_envs: int,
        *,
        protocol: str = "controls-v1",
        seed: int | None = None,
        training: bool = True,
    ) -> None:
        self.game = find_game(game)
        self.protocol = choose_protocol([self.game], protocol)
        if self.protocol.world is not CONTROLS:
            raise RequestError(f"{self.game} is no control; use coordrl.AtariVecEnv")
        self.training = training
        if n_envs < 1:
            raise RequestError(f"n_envs is {n_envs}; it is at least 1")
        self.action_meanings = _ANSWERS[self.game]
        self._pictures = pictures().reshape(-1, *CONTROLS.image)
        self._answers = answers(self.game).reshape(-1)
        self._chosen: NDArray[np.int64] | None = None  # the actions of the step under way
        self._shown: NDArray[np.int64] | None = None  # numbers of the pictures that wait for an answer, (n_envs,)
        self._closed = False
        self._returns = np.zeros(n_envs, dtype=np.int64)
        self._length = 0  # of every environment's game: all end together
        self._started = time.monotonic()
        super().__init__(n_envs, spaces.Box(0, 255, CONTROLS.image, np.uint8), spaces.Discrete(len(QUADRANTS)))
        self.seed(seed)

    def reset(self) -> NDArray[np.uint8]:
        """Start a new game everywhere and return the observations, (n_envs, 1, 8, 8)."""
        self._check_open()
        if self._seeds[0] is not None:  # else the pictures go on where they were
            self._state = _mix(np.array(self._seeds, dtype=np.uint64))
        self._reset_seeds()
        self._reset_options()
        self._chosen = None
        self._returns[:] = 0
        self._length = 0
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self._show()

    def drop_step(self) -> None:
        """Let a step that is under way come to nothing, if one is."""
        self._chosen = None

    def step_async(self, actions: NDArray[Any]) -> None:
        """Answer in each environment.

        Raises:
            RequestError: wrong shape, an action that the game does not have, or a step is under way already.
        """
        self._check_open()
        if self._chosen is not None:
            raise RequestError("step_async was called twice; call step_wait in between")
        if self._shown is None:
            raise RequestError("the environments were never reset; call reset before the first step")
        self._chosen = check_actions(actions, self.num_envs, len(self.action_meanings), self.game)

    def step_wait(self) -> VecEnvStepReturn:
        """Return observations, rewards, dones and infos of the step under way, in SB3's form."""
        self._check_open()
        if self._chosen is None or self._shown is None:
            raise RequestError("step_wait was called without step_async before it")
        is_right = self._chosen == self._answers[self._shown]
        self._chosen = None
        self._returns += is_right
        self._length += 1
        observations = self._show()
        game_over = self._length == PICTURES_PER_GAME
        ends_episode = game_over or self.training
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        if ends_episode:
            for info, observation in zip(infos, observations.copy(), strict=True):
                info["terminal_observation"] = observation
        if game_over:
            seconds = round(time.monotonic() - self._started, 6)
            for info, right in zip(infos, self._returns.tolist(), strict=True):
                info["episode"] = {"r": float(right), "l": self._length, "t": seconds}
            self._returns[:] = 0
            self._length = 0
        return observations, is_right.astype(np.float32), np.full(self.num_envs, ends_episode), infos

    def _show(self) -> NDArray[np.uint8]:
        """Draw the next pictures and return them, (n_envs, 1, 8, 8)."""
        self._state = self._state + _GOLDEN
        draws = _mix(self._state) >> np.uint64(32)  # 32 bits: a share of 144 in them is even to 1 in 30 million
        self._shown = ((draws * np.uint64(len(self._pictures))) >> np.uint64(32)).astype(np.int64)
        return self._pictures[self._shown]

    def save_games(self) -> Games | None:
        """Return the state of the games between two steps; None before the first reset."""
        if self._shown is None:
            return None
        facts = {
            "states": self._state.tolist(),
            "shown": self._shown.tolist(),
            "returns": self._returns.tolist(),
            "length": self._length,
        }
        return Games(facts, np.zeros((0, self.num_envs), dtype=np.uint8))

    def load_games(self, games: Games, on_step: OnStep = lambda done, total: None) -> NDArray[np.uint8]:
        """Bring the games to a state that was saved, and return the pictures of that moment.

        Raises:
            ReplayError: it is no state of such games.
        """
        self._check_open()
        facts = games.facts
        limits = {"states": 2**64, "shown": len(self._pictures), "returns": PICTURES_PER_GAME}
        for name, limit in limits.items():
            numbers: Any = facts.get(name)
            whole = isinstance(numbers, list) and len(numbers) == self.num_envs
            if not whole or not all(type(number) is int and 0 <= number < limit for number in numbers):
                raise ReplayError(
                    f"the state of the games is damaged: {name} are no {self.num_envs} numbers below {limit:,}"
                )
        length: Any = facts.get("length")
        if type(length) is not int or not max(facts["returns"]) <= length < PICTURES_PER_GAME:
            raise ReplayError(f"the state of the games is damaged: length is {length!r}")
        self._state = np.array(facts["states"], dtype=np.uint64)
        self._shown = np.array(facts["shown"], dtype=np.int64)
        self._returns = np.array(facts["returns"], dtype=np.int64)
        self._length, self._chosen = length, None
        self._reset_seeds()
        return self._pictures[self._shown]

    def close(self) -> None:
        """End; a second call does nothing."""
        self._closed = True

    def _check_open(self) -> None:
        """Refuse to work after `close`."""
        if self._closed:
            raise RequestError("this ControlVecEnv is closed; construct another one")


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble each number: the output function of SplitMix64 (Steele, Lea and Flood 2014).

    A generator that is a function of a counter: environment i's pictures do not depend on how many others
    there are, and no environment needs an object of its own.
    """
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
