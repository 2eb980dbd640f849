"""What the commands say while they work: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from types import TracebackType
from typing import Annotated, Self, TypeVar, final

import tyro

from coordrl.errors import CoordrlError, RequestError

PLAIN_SECONDS = 10.0  # between two plain lines
_NARROWEST = 40  # columns of a help text: below 8 tyro draws for ever, and takes all memory
LIVE_SECONDS = 0.25  # between two drawings of the live line

_GROUPED = re.compile(r"[+-]?\d{1,3}(,\d{3})+")  # digits in threes

_Arguments = TypeVar("_Arguments")


@final
class ProgressLine:
    """Shows how far a long piece of work is, with the time left, on stderr.

    Args:
        label: what is being done.
        total: of the units that `update` counts.
        start: where a resumed work begins; the time left is measured from there.
        quiet_seconds: how long to wait before the first plain line.
    """

    def __init__(self, label: str, total: int, *, start: int = 0, quiet_seconds: float = PLAIN_SECONDS / 2) -> None:
        self._label, self._total, self._start = label, total, start
        self._began = time.monotonic()
        from rich.console import Console  # takes a tenth of a second, which a wrong request need not wait for
        from rich.progress import BarColumn, Progress, TextColumn

        console = Console(stderr=True)
        self._live = console.is_terminal
        self._next = self._began + (0.0 if self._live else quiet_seconds)
        columns = (
            TextColumn(label),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:.1f} %  {task.fields[text]}"),
        )
        self._progress = Progress(*columns, console=console, auto_refresh=False, transient=True)
        self._task = self._progress.add_task(label, total=total, completed=start, text="")

    def __enter__(self) -> Self:
        """Show the live line, on a terminal."""
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take the live line away."""
        if self._live:
            self._progress.stop()

    def update(self, done: int, describe: Callable[[], str], left: Callable[[], str] | None = None) -> None:
        """Say that `done` units are done, if it is time to.

        `describe` makes the rest of the line; `left` says how much time is left where the units do not tell.
        """
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (LIVE_SECONDS if self._live else PLAIN_SECONDS)
        text = " · ".join(part for part in (describe(), left() if left else self._left(done, now)) if part)
        if self._live:
            self._progress.update(self._task, completed=done, text=text, refresh=True)
        else:
            share = 100 * done / max(self._total, 1)
            tell(f"{self._label}: {done:,} of {self._total:,} ({share:.1f} %) · {text}")

    def say(self, text: str) -> None:
        """Print a line of its own above the live line."""
        if self._live:
            self._progress.console.print(text, markup=False, highlight=False)
        else:
            tell(text)

    def _left(self, done: int, now: float) -> str:
        """Say how much time is left, at the rate so far."""
        return time_left(done - self._start, self._total - self._start, now - self._began)


def time_left(done: int, total: int, seconds: float) -> str:
    """Say how much time is left if `done` of `total` units took so many seconds, or that nobody knows yet."""
    if done <= 0:
        return "time left: no estimate yet"
    return f"{format_seconds(seconds / done * max(total - done, 0))} left"


def tell(text: str) -> None:
    """Print a line on stderr; nobody listening any more is no reason to end a training."""
    if sys.stderr is None:  # closed before we began: print would take stdout, where results go
        return
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def count_words(count: int, thing: str) -> str:
    """Write a count and what is counted: 1 core, 2 cores."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def format_seconds(seconds: float) -> str:
    """Write a duration as people say it: 45 s, 12 min, 3 h 05 min, 2 d 4 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def parse_arguments(kind: type[_Arguments], prog: str, argv: Sequence[str]) -> _Arguments:
    """Parse a command line into a dataclass; --help exits with 0.

    Raises:
        RequestError: the command line is wrong; tyro's own explanation, as one line.
    """
    explanation = io.StringIO()
    try:
        with contextlib.redirect_stderr(explanation), _wide_enough():
            return tyro.cli(
                kind, prog=f"coordrl {prog}", args=_join_settings(argv), config=(tyro.conf.FlagCreatePairsOff,)
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise RequestError(_on_one_line(explanation.getvalue()) + f" See: coordrl {prog} --help") from stop


@contextlib.contextmanager
def _wide_enough() -> Iterator[None]:
    """Have at least so many columns that a help text comes to its end."""
    given = os.environ.get("COLUMNS")
    if shutil.get_terminal_size().columns < _NARROWEST:
        os.environ["COLUMNS"] = str(_NARROWEST)
    try:
        yield
    finally:
        if given is None:
            os.environ.pop("COLUMNS", None)
        else:
            os.environ["COLUMNS"] = given


def _on_one_line(box: str) -> str:
    """Take the frame from tyro's explanation and leave out what --help says too."""
    lines = [line.strip("│╭╰╮╯─ ") for line in box.splitlines()]
    words: list[str] = []
    for line in lines[1:]:
        if line.startswith(("For full helptext", "Argument helptext")):
            break
        if line:
            words.append(line)
    return " ".join(words).rstrip(".") + "."


def _join_settings(argv: Sequence[str]) -> list[str]:
    """Gather the values of every --set, so that it can be given several times, with one or several values."""
    others: list[str] = []
    values: list[str] = []
    target = others
    for word in argv:
        if word == "--set":
            target = values
        elif word.startswith("--set="):
            values.append(word.removeprefix("--set="))
            target = others
        else:
            if word.startswith("--"):
                target = others
            target.append(word)
    if values == [] and "--set" in argv:
        raise RequestError("--set takes NAME=VALUE; for example --set learning_rate=3e-4")
    return [*others, "--set", *values] if values else others


def run_command(work: Callable[[], int]) -> int:
    """Run a command and turn every deliberate error into one line on stderr and its exit code.

    A full disk and other errors of reading and writing exit with 74; Ctrl-C where nothing handles it
    more gently exits with 130.
    """
    _mend_streams()
    format_before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"coordrl: {message}\n"  # a line, without a place in the code
    try:
        code = work()
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a full disk or a closed pipe still gets its line
        return code
    except CoordrlError as error:
        tell(f"coordrl: {_printable(str(error))}")  # may quote what a stranger wrote
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has gone, as in: coordrl train --list | head
        _leave_stdout()
        return 0
    except OSError as error:
        _leave_stdout()
        where = f" ({error.filename})" if error.filename else ""
        tell(
            f"coordrl: reading or writing failed{where}: {error.strerror or error}; mend that, and the same command goes on"
            " from the last checkpoint"
        )
        return 74
    except KeyboardInterrupt:
        tell("coordrl: stopped")
        return 130
    finally:
        warnings.formatwarning = format_before


def _printable(text: str) -> str:
    """Return a text on one line, with what a terminal would obey spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _leave_stdout() -> None:
    """Send what cannot be printed nowhere: Python would try it again at its end, and complain."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        with contextlib.suppress(OSError):  # in a notebook it is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _mend_streams() -> None:
    """Make stdout and stderr fit for what is printed, however this process was started.

    One that was closed would get its number for the next file that is opened, a checkpoint for one, into which a
    library may print. A closed stdout fails when it is written to, because a result that nobody gets is none.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if number == 1 else os.O_RDWR)  # gets the lowest free number
            os.set_inheritable(number, True)  # or the processes that we start would have the same fault
            if number == 1:
                sys.stdout = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 # as long as the process; a number
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a ± that the terminal has not is no reason to lose a score


def _count(text: str) -> int:
    """Read a whole number as people write it: 1000000, 1_000_000, 1,000,000, 1e6, 250k, 10M."""
    scale = {"k": 1_000, "m": 1_000_000}.get(text[-1:].lower(), 1)
    digits = text if scale == 1 else text[:-1]
    if _GROUPED.fullmatch(digits):  # other commas part a list, or a fraction from its whole
        digits = digits.replace(",", "")
    try:
        number = Decimal(digits) * scale
    except ArithmeticError:
        number = Decimal("NaN")
    if not number.is_finite() or number.adjusted() > 30 or number != number.to_integral_value():
        raise ValueError(f'"{text}" is no whole number, as 1000000, 250k, 10M and 1e6 are')
    return int(number)


Count = Annotated[
    int,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="N",
        instance_from_str=lambda words: _count(words[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [f"{value:_}"],  # tyro breaks lines at commas
    ),
]
OptionalCount = Annotated[  # not Count | None, whose every alternative tyro would explain to whoever mistypes a number
    int | None,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="N",
        instance_from_str=lambda words: _count(words[0]),
        is_instance=lambda value: value is None or isinstance(value, int),
        str_from_instance=lambda value: ["" if value is None else f"{value:_}"],
    ),
]


class Words(tuple[str, ...]):
    """The values of --set.

    A class of its own, because tyro checks the default of a tuple[str, ...] with typeguard, whose import
    takes a fifth of a second.
    """

    __slots__ = ()


NO_WORDS = Words()
Settings = Annotated[
    Words,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=VALUE ...",
        instance_from_str=Words,
        is_instance=lambda value: isinstance(value, Words),
        str_from_instance=list,
    ),
    tyro.conf.arg(help_behavior_hint="(default: as in the recipe)"),
]
Name = Annotated[str, tyro.conf.arg(metavar="NAME")]
OptionalName = Annotated[str, tyro.conf.arg(metavar="NAME", help_behavior_hint="(default: none)")]
