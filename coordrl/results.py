"""A run's folder: its spec, the paths in it, its lock and its state. Standard library only.

Everything that reads runs goes through here, without torch.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coordrl.errors import BusyError, OutputError, RequestError
from coordrl.files import MAX_STEP, load_json, read_rows, write_json
from coordrl.recipes import NAME, RULES, Value, check_setting
from coordrl.suites import check_extractor, choose_protocol, find_game, find_protocol

WINDOW = 100  # games: the final return is the mean over the last 100 (Machado et al. 2018, section 4.2)
ROWS = 1_000  # of progress.jsonl in a long run, about


_MAPS = re.compile(r"maps-[0-9]{12}\.npy")


@dataclass(frozen=True)
class Spec:
    """Everything that determines a run."""

    game: str
    agent: str
    algorithm: str
    extractor: str
    protocol: str
    seed: int
    steps: int
    settings: Mapping[str, Value]

    def folder(self, out: Path) -> Path:
        """Return where the run lies below the folder of all runs."""
        return out / self.protocol / f"{self.agent}-{self.extractor}" / self.game / f"seed-{self.seed}"

    def frames(self, steps: int) -> int:
        """Return how many pictures its environment makes for so many steps of the agent.

        Raises:
            RequestError: this version of coordrl does not know the protocol.
        """
        return steps * find_protocol(self.protocol).world.frames_per_step

    def differences(self, other: Spec) -> list[str]:
        """Say in words where another spec differs from this one."""
        mine, theirs = ({**asdict(spec), **spec.settings} for spec in (self, other))
        names = [name for name in {**mine, **theirs} if name != "settings"]
        return [
            f"{name} is {mine.get(name)!r} there and {theirs.get(name)!r} here"
            for name in names
            if mine.get(name) != theirs.get(name)
        ]


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run's files."""

    path: Path

    @property
    def spec_file(self) -> Path:
        """run.json: the spec, versions, hardware."""
        return self.path / "run.json"

    @property
    def recipe_file(self) -> Path:
        """recipe.toml: the recipe as resolved."""
        return self.path / "recipe.toml"

    @property
    def progress_file(self) -> Path:
        """progress.jsonl: the authoritative log."""
        return self.path / "progress.jsonl"

    @property
    def evaluations_file(self) -> Path:
        """evaluations.jsonl: every return of each evaluation."""
        return self.path / "evaluations.jsonl"

    @property
    def coordinates(self) -> Path:
        """coordinates/: norms and position maps over training, as .npy."""
        return self.path / "coordinates"

    @property
    def tensorboard(self) -> Path:
        """tensorboard/: a view of the logs, never a source."""
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        """checkpoints/: the newest ones."""
        return self.path / "checkpoints"

    @property
    def replay(self) -> Path:
        """replay/: segments of the replay memory, which the checkpoints refer to; gone when the run is finished."""
        return self.path / "replay"

    @property
    def export_file(self) -> Path:
        """model.zip: SB3's own format, written for SB3 and never read here."""
        return self.path / "model.zip"

    @property
    def result_file(self) -> Path:
        """result.json: written last; finished means that it is there and matches run.json."""
        return self.path / "result.json"

    @property
    def diverged_file(self) -> Path:
        """diverged.json: at which step a training diverged, by what sign, and its last returns."""
        return self.path / "diverged.json"

    @property
    def diverged_batch(self) -> Path:
        """diverged/: the batch of the update after which a training had diverged, as .npy, (n_steps, n_envs, ...)."""
        return self.path / "diverged"

    @property
    def stacks_file(self) -> Path:
        """stacks.txt: where every thread stood when a training had come to a standstill."""
        return self.path / "stacks.txt"

    @property
    def ablation_file(self) -> Path:
        """ablation.json: scores with true and with ablated coordinates; `coordrl evaluate --ablate` writes it."""
        return self.path / "ablation.json"

    def position_maps(self) -> list[tuple[Path, int]]:
        """Return the files of position maps with their steps, in order."""
        files = sorted(file for file in self.coordinates.glob("maps-*.npy") if _MAPS.fullmatch(file.name))
        return [(file, int(file.stem.removeprefix("maps-"))) for file in files]

    def read_spec(self) -> Spec:
        """Read the spec from run.json.

        Raises:
            RequestError: this is no run's folder, or its run.json is damaged.
        """
        try:
            spec = Spec(**load_json(self.spec_file)["spec"])
            if spec.algorithm not in RULES or set(spec.settings) != set(RULES[spec.algorithm]):
                raise RequestError(
                    f"another version of coordrl made it, this one knows {', '.join(RULES)} with other settings"
                )
            _check_spec(spec)
        except FileNotFoundError as error:
            raise RequestError(f"{self.path} is no run: it has no run.json. A run's folder ends in seed-N") from error
        except NotADirectoryError as error:
            raise RequestError(f"{self.path} is a file; a run is a folder, whose path ends in seed-N") from error
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise RequestError(
                f"{self.spec_file} cannot be read: {error}. Restore it from a copy, or remove the run's folder to start over"
            ) from error
        return spec

    def refuse_links(self) -> None:
        """Check that everything in the folder is a file or a folder of its own: a link would be written through.

        Raises:
            RequestError: something is not, or is a file where a folder belongs.
        """
        for folder in (self.checkpoints, self.replay, self.coordinates, self.tensorboard, self.diverged_batch):
            if folder.is_file():
                raise RequestError(f"{folder} is a file, where a training has a folder; remove it first")
        for place, folders, files in os.walk(self.path):
            for name in (*folders, *files):
                entry = Path(place) / name
                try:
                    facts = entry.lstat()
                except FileNotFoundError:
                    continue  # it has gone
                if not stat.S_ISREG(facts.st_mode) and not stat.S_ISDIR(facts.st_mode):
                    raise RequestError(
                        f"{entry} is no file of its own but a link or a device, which no training makes; remove it first"
                    )
                if stat.S_ISREG(facts.st_mode) and facts.st_nlink > 1:
                    raise RequestError(
                        f"{entry} is the same file as one elsewhere (a hard link), which would change with it; put a copy in"
                        " its place first"
                    )

    def state(self) -> str:
        """Say "finished", "unfinished at step N" or "damaged" in a word or four."""
        try:
            spec = self.read_spec()
        except RequestError:
            return "damaged"
        if self.is_finished(spec):
            return "finished"
        rows = read_rows(self.progress_file)
        return f"unfinished at step {rows[-1]['step'] if rows else 0:,}"

    def is_finished(self, spec: Spec) -> bool:
        """Say whether result.json is there and belongs to this spec."""
        try:
            return Spec(**load_json(self.result_file)["spec"]) == spec
        except (OSError, ValueError, TypeError, KeyError):
            return False

    def open(self, spec: Spec, facts: Mapping[str, Any], recipe: str) -> None:
        """Create the folder and write run.json, or check that the run there is the same.

        Args:
            spec: the run that is wanted.
            facts: what else run.json records (versions, hardware).
            recipe: the text of recipe.toml.

        Raises:
            RequestError: another run lies there.
            OutputError: the folder cannot be written.
        """
        if self.spec_file.exists():
            differences = self.read_spec().differences(spec)
            if differences:
                raise RequestError(
                    f"{self.path} holds another run: {'; '.join(differences)}. Ask for the same, or use another --out"
                )
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.recipe_file.write_text(recipe, encoding="utf-8")
            write_json(self.spec_file, {"spec": asdict(spec), **facts})
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written: {error.strerror or error}. Choose another --out"
            ) from error

    def add_facts(self, facts: Mapping[str, Any]) -> None:
        """Add to run.json what was not known when it was first written.

        Raises:
            RequestError: run.json is damaged.
        """
        self.read_spec()
        known = load_json(self.spec_file)
        if any(known.get(name) != value for name, value in facts.items()):
            write_json(self.spec_file, {**known, **facts})

    def fact(self, name: str) -> Any:
        """Return what run.json records under a name, or None if it does not, or cannot be read."""
        try:
            return load_json(self.spec_file).get(name)
        except (OSError, ValueError):
            return None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder against other processes; the kernel frees it however this one ends.

        Raises:
            RequestError: there are links in it.
            BusyError: another process holds it.
            OutputError: the folder cannot be written.
        """
        file = self.path / "lock"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.refuse_links()  # before anything is written
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written: {error.strerror or error}. Choose another --out"
            ) from error
        try:
            if not _try_lock(handle, file):
                holder = os.read(handle, 32).decode(errors="replace").strip()
                raise BusyError(
                    f"{self.path} is in use by process {holder or '(unknown)'}; wait for it, or stop it first"
                )
            os.ftruncate(handle, 0)
            os.write(handle, f"{os.getpid()}\n".encode())
            yield
        finally:
            os.close(handle)


def find_runs(out: Path) -> list[RunFolder]:
    """Return the runs below a folder, sorted by path."""
    return [RunFolder(file.parent) for file in sorted(out.glob("**/seed-*/run.json"))]


def _check_spec(spec: Spec) -> None:
    """Check a spec that was read from a file, each part as the commands check theirs.

    Raises:
        RequestError: a part is not what it may be; TypeError and AttributeError for other types.
    """
    if find_game(spec.game) != spec.game:
        raise RequestError(f'game is "{spec.game}"')
    if not NAME.fullmatch(spec.agent):
        raise RequestError(f'agent is "{spec.agent}"')
    check_extractor(spec.extractor, find_protocol(spec.protocol).world)
    choose_protocol([spec.game], spec.protocol)
    for name, low, high in (("seed", 0, 2**31 - 1), ("steps", 1, MAX_STEP)):
        number = getattr(spec, name)
        if type(number) is not int or not low <= number <= high:
            raise RequestError(f"{name} is {number!r}; it is a whole number from {low} to {high:,}")
    for name, value in spec.settings.items():
        if type(check_setting(spec.algorithm, name, value, "its recipe")) is not type(value):
            raise RequestError(f"{name} is {value!r}, in another type than its recipe's")


def _try_lock(handle: int, file: Path) -> bool:
    """Take the lock on an open file if nobody has it."""
    try:
        import fcntl
    except ImportError:  # Windows, where nobody has tried this
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems
        raise OutputError(f"{file} cannot be locked: {error.strerror}. Choose an --out on another disk") from error
    return True
