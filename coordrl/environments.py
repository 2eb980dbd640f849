"""The one place that knows which class plays a game."""

from __future__ import annotations

from collections.abc import Sequence

from coordrl.suites import CONTROLS, choose_protocol, find_game
from coordrl.vectors import WholeVecEnv
from coordrl.workers import Worker


def make_env(
    game: str,
    n_envs: int,
    *,
    protocol: str | None = None,
    seed: int | None = None,
    training: bool = True,
    workers: Sequence[Worker] = (),
    reseed_every: int | None = None,
    num_threads: int | None = None,
) -> WholeVecEnv:
    """Make `n_envs` copies of a game under the rules of a protocol: an AtariVecEnv, DividedVecEnv or ControlVecEnv.

    Args:
        game: in any usual spelling.
        n_envs: at least 1.
        protocol: the rules; by default the first of the game's world.
        seed: environment i gets seed + i; None draws one.
        training: with the protocol's rules for training. False plays whole games with raw rewards.
        workers: processes that Atari games are divided over, beside this one.
        reseed_every: of Atari games: how often they get new seeds, so that their state can be saved; see AtariVecEnv.
        num_threads: of the emulator, where nothing is divided; None for one a core.

    Raises:
        RequestError: the game, the protocol or a number is wrong.
    """
    game = find_game(game)
    rules = choose_protocol([game], protocol)
    if rules.world is CONTROLS:
        from coordrl.controls import ControlVecEnv

        return ControlVecEnv(game, n_envs, protocol=rules.name, seed=seed, training=training)
    if workers:
        from coordrl.divided import DividedVecEnv

        return DividedVecEnv(
            game,
            n_envs,
            workers=workers,
            protocol=rules.name,
            seed=seed,
            training=training,
            reseed_every=reseed_every,
        )
    from coordrl.atari import AtariVecEnv  # the emulator, which the controls can do without

    return AtariVecEnv(
        game,
        n_envs,
        protocol=rules.name,
        seed=seed,
        num_threads=num_threads,
        training=training,
        reseed_every=reseed_every,
    )
