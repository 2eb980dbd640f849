"""What people see while a comparison runs: a live table on a terminal, plain lines elsewhere. On stderr."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self, final

from coordrl.console import format_seconds, tell
from coordrl.launch import CellState, Progress, read_progress

if TYPE_CHECKING:
    from rich.table import Table

READ_SECONDS = 1.0  # between two readings of the logs
PLAIN_SECONDS = 30.0  # between two plain lines
MOST_ROWS = 24  # of running cells in the live table


@final
class Scoreboard:
    """Shows how far a comparison is: runs done, running, failed, steps/s, the time left.

    Args:
        steps: of each run.
    """

    def __init__(self, steps: int) -> None:
        from rich.console import Console  # takes a tenth of a second, which a wrong request need not wait for
        from rich.live import Live

        self._steps = steps
        self._console = Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._is_live = self._console.is_terminal
        self._next_read = self._next_plain = 0.0
        self._began = time.monotonic()
        self._begun_steps: float | None = None
        self._known: dict[str, Progress] = {}

    def __enter__(self) -> Self:
        """Show the live table, on a terminal."""
        if self._is_live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Take the live table away."""
        if self._is_live:
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line of its own above the table."""
        if self._is_live:
            self._console.print(text, markup=False, highlight=False)
        else:
            tell(text)

    def show(self, states: list[CellState]) -> None:
        """Show all cells, if it is time to."""
        now = time.monotonic()
        if now < self._next_read:
            return
        self._next_read = now + READ_SECONDS
        for state in states:
            name = state.cell.folder
            if state.state in ("running", "waiting") and (state.state == "running" or name not in self._known):
                self._known[name] = read_progress(state.folder)
        summary = self._summary(states, now)
        if self._is_live:
            self._live.update(self._table(states, summary), refresh=True)
        elif now >= self._next_plain:
            self._next_plain = now + PLAIN_SECONDS
            tell(summary)

    def _summary(self, states: list[CellState], now: float) -> str:
        """Say in a line how far the whole is."""
        counts = {
            kind: sum(state.state == kind for state in states) for kind in ("done", "running", "diverged", "failed")
        }
        running = [self._known[state.cell.folder] for state in states if state.state == "running"]
        rate = sum(progress.steps_per_second for progress in running)
        steps = sum(self._steps_of(state) for state in states)
        if self._begun_steps is None:
            self._begun_steps = steps
        parts = [f"{counts['done']} of {len(states)} runs done", f"{counts['running']} running"]
        parts += [f"{counts[kind]} {kind}" for kind in ("diverged", "failed") if counts[kind]]
        if rate:
            parts.append(f"{rate:,.0f} steps/s")
        gained = steps - self._begun_steps
        if gained > 0:
            left = self._steps * len(states) - steps
            parts.append(f"{format_seconds((now - self._began) / gained * left)} left")
        return " · ".join(parts)

    def _steps_of(self, state: CellState) -> int:
        """Count the steps of a cell that need not be made any more."""
        if state.state in ("done", "diverged", "failed"):
            return self._steps
        return min(self._known.get(state.cell.folder, Progress()).step, self._steps)

    def _table(self, states: list[CellState], summary: str) -> Table:
        """Draw the running cells under the summary."""
        from rich.table import Table

        table = Table(title=summary, title_justify="left", title_style="bold", box=None, pad_edge=False)
        table.add_column("run")
        for name in ("step", "%", "steps/s", "mean return", "attempt"):
            table.add_column(name, justify="right")
        running = [state for state in states if state.state == "running"]
        for state in running[:MOST_ROWS]:
            progress = self._known[state.cell.folder]
            mean = "" if progress.return_mean is None else f"{progress.return_mean:,.1f}"
            rate = f"{progress.steps_per_second:,.0f}" if progress.step else "starting"
            share = f"{100 * progress.step / self._steps:.0f}"
            table.add_row(state.cell.folder, f"{progress.step:,}", share, rate, mean, str(state.attempts))
        if len(running) > MOST_ROWS:
            table.add_row(f"and {len(running) - MOST_ROWS} more")
        return table
