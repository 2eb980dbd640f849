"""How a run is carried out, beside what it is."""

from __future__ import annotations

from dataclasses import dataclass

from coordrl.suites import RESEED_EVERY


@dataclass(frozen=True)
class Options:
    """How a run is carried out. The numbers of workers and of steps between seeds change what is drawn, the rest nothing."""

    device: str
    checkpoint_every: int  # steps
    eval_every: int  # steps; 0 for no evaluations
    eval_episodes: int
    command: str
    general: bool = False  # computed as SB3 does, without what is faster
    workers: int = 1  # processes that it may be divided over, the training's own among them
    plan: str | None = None  # the hash of the comparison that the run is part of
    reseed_every: int = RESEED_EVERY  # steps of an environment between new seeds; see coordrl.journal
    actors: int = 0  # processes on Ray that play; 0: this one plays
    address: str | None = None  # of the cluster where they are; None: this machine
