"""Games, suites of games, and protocols: the facts that a request names. Standard library only.

A misspelt game must be answered in well under a second, so nothing here imports torch, numpy or the
emulator: the list of games is read from the names of the ROM files that ale-py ships.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from coordrl.errors import RequestError, suggest

FRAMES_PER_STEP = 4  # on Atari one decision of the agent lasts four emulator frames, in every protocol
# Steps of an environment between two seeds. A new seed costs 0.1 to 0.2 s, so 16 environments that take 600 steps/s
# pay about 1 % for it; and 8,000 steps and the rest of a game are played again in about a minute.
RESEED_EVERY = 8_000
MAX_RESEED_EVERY = 1_000_000
MAX_GAME_FRAMES = 108_000  # 30 minutes at 60 Hz: the field's cap on one game

# ROMs that ale-py ships but that have no single-player mode (ale_py.registration).
_TWO_PLAYERS = frozenset({"combat", "joust", "maze_craze", "warlords"})

# The games of coordrl.controls: the right answer lies in a thing's place, or in its shape.
CONTROL_GAMES = ("PlaceMatters", "PlaceIsNoise")


@dataclass(frozen=True)
class World:
    """A family of games that look alike to an agent, and what commands take for them where they are not told otherwise."""

    name: str
    image: tuple[int, int, int]  # of an observation: channels, height and width in pixels
    frames_per_step: int  # pictures that the environment makes for one decision of the agent
    agent: str
    extractors: tuple[str, str]  # the control and the treatment
    steps: int  # of a run


ATARI = World("atari", (4, 84, 84), FRAMES_PER_STEP, "a2c", ("nature", "coord"), 10_000_000)
CONTROLS = World("controls", (1, 8, 8), 1, "a2c-controls", ("pool", "coord-pool"), 100_000)


@dataclass(frozen=True)
class Protocol:
    """The rules of the environment and of the evaluation; results of two protocols are never mixed."""

    name: str
    world: World
    summary: str
    sticky_actions: float = 0.0  # probability that the emulator repeats the last action, drawn each frame
    full_action_space: bool = False  # all 18 actions instead of the game's minimal set
    noop_max: int = 0  # a game starts after 0 to noop_max - 1 frames of no-ops; 0 means none
    fire: bool = False  # press FIRE where the game waits for it: at its start and after each lost life
    life_loss_ends_episode: bool = False  # in training only; the game goes on
    clip_rewards: bool = False  # in training only; to their sign


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="zoo-v4",
            world=ATARI,
            summary="as rl-baselines3-zoo: no sticky actions, minimal actions, no-op starts, FIRE, a lost life ends the episode",
            sticky_actions=0.0,
            full_action_space=False,
            noop_max=30,
            fire=True,
            life_loss_ends_episode=True,
            clip_rewards=True,
        ),
        Protocol(
            name="machado-v5",
            world=ATARI,
            summary="as Machado et al. 2018: sticky actions 0.25, all 18 actions, no life-loss signal, no no-ops",
            sticky_actions=0.25,
            full_action_space=True,
            noop_max=0,
            fire=False,
            life_loss_ends_episode=False,
            clip_rewards=True,
        ),
        Protocol(
            name="controls-v1",
            world=CONTROLS,
            summary="the two controls: games of 20 pictures, 1 for a right answer; in training each answer ends an episode",
        ),
    )
}

# Chosen before any run: Ms. Pac-Man is the one game that the paper's text names; all nine have
# published A2C and DQN scores under zoo-v4. The paper's other eight games are not known.
SUITES: dict[str, tuple[str, ...]] = {
    "atari9": (
        "Asteroids",
        "BeamRider",
        "Breakout",
        "MsPacman",
        "Pong",
        "Qbert",
        "RoadRunner",
        "Seaquest",
        "SpaceInvaders",
    ),
    "controls": CONTROL_GAMES,
}

# The networks before the heads; coordrl.extractors builds them.
EXTRACTOR_SUMMARIES: dict[str, str] = {
    "nature": "SB3's NatureCNN, the control",
    "coord": "CoordConv in the first layer (row, column)",
    "coord-r": "the same with the radius",
    "coord-all": "CoordConv in all three convolutions",
    "shuffled": "control: as coord, the coordinates' pixels permuted (addresses without geometry)",
    "constant": "control: as coord, every extra channel is 0.5 (parameters without position)",
    "pool": "control: stride 1, circular padding, global mean; blind to position",
    "coord-pool": "pool with CoordConv in the first layer",
}
WITHOUT_COORDINATES = ("nature", "pool")  # of these: each the twin of others
ANY_SIZE = frozenset({"pool", "coord-pool"})  # the extractors that take images of any size
NATURE_SMALLEST = 36  # pixels, of the others: three unpadded convolutions, 8x8 stride 4, 4x4 stride 2, 3x3 stride 1

# What can be done to the coordinates of a trained agent; coordrl.ablation does it.
ABLATIONS: dict[str, str] = {
    "zero": "coordinate weights 0",
    "shift": "the grid rolled by half its height and half its width",
    "shuffle": "the grid's pixels permuted by a fixed seed",
}


def ablations_of(extractor: str) -> tuple[str, ...]:
    """Return the ablations that change what an extractor computes: moving coordinates that are all alike does not."""
    if extractor in WITHOUT_COORDINATES:
        return ()
    return ("zero",) if extractor == "constant" else tuple(ABLATIONS)


@cache
def games() -> dict[str, str]:
    """Map each game's name ("MsPacman") to its ROM ("ms_pacman"), in alphabetical order."""
    spec = find_spec("ale_py")
    if spec is None or not spec.submodule_search_locations:
        raise RequestError(
            "ale-py is not installed, so there are no games; install it with: pip install 'ale-py>=0.12.1'"
        )
    folder = Path(spec.submodule_search_locations[0]) / "roms"
    roms = sorted(path.stem for path in folder.glob("*.bin"))
    return {rom.title().replace("_", ""): rom for rom in roms if rom not in _TWO_PLAYERS}


def find_game(name: str) -> str:
    """Return the name of a game, Atari or control, for any usual spelling of it.

    "MsPacman", "ms_pacman", "Ms. Pac-Man", "ALE/MsPacman-v5" and "MsPacmanNoFrameskip-v4" are all MsPacman.

    Raises:
        RequestError: no game is called so; up to three suggestions.
    """
    plain = {_plain(game): game for game in (*CONTROL_GAMES, *games())}
    wanted = _plain(re.sub(r"^ale/|(noframeskip)?-v\d+$", "", name.strip().lower()))
    if wanted in plain:
        return plain[wanted]
    hint = suggest(wanted, plain.values(), key=plain) or "; see them all with: coordrl train --list"
    shown = name if name.isprintable() else name.encode("unicode_escape").decode()  # on one line, whatever it holds
    raise RequestError(f'there is no game "{shown}"{hint}')


def find_suite(name: str) -> tuple[str, ...]:
    """Return the games of a suite; a list of games, separated by commas, is a suite of its own.

    Raises:
        RequestError: there is no such suite or game, or a game is named twice.
    """
    if name in SUITES:
        return SUITES[name]
    words = [word for word in name.split(",") if word.strip()]
    if len(words) < 2 and _plain(name) not in {_plain(game) for game in (*CONTROL_GAMES, *games())}:
        hint = suggest(name, SUITES) or f"; there are {', '.join(SUITES)}, or name games, separated by commas"
        raise RequestError(f'there is no suite "{name}"{hint}')
    found = tuple(find_game(word) for word in words)
    twice = next((game for game in found if found.count(game) > 1), None)
    if twice is not None:
        raise RequestError(f'the suite "{name}" names {twice} twice')
    return found


def find_protocol(name: str) -> Protocol:
    """Return the protocol called `name`.

    Raises:
        RequestError: there is none.
    """
    if name not in PROTOCOLS:
        raise RequestError(f'there is no protocol "{name}"; there are {", ".join(PROTOCOLS)}{suggest(name, PROTOCOLS)}')
    return PROTOCOLS[name]


def choose_protocol(games_played: Sequence[str], name: str | None = None) -> Protocol:
    """Return the protocol to play games under: the one called `name`, by default the first of their world.

    Args:
        games_played: by their own names, at least one.
        name: a protocol, or None to choose by the games.

    Raises:
        RequestError: there is no such protocol, or one of the games is not played under it.
    """
    theirs = {
        game: [rules for rules in PROTOCOLS.values() if (rules.world is CONTROLS) == (game in CONTROL_GAMES)]
        for game in games_played
    }
    chosen = theirs[games_played[0]][0] if name is None else find_protocol(name)
    for game, known in theirs.items():
        if chosen not in known:
            listed = " or ".join(rules.name for rules in known)
            raise RequestError(f"{game} is not played under {chosen.name}; its protocol is {listed}")
    return chosen


def check_extractor(name: str, world: World = ATARI) -> None:
    """Check that there is an extractor called `name`, and that it can take the images of a world.

    Raises:
        RequestError: there is none, with up to three suggestions; or the images are too small for it.
    """
    if name not in EXTRACTOR_SUMMARIES:
        hint = suggest(name, EXTRACTOR_SUMMARIES) or f"; there are {', '.join(EXTRACTOR_SUMMARIES)}"
        raise RequestError(f'there is no extractor "{name}"{hint}')
    _, height, width = world.image
    if name not in ANY_SIZE and min(height, width) < NATURE_SMALLEST:
        raise RequestError(
            f"the images of the {world.name} are {height}x{width}, too small for the extractor {name}, which needs"
            f" {NATURE_SMALLEST}x{NATURE_SMALLEST}; use {' or '.join(world.extractors)}"
        )


def _plain(name: str) -> str:
    """Reduce a name to its letters and digits, in lower case."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
