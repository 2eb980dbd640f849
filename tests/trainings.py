"""The trainings that run on this machine, for tests and scripts/torment. Linux."""

from __future__ import annotations

from pathlib import Path


def workers_of(out: Path) -> list[int]:
    """Return the processes that train into a folder, whoever started them, and the workers of such that are no more."""
    found = []
    parents = {}
    for place in Path("/proc").glob("[0-9]*"):
        try:
            words = (place / "cmdline").read_bytes().split(b"\0")
            state = (place / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if b"coordrl.train" in words and str(out).encode() in words and state != "Z":
            found.append(int(place.name))
        if b"coordrl.divided_worker" in words and state != "Z":
            parents[int(place.name)] = int(words[words.index(b"coordrl.workers") + 2])
    return [*found, *(worker for worker, parent in parents.items() if not Path(f"/proc/{parent}").exists())]
