"""One game played twice in step: grey for the agent, in colours for people."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple, Self, final

import numpy as np
from ale_py import ALEInterface, roms
from numpy.typing import NDArray

from coordrl.atari import AtariVecEnv, make_emulators
from coordrl.errors import CoordrlError
from coordrl.suites import games


class Turn(NamedTuple):
    """What one step of a game brought, or its start."""

    observations: NDArray[np.uint8]  # (1, 4, 84, 84), for the agent; of the last step: the game's end
    frame: NDArray[np.uint8]  # (height, 160, 3), the same moment in colours
    reward: float  # raw
    lives: int
    sent: int  # the action that the game got
    forced: bool  # the protocol replaced the agent's action
    over: str  # why the game ended, or ""


@final
class Lockstep:
    """One game in two emulators: one shows the agent its grey frames, the other shows people the colours.

    ale-py's vector emulator renders nothing, but it is a function of its seed and the actions after it,
    so a second one, asked for colours at their native size, plays the same game.

    Args:
        game: its name in coordrl.
        protocol: the rules.
        seed: of the game.
    """

    def __init__(self, game: str, *, protocol: str, seed: int) -> None:
        self.env = AtariVecEnv(game, 1, protocol=protocol, seed=seed, training=False)
        emulator = ALEInterface()
        rom = roms.get_rom_path(games()[game])
        assert rom is not None, "AtariVecEnv has loaded it"
        emulator.loadROM(rom)
        height, width = emulator.getScreenDims()  # 210 x 160, 250 x 160 in ten games
        options = {"img_height": height, "img_width": width, "grayscale": False, "stack_num": 1}
        self._colours = [make_emulators(game, 1, protocol=protocol, num_threads=1, **options)]
        self._seed = seed
        self._steps = 0
        self._lives = 0

    def __enter__(self) -> Self:
        """Nothing to do: the emulators are ready."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop both emulators."""
        self._colours.clear()
        self.env.close()

    def reset(self) -> Turn:
        """Start the game."""
        self.env.seed(self._seed)
        observations = self.env.reset()
        frames, facts = self._colours[0].reset(seed=self._seed)
        self._steps = 0
        self._lives = self.env.reset_infos[0]["lives"]
        self._compare("lives", self._lives, int(facts["lives"][0]))
        return Turn(observations, frames[0, 0], 0.0, self._lives, 0, False, "")

    def step(self, actions: NDArray[np.int64]) -> Turn:
        """Send an action, (1,), to both, and compare what they say.

        Raises:
            CoordrlError: they say different things.
        """
        observations, rewards, dones, infos = self.env.step(actions)
        assert not isinstance(observations, dict | tuple)
        info: dict[str, Any] = infos[0]
        sent = actions.copy()
        sent[0] = info.get("replaced_action", sent[0])
        frames, scores, terminated, truncated, facts = self._colours[0].step(sent)
        self._steps += 1
        over = bool(terminated[0] or truncated[0])
        self._compare("reward", float(rewards[0]), float(scores[0]))
        self._compare("lives", info["lives"], int(facts["lives"][0]))
        self._compare("end", bool(dones[0]), over)
        frame = facts["final_obs"][0, 0] if over else frames[0, 0]
        shown = info["terminal_observation"][None] if over else observations
        if not over:
            self._lives = info["lives"]  # at a game's end, those of the next game already
        elif terminated[0]:
            self._lives = 0
        reason = ("GAME OVER" if terminated[0] else "30 MINUTES ARE OVER") if over else ""
        return Turn(shown, frame, float(rewards[0]), self._lives, int(sent[0]), "replaced_action" in info, reason)

    def _compare(self, what: str, agents: float, peoples: float) -> None:
        """Check that both emulators say the same."""
        if agents != peoples:
            raise CoordrlError(
                f"the two emulators of {self.env.game} parted at step {self._steps:,}: {what} {agents} for the agent,"
                f" {peoples} in colours; no video of it can be true. Try another --seed, and please report this"
            )
