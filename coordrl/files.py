"""How the files of a run are written, so that a crash leaves them whole, and read as if a stranger had sent them.

A JSON file is replaced in one move or not at all; a log is appended to, and a last line cut short by a crash is no
error. Standard library only.
"""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import IO, Any, NoReturn

from coordrl.errors import RequestError
from coordrl.faults import reach

MAX_STEP = 10**15  # of a run
MAX_JSON = 4 << 20  # bytes of a JSON file; parsed, it can take twenty times as much
_MAX_LINE = 1 << 24  # characters of a row
_BLOCK = 1 << 10  # bytes that are read at a time from the end of a log


def check_no_link(folder: Path, within: Path) -> None:
    """Check that a folder below another one is no link: who copied the runs of a stranger writes into nothing else.

    Raises:
        RequestError: some folder on the way is one.
    """
    for part in [within, *within.parents][:-1]:
        if (folder / part).is_symlink():
            raise RequestError(
                f"{folder / part} is a link, which may lead anywhere; remove it, or name a folder with --out"
            )


def check_name(path: Path) -> None:
    """Check that a path is one that logs can hold.

    Raises:
        RequestError: it is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"the name {str(path)!a} is not UTF-8, which logs are; choose another") from error


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON object; an empty one where there is no such file or it is damaged."""
    try:
        return load_json(file)
    except (OSError, ValueError):
        return {}


def load_json(file: Path) -> dict[str, Any]:
    """Return the object of a JSON file of a run, which is a file of its own and not too long.

    Raises:
        OSError: it cannot be read, or is a link.
        ValueError: see `parse_json`; or it is a pipe or a device, which might never end.
    """
    with open_own(file, links=False) as opened:
        return parse_json(opened.read(MAX_JSON + 1))


def open_own(file: Path, *, links: bool = True) -> IO[bytes]:
    """Open a file to read it, and nothing else that has a name: a pipe or a device might never end.

    Raises:
        OSError: it cannot be opened, or is a link where `links` takes none.
        ValueError: it is no file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    handle = os.open(file, flags if links else flags | getattr(os, "O_NOFOLLOW", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ValueError("it is no file")
    return os.fdopen(handle, "rb")


def parse_json(data: bytes, *, finite: bool = False) -> dict[str, Any]:
    """Return the object of a JSON file; `finite` takes no NaN and no infinity, which Python writes and JSON has not.

    Raises:
        ValueError: it is too long, not JSON, no object, or an object in it has a key twice.
    """
    if len(data) > MAX_JSON:
        raise ValueError(f"it has {len(data):,} bytes, more than the {MAX_JSON:,} that it may")
    try:
        hooks: dict[str, Any] = {"parse_constant": _refuse, "parse_float": _parse_finite} if finite else {}
        parsed = json.loads(data.decode(), object_pairs_hook=_once, **hooks)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(parsed, dict):
        raise ValueError("it is no object")  # noqa: TRY004 # of the file's content, as all else here
    return parsed


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of its pairs, no key of which may come twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("an object has a key twice")
    return made


def _parse_finite(text: str) -> float:
    """Parse a number that is not too large for a float."""
    number = float(text)
    if not isfinite(number):
        raise ValueError(f"{text} is no number")
    return number


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def write_json(file: Path, data: Any) -> None:
    """Replace a JSON file in one move: a reader sees the old one or the new one, whole."""
    replace_data(file, (json.dumps(data, indent=2) + "\n").encode())


def replace_data(file: Path, data: bytes) -> None:
    """Replace a file's content in one move."""
    replace_file(file, lambda partial: write_data(partial, data))


def write_data(file: Path, data: bytes) -> None:
    """Write a new file. Through Python's own writing, because only that reports a full disk as an OSError."""
    with file.open("wb") as handle:
        handle.write(data[: len(data) // 2])
        handle.flush()
        reach("write")
        handle.write(data[len(data) // 2 :])


def replace_file(file: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` write a file beside this one, then move it here, through to the disk."""
    partial = file.with_name(f".{file.stem}.partial{file.suffix}")
    partial.unlink(missing_ok=True)  # of a process that was killed; or a link, which somebody planted
    try:
        write(partial)
        sync_file(partial)
        reach("rename")
        partial.replace(file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(file.parent)


def sync_file(file: Path) -> None:
    """Force a file's content to the disk."""
    reach("fsync")
    with file.open("r+b") as handle:  # Windows refuses to do so for a file opened to be read alone
        os.fsync(handle.fileno())


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to the disk, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_row(file: Path, row: Mapping[str, Any]) -> None:
    """Append one JSON line to a log, in place of one that was cut short."""
    data = (json.dumps(row) + "\n").encode()
    with file.open("a+b") as handle:
        _drop_half_a_line(handle)
        handle.write(data[: len(data) // 2])
        handle.flush()
        reach("append")
        handle.write(data[len(data) // 2 :])


def _drop_half_a_line(handle: IO[bytes]) -> None:
    """Cut a log back to the end of its last whole line: what follows half of one would never be read."""
    size = end = handle.seek(0, os.SEEK_END)
    while end > 0:
        begin = max(0, end - _BLOCK)
        handle.seek(begin)
        newline = handle.read(end - begin).rfind(b"\n")
        end = begin + newline + 1 if newline >= 0 else begin
        if newline >= 0:
            break
    if end < size:
        handle.truncate(end)


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read a log; a line that is cut short or damaged ends it."""
    return list(stream_rows(file))


def stream_rows(file: Path, parse: Callable[[str], Any] = json.loads) -> Iterator[dict[str, Any]]:
    """Read a log row by row, holding one at a time; a line that is cut short or damaged ends it.

    So does one whose step is none, or falls. `parse` turns a line into a row, or raises ValueError.
    """
    try:
        opened = open_own(file)
    except (FileNotFoundError, ValueError):
        return
    last = 0
    with io.TextIOWrapper(opened, encoding="utf-8", errors="replace") as handle:
        for line in iter(lambda: handle.readline(_MAX_LINE), ""):
            try:
                row = parse(line)
            except (ValueError, RecursionError):
                return
            step = row.get("step") if isinstance(row, dict) else None
            if type(step) is not int or not last <= step <= MAX_STEP:
                return
            last = step
            yield row


def cut_rows(file: Path, step: int) -> None:
    """Keep only the rows of a log up to a step: what came after a checkpoint will come again."""
    if file.exists():
        kept = [row for row in read_rows(file) if row["step"] <= step]
        replace_data(file, "".join(json.dumps(row) + "\n" for row in kept).encode())
