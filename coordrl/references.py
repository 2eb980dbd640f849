"""What others reached on the games: random play, human players, published agents. Data with its sources.

On the controls, where the best play is known, it stands in a human player's place; both ends are exact there.

Standard library only. The numbers stand in reference_scores.csv beside this file; a protocol other than ours
means that scores are near each other at best.
"""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import NamedTuple

from coordrl.errors import RequestError

_FILE = Path(__file__).with_name("reference_scores.csv")
_BOTTOM, _TOPS = "random", ("human", "optimal")  # the algorithms that scores are normalised by


class Published(NamedTuple):
    """The score of an agent as somebody published it."""

    algorithm: str
    steps: int | None  # decisions of the agent; None where the source does not say
    protocol: str  # in the source's terms, or one of ours
    mean: float  # raw score
    std: float | None  # the source says of what
    source: str


def random_and_human(game: str) -> tuple[float, float]:
    """Return the raw scores of random play and of a human player (on a control: of the best play).

    Between these, scores are normalised.

    Raises:
        RequestError: they are not known for this game.
    """
    scores = {row["algorithm"]: float(row["mean"]) for row in _rows() if row["game"] == game}
    top = next((scores[name] for name in _TOPS if name in scores), None)
    if _BOTTOM not in scores or top is None:
        known = sorted({row["game"] for row in _rows()})
        raise RequestError(f"no scores of random and human play are known for {game}; there are {', '.join(known)}")
    return scores[_BOTTOM], top


def published(game: str) -> list[Published]:
    """Return what agents were published to reach on a game; none for a game that the file does not know."""
    return [
        Published(
            algorithm=row["algorithm"],
            steps=int(row["steps"]) if row["steps"] else None,
            protocol=row["protocol"],
            mean=float(row["mean"]),
            std=float(row["std"]) if row["std"] else None,
            source=row["source"],
        )
        for row in _rows()
        if row["game"] == game and row["algorithm"] not in (_BOTTOM, *_TOPS)
    ]


@cache
def _rows() -> list[dict[str, str]]:
    """Read the file."""
    with _FILE.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))
