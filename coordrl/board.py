"""coordrl board: TensorBoard over a whole comparison, both arms of a game in one chart."""

from __future__ import annotations

import contextlib
import io
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, NoReturn

import tyro

from coordrl.console import parse_arguments, run_command, tell
from coordrl.errors import CoordrlError, RequestError
from coordrl.events import Built, build, find_sources, find_whole
from coordrl.files import check_no_link
from coordrl.plan import PLAN_FILE

_OUT = "(default: RUNS/compare/tensorboard; RUNS/board, where there is no plan; of a part of a comparison, one for the time being)"
HOST = "127.0.0.1"
REFRESH_SECONDS = 15.0  # at least, between two looks at the runs' logs
_POINTS = 10_000  # of a curve that TensorBoard draws, instead of 1,000 of them by chance; a log has about 1,000 rows
_SHARE = 20  # refreshing takes at most one twentieth of a core from the trainings
# The address that is printed shows the returns, unsmoothed, with one colour for each arm. TensorBoard calls what is
# before "/" and " mean" a group of runs by this expression: ^([^/ ]+)
_VIEW = "?runColorGroup=regex%3A%5E(%5B%5E%2F%20%5D%2B)&tagFilter=%5Ereturn&smoothing=0#timeseries"


@dataclass(frozen=True)
class BoardArguments:
    """Show a whole comparison in TensorBoard: one chart for each game, one curve for each arm and seed, and their means.

    For example:
        coordrl board runs
        coordrl board runs --write-only && tensorboard --logdir runs/compare/tensorboard

    Both arms of a game lie in one chart, each in a colour of its own; "mean" in the filter of runs leaves the means alone.
    TensorBoard's log folder is derived from the runs' own logs, and follows them while the comparison runs. What a
    comparison found is in coordrl report: nothing is computed from this picture. Ctrl-C ends it.
    """

    runs: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUNS")]]
    """the folder that coordrl compare or train wrote to"""
    port: int = 6006
    """of this machine, for this machine alone; 0 for any that is free"""
    out: Annotated[str, tyro.conf.arg(metavar="PATH", help_behavior_hint=_OUT)] = ""
    """the log folder"""
    write_only: bool = False
    """make the log folder and leave"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _board(parse_arguments(BoardArguments, "board", words)))


def _board(arguments: BoardArguments) -> int:
    """Build the log folder, and show it."""
    runs = arguments.runs
    if not 0 <= arguments.port < 2**16:
        raise RequestError(f"--port is {arguments.port}; it is a whole number from 0 to 65,535")
    sources = find_sources(runs)
    whole = None if arguments.out else find_whole(runs, sources)
    if whole is not None and arguments.write_only:
        raise RequestError(
            f"{runs} is a part of {whole}, where TensorBoard would show a log folder inside it beside the runs' others;"
            f" give a place outside with --out PATH, or make it of the whole: coordrl board {whole} --write-only"
        )
    if not arguments.write_only:
        _check_port(arguments.port)
    with contextlib.ExitStack() as stack:
        if whole is not None:
            log_folder = Path(stack.enter_context(TemporaryDirectory(prefix="coordrl-board-")))
        else:
            within = Path("compare", "tensorboard") if (runs / PLAN_FILE).is_file() else Path("board")
            log_folder = Path(arguments.out) if arguments.out else runs / within
            if not arguments.out:
                check_no_link(runs, within)
        built = build(sources, log_folder)
        tell(f"{_describe(built)} in {log_folder}")
        if not arguments.write_only:
            _serve(runs, log_folder, arguments.port)
    return 0


def _serve(runs: Path, log_folder: Path, port: int) -> NoReturn:
    """Show a log folder, and keep it up with the runs, until Ctrl-C."""
    print(f"{_launch(log_folder, port)}{_VIEW}", flush=True)
    tell("Ctrl-C ends it. Beside return/ there are score/, coordinates/, speed/ and seeds/: clear the filter of tags")
    seconds = 0.0  # that the last refreshing took
    while True:
        time.sleep(max(REFRESH_SECONDS, _SHARE * seconds))
        began = time.monotonic()
        try:
            build(find_sources(runs), log_folder)
        except CoordrlError as error:  # a full disk, say: what was built can still be looked at
            tell(f"not refreshed: {error}")
        seconds = time.monotonic() - began


def _describe(built: Built) -> str:
    """Say what a log folder holds."""
    runs, games = (
        f"{count} {word}{'' if count == 1 else 's'}" for count, word in ((built.runs, "run"), (built.games, "game"))
    )
    return f"{runs} of {', '.join(built.arms)} on {games}; {built.written} of the files were made anew,"


def _check_port(port: int) -> None:
    """Check that nothing listens on a port.

    Raises:
        RequestError: something does, or this user may not.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as test:
        test.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            test.bind((HOST, port))
        except OSError as error:
            raise _taken(port, error.strerror or str(error)) from error


def _taken(port: int, reason: str) -> RequestError:
    """Make the error of a port that cannot be had."""
    return RequestError(f"port {port} cannot be had: {reason}. Choose another with --port, or --port 0 for any")


def _launch(log_folder: Path, port: int) -> str:
    """Start TensorBoard in a thread of this process, on the loopback device alone; returns its address.

    Raises:
        RequestError: somebody else took the port in the meantime.
    """
    from tensorboard.default import get_plugins  # a second or two to import
    from tensorboard.program import TensorBoard, TensorBoardServerException

    board = TensorBoard(plugins=get_plugins())
    words = ["tensorboard", "--logdir", str(log_folder), "--host", HOST, "--port", str(port)]
    board.configure([*words, "--reload_interval", "5", "--samples_per_plugin", f"scalars={_POINTS}"])
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # a note about how it loads files
            address: str = board.launch()
    except TensorBoardServerException as error:
        raise _taken(port, error.msg) from error
    return address


if __name__ == "__main__":
    sys.exit(main())
