"""TensorBoard over a comparison: what lies in which chart, what is made anew, and the command itself."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from coordrl import report
from coordrl.board import main
from coordrl.errors import RequestError
from coordrl.events import build, find_sources
from coordrl.files import write_json
from coordrl.plan import Plan, make_plan, write_plan
from coordrl.results import RunFolder, Spec

STEPS = 4000


def row(step: int, value: float | None, ratio: float | None = None) -> dict[str, Any]:
    """Make a row of progress.jsonl."""
    coordinates = {} if ratio is None else {"coordinates/ratio": ratio}
    return {
        "step": step,
        "seconds": step / 100,
        "steps_per_second": 100.0,
        "return_mean": value,
        "games_finished": 1,
        "games": [],
        "train": {},
        "coordinates": coordinates,
    }


def write_run(folder: RunFolder, spec: Spec, rows: list[dict[str, Any]]) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    write_json(folder.spec_file, {"spec": asdict(spec)})
    folder.progress_file.write_text("".join(json.dumps(one) + "\n" for one in rows))


def value_of(spec: Spec, step: int) -> float:
    """Return something that is another number for each run and step."""
    return step / 10 + 1000 * spec.seed + (100 if spec.extractor == "coord" else 0) + len(spec.game)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A comparison of two arms on two games with two seeds, all of it run."""
    made = make_plan("Pong,Breakout", ["a2c"], ["nature", "coord"], 2, STEPS)
    write_plan(tmp_path, made)
    for cell in made.runs:
        ratio = 1.5 if cell.spec.extractor == "coord" else None
        rows = [row(1000, None, ratio)]
        rows += [row(step, value_of(cell.spec, step), ratio) for step in (2000, 3000, 4000)]
        folder = RunFolder(cell.path(tmp_path))
        write_run(folder, cell.spec, rows)
        evaluation = {"step": STEPS, "seconds": 40.0, "mean": 7.5, "std": 0.0, "returns": [7.5], "lengths": [9]}
        folder.evaluations_file.write_text(json.dumps(evaluation) + "\n")
    return made


def folder_of(plan: Plan, out: Path, extractor: str, game: str, seed: int) -> RunFolder:
    specs = {(cell.spec.extractor, cell.spec.game, cell.spec.seed): cell for cell in plan.runs}
    return RunFolder(specs[extractor, game, seed].path(out))


def add_rows(folder: RunFolder, *rows: dict[str, Any]) -> None:
    with folder.progress_file.open("a") as handle:
        handle.writelines(json.dumps(one) + "\n" for one in rows)


def read_board(log_folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Read a log folder as TensorBoard does: runs, their tags, and the points of each."""
    found = {}
    for folder in sorted({file.parent for file in log_folder.rglob("*tfevents*")}):
        accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        accumulator.Reload()
        tags = accumulator.Tags()["scalars"]
        points = {tag: [(point.step, point.value) for point in accumulator.Scalars(tag)] for tag in tags}
        found[folder.relative_to(log_folder).as_posix()] = points
    return found


def board(out: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    build(find_sources(out), out / "log")
    return read_board(out / "log")


def files(log_folder: Path) -> dict[Path, int]:
    """Map each file to its inode: another one is another file, even of the same name."""
    return {file: file.stat().st_ino for file in log_folder.rglob("*") if file.is_file()}


def test_runs_are_arms_and_seeds_and_tags_carry_the_game(plan: Plan, tmp_path: Path) -> None:
    found = board(tmp_path)
    runs = {"a2c-nature/seed-0", "a2c-nature/seed-1", "a2c-coord/seed-0", "a2c-coord/seed-1"}
    assert set(found) == runs | {"a2c-nature mean", "a2c-coord mean"}
    for run, points in found.items():
        kinds = ["return", "score", "speed"]
        kinds += ["coordinates/ratio"] if "coord" in run else []
        kinds += ["seeds"] if "mean" in run else []
        assert set(points) == {f"{kind}/{game}" for kind in kinds for game in ("Pong", "Breakout")}
    for cell in plan.runs:
        points = found[f"{cell.arm.name}/seed-{cell.spec.seed}"]
        expected = [(step, pytest.approx(value_of(cell.spec, step))) for step in (2000, 3000, 4000)]
        assert points[f"return/{cell.spec.game}"] == expected
        assert points[f"score/{cell.spec.game}"] == [(STEPS, 7.5)]
        assert len(points[f"speed/{cell.spec.game}"]) == 4


def test_the_mean_is_over_the_seeds_that_have_got_that_far(plan: Plan, tmp_path: Path) -> None:
    short = folder_of(plan, tmp_path, "coord", "Pong", 1)
    short.progress_file.write_text("".join(json.dumps(row(s, v)) + "\n" for s, v in ((1000, None), (2500, 50.0))))
    mean = board(tmp_path)["a2c-coord mean"]
    assert mean["seeds/Pong"] == [(3000, 1.0), (4000, 1.0)]  # at 2000 seed 1 is there, and has no return yet
    assert mean["return/Pong"] == [(3000, pytest.approx(404.0)), (4000, pytest.approx(504.0))]
    assert mean["return/Breakout"][0] == (2000, pytest.approx((308 + 1308) / 2))
    assert mean["seeds/Breakout"] == [(2000, 2.0), (3000, 2.0), (4000, 2.0)]


def test_a_diverged_seed_stays_in_the_mean_with_its_last_return(plan: Plan, tmp_path: Path) -> None:
    diverged = folder_of(plan, tmp_path, "coord", "Pong", 1)
    diverged.progress_file.write_text(json.dumps(row(2000, 50.0)) + "\n")
    write_json(diverged.diverged_file, {"step": 2100, "returns": [50.0]})
    mean = board(tmp_path)["a2c-coord mean"]
    assert mean["seeds/Pong"] == [(2000, 2.0), (3000, 2.0), (4000, 2.0)]
    assert mean["return/Pong"][-1] == (4000, pytest.approx((504 + 50) / 2))


def test_one_seed_has_no_mean_beside_it(tmp_path: Path) -> None:
    plan = make_plan("Pong", ["a2c"], ["nature", "coord"], 1, STEPS)
    write_plan(tmp_path, plan)
    cell = plan.runs[0]
    write_run(RunFolder(cell.path(tmp_path)), cell.spec, [row(1000, 1.0)])
    assert set(board(tmp_path)) == {"a2c-nature/seed-0"}  # and the other arm has not begun


def test_only_what_has_changed_is_made_anew(plan: Plan, tmp_path: Path) -> None:
    board(tmp_path)
    before = files(tmp_path / "log")
    assert build(find_sources(tmp_path), tmp_path / "log").written == 0
    assert files(tmp_path / "log") == before
    add_rows(folder_of(plan, tmp_path, "coord", "Pong", 0), row(5000, 9.0))
    assert build(find_sources(tmp_path), tmp_path / "log").written == 2
    after = files(tmp_path / "log")
    assert {file.parent.name for file in before.keys() - after.keys()} == {"seed-0", "a2c-coord mean"}
    assert all(after[file] == inode for file, inode in before.items() if file in after)
    assert len(after) == len(before)
    found = read_board(tmp_path / "log")
    assert found["a2c-coord/seed-0"]["return/Pong"][-1] == (5000, 9.0)
    assert found["a2c-coord mean"]["seeds/Pong"][-1] == (5000, 1.0)


def test_a_resumed_run_whose_log_was_cut_back_is_shown_as_it_is_now(plan: Plan, tmp_path: Path) -> None:
    board(tmp_path)
    folder_of(plan, tmp_path, "coord", "Pong", 0).progress_file.write_text(json.dumps(row(2000, 3.0)) + "\n")
    assert board(tmp_path)["a2c-coord/seed-0"]["return/Pong"] == [(2000, 3.0)]


def test_a_row_that_is_being_written_is_left_for_later(plan: Plan, tmp_path: Path) -> None:
    with folder_of(plan, tmp_path, "coord", "Pong", 0).progress_file.open("a") as handle:
        handle.write('{"step": 5000, "seco')
    assert board(tmp_path)["a2c-coord/seed-0"]["return/Pong"][-1][0] == 4000


def test_rows_that_hold_anything_are_shown_as_far_as_they_hold_numbers(plan: Plan, tmp_path: Path) -> None:
    folder = folder_of(plan, tmp_path, "coord", "Pong", 0)
    tag = "return/Pong"
    before = board(tmp_path)["a2c-coord/seed-0"][tag]
    strange = [row(5000, 8.0), row(6000, 9.0), row(7000, 10.0), row(2**70, 11.0)]
    strange[0]["return_mean"], strange[1]["coordinates"], strange[2]["seconds"] = "abc", [], None
    add_rows(folder, *strange)
    assert board(tmp_path)["a2c-coord/seed-0"][tag] == [*before, (6000, 9.0)]
    folder.progress_file.unlink()
    os.mkfifo(folder.progress_file)  # nobody will ever write to it
    assert tag not in board(tmp_path).get("a2c-coord/seed-0", {})


@pytest.mark.parametrize("command", ["board", "report"])
def test_a_folder_that_is_a_link_is_not_written_to(
    command: str, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "compare").mkdir(exist_ok=True)
    (tmp_path / "compare" / "tensorboard").symlink_to(elsewhere)
    (tmp_path / "report").symlink_to(elsewhere)
    run = {"board": main, "report": report.main}[command]
    assert run([str(tmp_path), *(["--write-only"] if command == "board" else [])]) == 2
    said = capsys.readouterr().err
    assert "is a link, which may lead anywhere" in said
    assert said.count("\n") == 1
    assert [*elsewhere.iterdir()] == []


def test_a_link_within_the_log_folder_is_not_followed(plan: Plan, tmp_path: Path) -> None:
    board(tmp_path)
    log_folder, elsewhere = tmp_path / "compare" / "tensorboard", tmp_path / "elsewhere"
    assert main([str(tmp_path), "--write-only"]) == 0
    (log_folder / "a2c-coord mean").rename(elsewhere)
    (log_folder / "a2c-coord mean").symlink_to(elsewhere)
    before = files(elsewhere)
    add_rows(folder_of(plan, tmp_path, "coord", "Pong", 0), row(5000, 8.0))
    assert main([str(tmp_path), "--write-only"]) == 2
    assert files(elsewhere) == before


def test_runs_that_are_gone_go_and_other_peoples_files_stay(plan: Plan, tmp_path: Path) -> None:
    board(tmp_path)
    note = tmp_path / "log" / "a2c-coord" / "seed-1" / "events.out.tfevents.mine"
    note.touch()
    for game in ("Pong", "Breakout"):
        folder_of(plan, tmp_path, "coord", game, 1).progress_file.unlink()
        folder_of(plan, tmp_path, "nature", game, 1).progress_file.unlink()
    build(find_sources(tmp_path), tmp_path / "log")
    left = {file.relative_to(tmp_path / "log").parent.as_posix() for file in files(tmp_path / "log")}
    assert left == {"a2c-coord/seed-0", "a2c-nature/seed-0", "a2c-coord/seed-1"}
    assert note.exists()
    assert len(list(note.parent.iterdir())) == 1


def test_runs_without_a_plan_are_shown_too(plan: Plan, tmp_path: Path) -> None:
    with_plan = board(tmp_path)
    (tmp_path / "plan.json").unlink()
    assert board(tmp_path) == with_plan


def test_what_cannot_lie_in_one_chart_is_refused(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "plan.json").unlink()
    cell = plan.runs[0]
    write_run(RunFolder(tmp_path / "copy" / "seed-0"), cell.spec, [])
    with pytest.raises(RequestError, match="holds a2c-nature on Pong with seed 0 twice"):
        find_sources(tmp_path)
    spec = Spec(**{**asdict(cell.spec), "protocol": "machado-v5"})
    write_run(RunFolder(tmp_path / "copy" / "seed-0"), spec, [])
    with pytest.raises(RequestError, match="mixes the protocols machado-v5 and zoo-v4"):
        find_sources(tmp_path)


# The command.


def test_write_only_writes_beside_the_plan_and_leaves(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path), "--write-only"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        f"8 runs of a2c-coord, a2c-nature on 2 games; 12 of the files were made anew, in {tmp_path}/compare/tensorboard\n"
    )
    (tmp_path / "plan.json").unlink()
    assert main([str(tmp_path), "--write-only"]) == 0
    assert read_board(tmp_path / "board") == read_board(tmp_path / "compare" / "tensorboard")
    assert main([str(tmp_path), "--write-only", "--out", str(tmp_path / "there")]) == 0
    assert len(read_board(tmp_path / "there")) == 6


@pytest.mark.parametrize("part", ["zoo-v4", "zoo-v4/a2c-coord", "zoo-v4/a2c-coord/Pong"])
def test_a_part_of_a_comparison_is_shown_without_leaving_each_run_twice_in_the_whole(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    files = sorted(tmp_path.rglob("*"))
    shown = []

    def launch(log_folder: Path, port: int) -> str:
        shown.append(
            (log_folder, sorted(path.name for path in log_folder.iterdir() if path.name.startswith("a2c-coord")))
        )
        raise KeyboardInterrupt

    monkeypatch.setattr("coordrl.board._launch", launch)
    assert main([str(tmp_path / part), "--port", "0"]) == 130
    ((log_folder, names),) = shown
    assert names == ["a2c-coord", "a2c-coord mean"]
    assert not log_folder.exists()
    capsys.readouterr()
    assert main([str(tmp_path / part), "--write-only"]) == 2
    said = capsys.readouterr().err
    assert f"{part} is a part of {tmp_path}, where TensorBoard would show" in said
    assert said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == files
    elsewhere = tmp_path / "elsewhere"
    assert main([str(tmp_path / part), "--write-only", "--out", str(elsewhere)]) == 0
    assert {"a2c-coord/seed-0", "a2c-coord mean"} <= set(read_board(elsewhere))


def test_runs_that_were_copied_without_their_upper_folders_are_whole(plan: Plan, tmp_path: Path) -> None:
    copy = tmp_path / "copied" / "here"
    shutil.copytree(tmp_path / "zoo-v4" / "a2c-coord", copy)
    assert main([str(copy), "--write-only"]) == 0
    assert "a2c-coord mean" in read_board(copy / "board")


@pytest.mark.parametrize(
    ("words", "code", "complaint"),
    [
        ("{out}/nowhere", 2, "there is no folder"),
        ("{out}/empty", 2, "holds no runs; give the folder that compare or train wrote to"),
        ("{out}/zoo-v4/a2c-coord/Pong/seed-0", 2, "holds no runs; that is one run, see it with: tensorboard --logdir"),
        ("{out}/fresh", 2, "no run of the plan in"),
        ("{out} --port 65536", 2, "--port is 65536; it is a whole number from 0 to 65,535"),
        ("{out} --port -1", 2, "--port is -1"),
        ("{out} --port x", 2, "--port"),
        ("{out} --prot 6006", 2, "--port"),
        ("", 2, "RUNS"),
        ("{out} --write-only --out {out}/plan.json/log", 73, "Not a directory. Another log folder: --out PATH"),
    ],
)
def test_a_mistake_gets_one_clear_line(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: str, code: int, complaint: str
) -> None:
    (tmp_path / "empty").mkdir()
    write_plan(tmp_path / "fresh", plan)
    assert main(words.format(out=tmp_path).split()) == code
    said = capsys.readouterr()
    assert complaint in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)


def test_a_port_that_is_taken_is_refused_before_anything_is_written(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main([str(tmp_path), "--port", str(port)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"coordrl: port {port} cannot be had: Address already in use.")
    assert said.count("\n") == 1
    assert not (tmp_path / "compare").exists()


def test_it_needs_no_torch(plan: Plan, tmp_path: Path) -> None:
    code = (
        "import sys; from coordrl.board import main; from tensorboard.default import get_plugins; get_plugins();"
        f"print(main([{str(tmp_path)!r}, '--write-only']), {{'torch', 'stable_baselines3', 'gymnasium'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "0 set()\n"


@contextmanager
def running(out: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the command, with quick refreshing, on a free port; gives the process and TensorBoard's address."""
    code = (
        "import signal, sys; from coordrl import board;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # a shell's background jobs ignore it
        f"board.REFRESH_SECONDS, board._SHARE = 0.5, 1; sys.exit(board.main([{str(out)!r}, '--port', '0']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.match(r"(http://127\.0\.0\.1:\d+/)\?\S+#timeseries\n", line)
        assert found, (line, process.communicate(timeout=60))
        yield process, found[1]
    finally:
        process.kill()
        process.communicate()


def family(process: subprocess.Popen[str]) -> list[int]:
    """Return the process and the children of its main thread: TensorBoard's data server."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    return [process.pid, *map(int, children.split())]


def listening(pids: list[int]) -> list[str]:
    """Return the addresses and ports, in hexadecimal, on which processes listen."""
    inodes = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                match = re.match(r"socket:\[(\d+)\]", str(entry.readlink()))
                inodes |= {match[1]} if match else set()
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()]
    return [line[1] for line in lines if line[3] == "0A" and line[9] in inodes]


def wait_until(condition: Any, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it took too long"
        time.sleep(0.1)


def ask(address: str, path: str) -> Any:
    with urllib.request.urlopen(address + path, timeout=60) as answer:
        return json.load(answer)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's /proc")
def test_it_serves_this_machine_alone_and_ctrl_c_ends_it(plan: Plan, tmp_path: Path) -> None:
    with running(tmp_path) as (process, address):
        wait_until(lambda: "a2c-coord mean" in ask(address, "data/runs"))
        pids = family(process)
        found = listening(pids)
        assert found
        assert {place.partition(":")[0] for place in found} == {"0100007F"}  # 127.0.0.1
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert process.stderr.read().endswith("\ncoordrl: stopped\n")
        wait_until(lambda: not any(Path(f"/proc/{pid}/fd").exists() for pid in pids[1:]))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads Linux's /proc")
def test_it_follows_a_comparison_that_is_running_and_leaves_nothing_behind(plan: Plan, tmp_path: Path) -> None:
    words = urllib.parse.urlencode({"run": "a2c-coord/seed-0", "tag": "return/Pong"})

    def steps() -> list[int]:
        try:
            return [point[1] for point in ask(address, f"data/plugin/scalars/scalars?{words}")]
        except urllib.error.HTTPError:  # not read yet
            return []

    with running(tmp_path) as (process, address):
        wait_until(lambda: steps() == [2000, 3000, 4000])
        folder = folder_of(plan, tmp_path, "coord", "Pong", 0)
        add_rows(folder, row(5000, 8.0), row(6000, 9.0))
        wait_until(lambda: steps() == [2000, 3000, 4000, 5000, 6000])
        folder.progress_file.write_text("".join(json.dumps(row(s, 1.0)) + "\n" for s in (1000, 2500)))  # resumed
        wait_until(lambda: steps() == [1000, 2500])
        pids = family(process)
        process.terminate()
        assert process.wait(60) == -signal.SIGTERM
        wait_until(lambda: not any(Path(f"/proc/{pid}/fd").exists() for pid in pids[1:]))


def test_the_help_teaches() -> None:
    environment = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "-m", "coordrl", "board", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environment)
    assert "For example:" in done.stdout
    assert "coordrl board runs" in done.stdout
