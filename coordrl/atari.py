"""Atari games as an SB3 VecEnv, over ale-py's C++ vector environment (threads, no subprocesses).

Where this differs from SB3's own wrappers (AtariWrapper, VecFrameStack, Monitor), by design:

- Frames become grey before the maximum over two frames is taken, after it in SB3: pixels can differ a
  little.
- No-ops at a game's start: one frame of FIRE, then up to 28 no-ops (0 to 29 without FIRE); SB3: 1 to 30
  no-ops, then four frames of FIRE and four of action 2.
- After a lost life in a game that has FIRE, SB3 steps that environment alone (no-op, FIRE, action 2)
  inside `reset`. Environments cannot be stepped alone here, so the next two actions of that environment
  are replaced by FIRE and action 2; `info["replaced_action"]` says so. Rewards in them count.
- After a lost life the observation that ended the episode also begins the next one, and the stack of
  four frames goes on; SB3 takes one no-op step and empties the stack.
- Lengths in `info["episode"]` count steps, SB3's Monitor counts frames.
"""

from __future__ import annotations

import time
import weakref
from itertools import starmap
from typing import Any, final

import numpy as np
from ale_py.vector_env import AtariVectorEnv
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from coordrl.errors import RequestError
from coordrl.journal import Games, Journal, compare, digests
from coordrl.process import allowed_cores
from coordrl.suites import ATARI, MAX_GAME_FRAMES, MAX_RESEED_EVERY, choose_protocol, find_game, find_protocol, games
from coordrl.vectors import Indices, OnStep, WholeVecEnv, check_actions

_FIRE_SEQUENCE = (1, 2)  # SB3's FireResetEnv: FIRE, then the action after it


@final
class AtariVecEnv(WholeVecEnv):
    """`n_envs` copies of one game, stepped together.

    Observations (n_envs, 4, 84, 84) uint8, four grey frames, the newest last; rewards (n_envs,) float32.
    When a *game* ends, `info["episode"]` holds its raw return "r", its length in steps "l" and the time
    since construction in seconds "t", as Monitor writes it, and `env_is_wrapped(Monitor)` is true.

    With a seed, everything the environment does is a function of the seed and the actions.

    Args:
        game: in any usual spelling.
        n_envs: at least 1.
        protocol: the rules, a name of coordrl.suites.PROTOCOLS.
        seed: environment i gets seed + i, as in SB3; 0 to 2**31 - 1 - n_envs. None draws one.
        num_threads: emulator threads; by default one a core that this process may use.
        training: end episodes at lost lives and clip rewards, where the protocol says so. False plays
            whole games with raw rewards.
        reseed_every: steps of an environment after which it gets a new seed when its game ends (a reset, which
            takes 0.1 to 0.2 s), so that `save_games` and `load_games` work: the state of a game is its seed and
            the actions since. None: no new seeds, and neither of them. The seeds follow from the first ones.

    Raises:
        RequestError: the game, the protocol or a number is wrong.
    """

    made_of = "C++ objects"
    seen_by = "make a video of a trained agent with: coordrl play RUN"

    def __init__(
        self,
        game: str,
        n_envs: int,
        *,
        protocol: str = "zoo-v4",
        seed: int | None = None,
        num_threads: int | None = None,
        training: bool = True,
        reseed_every: int | None = None,
    ) -> None:
        self.game = find_game(game)
        self.protocol = choose_protocol([self.game], protocol)
        if self.protocol.world is not ATARI:
            raise RequestError(f"{self.game} is no Atari game; use coordrl.controls.ControlVecEnv")
        self.training = training
        if n_envs < 1:
            raise RequestError(f"n_envs is {n_envs}; it is at least 1")
        if num_threads is not None and num_threads < 1:
            raise RequestError(f"num_threads is {num_threads}; it is at least 1, or None for one a core")
        if reseed_every is not None and not 1 <= reseed_every <= MAX_RESEED_EVERY:
            raise RequestError(f"reseed_every is {reseed_every}; it is from 1 to {MAX_RESEED_EVERY:,}, or None")
        # The step under way: what was sent, and what has come back. Written inside one call of C code each, together
        # with the sending and the receiving, so that Ctrl-C comes before both or after both: who believes that a step
        # is under way when none is waits for ever, in C++, where no second Ctrl-C helps. (ale-py's own `send` and `recv`
        # are Python around that code.)
        self._sent: list[None] = []
        self._strengths = np.ones(n_envs, dtype=np.float32)  # of paddles; none is analogue here
        self._received: list[Any] = []
        self._digested = True  # the bookkeeping of what came back is done
        self._ready = False  # reset at least once
        self._journal = None if reseed_every is None else Journal(n_envs, reseed_every)
        self._is_replaying = False  # on the way to a saved state: nothing is noted
        emulators = make_emulators(
            self.game, n_envs, protocol=protocol, num_threads=num_threads or min(n_envs, available_cores())
        )
        # Freed at interpreter exit at the latest: C++ threads that outlive it make nanobind complain at length.
        self._owned = [emulators]
        self._free = weakref.finalize(self, self._owned.clear)
        self.action_meanings: tuple[str, ...] = tuple(action.name for action in emulators.ale.get_action_set())
        self._fires = self.protocol.fire and self.action_meanings[1:2] == ("FIRE",) and len(self.action_meanings) > 2
        self._fire_stage = np.full(n_envs, len(_FIRE_SEQUENCE))  # how much of the sequence has been sent
        self._next_stage = self._fire_stage  # the same after the step under way
        self._chosen = np.zeros(n_envs, dtype=np.int64)  # the actions of that
        self._lives = np.zeros(n_envs, dtype=np.int32)
        self._returns = np.zeros(n_envs, dtype=np.float64)
        self._lengths = np.zeros(n_envs, dtype=np.int64)
        self._replaced = np.zeros(n_envs, dtype=np.int64)
        self._started = time.monotonic()
        super().__init__(
            n_envs,
            spaces.Box(0, 255, (4, 84, 84), np.uint8),
            spaces.Discrete(len(self.action_meanings)),
        )
        self.seed(seed)

    def reset(self) -> NDArray[np.uint8]:
        """Start a new game everywhere and return the observations, (n_envs, 4, 84, 84)."""
        self._forget_step()
        given = None if self._seeds[0] is None else [seed for seed in self._seeds if seed is not None]
        seeds = None if given is None else np.array(given, dtype=np.int32)
        if self._journal is not None:
            seeds = self._journal.begin(given)
        self._reset_seeds()
        self._reset_options()
        return self._reset_all(seeds)

    def _reset_all(self, seeds: NDArray[np.int32] | None) -> NDArray[np.uint8]:
        """Start a new game everywhere, from seeds or from where each environment's own draws have come to."""
        observations: NDArray[np.uint8]
        observations, info = self._ale.reset(seed=seeds)
        self._ready = True
        self._lives = info["lives"].copy()
        self._returns[:] = 0.0
        self._lengths[:] = 0
        self._fire_stage[:] = len(_FIRE_SEQUENCE)
        self.reset_infos = [{"lives": int(lives)} for lives in self._lives]
        self._seen = observations
        return observations

    def _reset_some(self, indices: NDArray[np.intp], seeds: NDArray[np.int32]) -> NDArray[np.uint8]:
        """Start a new game in some environments, from seeds; returns the observations of all."""
        mask = np.zeros(self.num_envs, dtype=np.bool_)
        mask[indices] = True
        observations: NDArray[np.uint8]
        observations, info = self._ale.reset(seed=seeds, options={"reset_mask": mask})
        self._lives = info["lives"].copy()
        self._returns[indices] = 0.0
        self._lengths[indices] = 0
        self._fire_stage[indices] = len(_FIRE_SEQUENCE)
        self._seen = observations
        return observations

    def step_async(self, actions: NDArray[Any]) -> None:
        """Send one action to each environment.

        Raises:
            RequestError: wrong shape, an action that the game does not have, or a step is under way already.
        """
        if self._is_waiting():  # two threads would emulate one game, and step_wait would lag a step behind for ever
            raise RequestError("step_async was called twice; call step_wait in between")
        self.drop_step()
        if not self._ready:
            raise RequestError(
                "the environments were never reset; call reset before the first step, and after an interruption"
            )
        # ale-py hangs for ever on an action outside the set, so the check comes before the sending.
        sent = check_actions(actions, self.num_envs, len(self.action_meanings), self.game)
        self._chosen, self._replaced[:], self._next_stage = sent, 0, self._fire_stage.copy()
        if self._fires:
            for stage, action in enumerate(_FIRE_SEQUENCE):
                self._replaced[self._fire_stage == stage] = action
            self._next_stage += self._fire_stage < len(_FIRE_SEQUENCE)
            sent = np.where(self._replaced > 0, self._replaced, sent)
        self._sent.clear()
        self._received.clear()
        self._digested = False
        self._sent.extend(starmap(self._ale.ale.send, ((sent, self._strengths),)))

    def step_wait(self) -> VecEnvStepReturn:
        """Return observations, rewards, dones and infos of the step under way, in SB3's form."""
        if not self._sent or self._digested:
            raise RequestError("step_wait was called without step_async before it")
        self._receive()
        return self._digest()

    def _digest(self) -> VecEnvStepReturn:
        """Do the bookkeeping of a step whose results have come."""
        observations, scores, terminated, truncated, info = self._received[0]
        self._ready = False  # who interrupts this has to reset
        if self._journal is not None and not self._is_replaying:
            self._journal.note(self._chosen)
        self._fire_stage = self._next_stage
        lives = info["lives"]  # after a game's end: already those of the next game
        game_over = terminated | truncated
        # As SB3: a count of 0 lives without a game over happens for a few frames in Qbert.
        life_lost = ~game_over & (lives > 0) & (lives < self._lives)
        self._lives = lives
        self._returns += scores
        self._lengths += 1
        self._fire_stage[life_lost] = 0
        self._fire_stage[game_over] = len(_FIRE_SEQUENCE)  # the emulator presses FIRE at a game's start

        ends_episode = game_over | life_lost if self.training and self.protocol.life_loss_ends_episode else game_over
        clips = self.training and self.protocol.clip_rewards
        rewards = np.sign(scores).astype(np.float32) if clips else scores.astype(np.float32)
        infos: list[dict[str, Any]] = [{"lives": count, "TimeLimit.truncated": False} for count in lives.tolist()]
        for index in np.flatnonzero(self._replaced):
            infos[index]["replaced_action"] = int(self._replaced[index])
        for index in np.flatnonzero(ends_episode):
            # The row of final_obs is uninitialised memory unless the *game* ended.
            final = info["final_obs"][index] if game_over[index] else observations[index].copy()
            infos[index]["terminal_observation"] = final
        for index in np.flatnonzero(game_over):
            infos[index]["TimeLimit.truncated"] = bool(truncated[index] and not terminated[index])
            infos[index]["episode"] = self._finish_game(index)
        self._seen = observations
        if self._journal is not None and not self._is_replaying and game_over.any():
            due, seeds = self._journal.renew(game_over)
            if due.size:
                observations = self._reset_some(due, seeds)
                for index in due:
                    infos[index]["lives"] = int(self._lives[index])
        self._digested = True
        self._ready = True
        return observations, rewards, ends_episode, infos

    def drop_step(self) -> None:
        """Finish a step that was interrupted, if one was: its games have gone on, and its results are nobody's."""
        if self._sent and not self._digested and self._ready:
            self._receive()
            self._digest()

    def _forget_step(self) -> None:
        """Have no step under way; the C++ queue would mix its results with a reset's."""
        if self._is_waiting():
            self._receive()
        self._sent.clear()
        self._received.clear()

    def _is_waiting(self) -> bool:
        """Whether a step is under way."""
        return bool(self._sent) and not self._received

    def _receive(self) -> Any:
        """Wait for the results of the step under way, if they have not come."""
        if not self._received:
            self._received.extend(starmap(self._ale.ale.recv, ((),)))
        return self._received[0]

    def save_games(self) -> Games | None:
        """Return the state of the games between two steps; None without `reseed_every`.

        Raises:
            RequestError: a step is under way.
        """
        if self._is_waiting():
            raise RequestError("save_games was called between step_async and step_wait; call it between two steps")
        self.drop_step()
        if self._journal is None or not self._ready:
            return None
        return self._journal.save(self._facts())

    def load_games(self, games: Games, on_step: OnStep = lambda done, total: None) -> NDArray[np.uint8]:
        """Play the games to a state that was saved, and return the observations of that moment.

        Raises:
            ReplayError: they do not come there. The vector must be reset before it is used.
        """
        if self._journal is None:
            return super().load_games(games, on_step)
        self._forget_step()
        self._ready = False
        every = self._journal.reseed_every
        self._journal.load(games, len(self.action_meanings))
        seeds = np.array(self._journal.seeds, dtype=np.int32)
        steps = len(games.actions)
        self._is_replaying = True
        try:
            self._reset_all(seeds)
            for step, actions in enumerate(games.actions):
                # One that was seeded later plays something until it is its turn.
                (due,) = np.nonzero(self._journal.ages == steps - step)
                if step and due.size:
                    self._reset_some(due, seeds[due])
                idle = self._journal.ages < steps - step
                self.step_async(np.where(idle, 0, actions.astype(np.int64)))
                self.step_wait()
                on_step(step + 1, steps)
            (due,) = np.nonzero(self._journal.ages == 0)
            if steps and due.size:
                self._reset_some(due, seeds[due])
            compare(games.facts, self._facts(), self.game)
        except BaseException:
            self._ready = False
            self._journal.reseed_every = every
            raise
        finally:
            self._is_replaying = False
        self._reset_seeds()
        return self._seen

    def _facts(self) -> dict[str, Any]:
        """Return what can be seen of each environment, to compare with after its game was played again."""
        return {
            "digests": digests(self._seen),
            "lives": self._lives.tolist(),
            "returns": self._returns.tolist(),
            "lengths": self._lengths.tolist(),
            "fire_stages": self._fire_stage.tolist(),
        }

    def _finish_game(self, index: np.intp) -> dict[str, float]:
        """Return what Monitor would report of the game that just ended, and count from zero again."""
        episode = {
            "r": float(self._returns[index]),
            "l": int(self._lengths[index]),
            "t": round(time.monotonic() - self._started, 6),
        }
        self._returns[index] = 0.0
        self._lengths[index] = 0
        return episode

    def close(self) -> None:
        """Stop the emulator's threads; a second call does nothing."""
        if self._owned:
            self._forget_step()
        self._free()

    def get_attr(self, attr_name: str, indices: Indices = None) -> list[Any]:
        """As in every vector; and the lives of each game."""
        if attr_name == "lives":
            return [int(self._lives[index]) for index in self._get_indices(indices)]
        return super().get_attr(attr_name, indices)

    @property
    def _ale(self) -> AtariVectorEnv:
        if not self._owned:
            raise RequestError("this AtariVecEnv is closed; construct another one")
        return self._owned[0]


def make_emulators(game: str, n_envs: int, *, protocol: str, num_threads: int, **options: Any) -> AtariVectorEnv:
    """Make ale-py's vector environment under the rules of a protocol; `options` are its own.

    Raw rewards and whole games: clipping and lost lives are the adapter's. (ale-py's `episodic_life`
    would start a whole new game at each lost life.)
    """
    rules = find_protocol(protocol)
    return AtariVectorEnv(
        games()[game],
        n_envs,
        num_threads=num_threads,
        autoreset_mode="SameStep",  # SB3's convention: the row of a finished game is the next one's first
        max_num_frames_per_episode=MAX_GAME_FRAMES,
        repeat_action_probability=rules.sticky_actions,
        full_action_space=rules.full_action_space,
        noop_max=rules.noop_max,
        use_fire_reset=rules.fire,
        reward_clipping=False,
        episodic_life=False,
        life_loss_info=False,
        **options,
    )


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(allowed_cores())
