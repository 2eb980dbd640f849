"""coordrl COMMAND ...: the same as python -m coordrl.COMMAND ..."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from coordrl import __version__
from coordrl.errors import suggest

_COMMANDS = {
    "train": "train an agent on an Atari game, or go on with a run",
    "compare": "compare extractors on a suite of games with many seeds",
    "report": "show what the runs of a comparison say, as a page",
    "evaluate": "score a trained agent over whole games",
    "board": "show a whole comparison in TensorBoard",
    "play": "make a video of a trained agent",
    "paper": "train the toy tasks of the CoordConv paper, with CoordConv and without",
}

_USAGE = "\n".join(
    [
        "usage: coordrl COMMAND ...",
        "",
        "CoordConv for reinforcement learning.",
        "",
        *(f"  coordrl {name:<9} {summary}" for name, summary in _COMMANDS.items()),
        "",
        "Each command explains itself: coordrl train --help",
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] in ([], ["-h"], ["--help"]):
        print(_USAGE)
        return 0
    if words[0] == "--version":
        print(f"coordrl {__version__}")
        return 0
    if words[0] not in _COMMANDS:
        hint = suggest(words[0], _COMMANDS) or f"; there are {', '.join(_COMMANDS)}"
        print(f'coordrl: there is no command "{words[0]}"{hint}', file=sys.stderr)
        return 2
    code: int = import_module(f"coordrl.{words[0]}").main(words[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
