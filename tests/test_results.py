"""A run's folder: spec, logs, lock, state."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordrl.errors import BusyError, OutputError, RequestError
from coordrl.files import append_row, cut_rows, read_rows, write_json
from coordrl.recipes import find_recipe
from coordrl.results import RunFolder, Spec, find_runs

SPEC = Spec("Pong", "a2c", "a2c", "coord", "zoo-v4", 0, 1000, find_recipe("a2c").settings)


def test_a_run_lies_where_the_design_says() -> None:
    assert SPEC.folder(Path("runs")) == Path("runs/zoo-v4/a2c-coord/Pong/seed-0")


def test_a_spec_survives_its_file(tmp_path: Path) -> None:
    folder = RunFolder(SPEC.folder(tmp_path))
    folder.open(SPEC, {"versions": {}}, "recipe")
    assert folder.read_spec() == SPEC
    assert folder.recipe_file.read_text() == "recipe"
    folder.open(SPEC, {}, "recipe")  # the same again is fine


def test_another_spec_on_the_same_folder_is_refused_with_the_difference(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open(SPEC, {}, "")
    with pytest.raises(RequestError, match="holds another run: steps is 1000 there and 2000 here"):
        folder.open(replace(SPEC, steps=2000), {}, "")
    with pytest.raises(RequestError, match="learning_rate is 0.0007 there and 0.1 here"):
        folder.open(replace(SPEC, settings={**SPEC.settings, "learning_rate": 0.1}), {}, "")


@pytest.mark.parametrize("change", [{"algorithm": "apex"}, {"settings": {"n_envs": 16}}])
def test_a_run_of_another_version_is_refused_not_guessed_at(change: dict[str, object], tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", {"spec": {**asdict(SPEC), **change}})
    with pytest.raises(RequestError, match="another version of coordrl made it"):
        RunFolder(tmp_path).read_spec()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"spec": 1}', '{"spec": {"game": "Pong"}}', "\x00\xff"])
def test_a_damaged_run_json_is_one_clear_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RequestError, match="run.json cannot be read"):
        RunFolder(tmp_path).read_spec()
    assert RunFolder(tmp_path).state() == "damaged"


def test_a_folder_without_run_json_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is no run: it has no run.json"):
        RunFolder(tmp_path).read_spec()


def test_facts_that_come_later_are_added_to_run_json(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.open(SPEC, {"versions": {}}, "")
    folder.add_facts({"parameters": 5})
    written = folder.spec_file.stat().st_mtime_ns
    folder.add_facts({"parameters": 5})  # nothing new, nothing written
    assert folder.spec_file.stat().st_mtime_ns == written
    assert folder.read_spec() == SPEC
    assert json.loads(folder.spec_file.read_text())["parameters"] == 5
    assert json.loads(folder.spec_file.read_text())["versions"] == {}


def test_finished_means_that_the_result_is_there_and_belongs_to_the_spec(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "seed-0")
    folder.open(SPEC, {}, "")
    assert folder.state() == "unfinished at step 0"
    append_row(folder.progress_file, {"step": 1600})
    assert folder.state() == "unfinished at step 1,600"
    folder.result_file.write_text("{")
    assert not folder.is_finished(SPEC)
    write_json(folder.result_file, {"spec": asdict(replace(SPEC, seed=1))})
    assert not folder.is_finished(SPEC)
    write_json(folder.result_file, {"spec": asdict(SPEC)})
    assert folder.state() == "finished"
    assert [run.path for run in find_runs(tmp_path)] == [folder.path]


@given(st.integers(0, 200), st.integers(0, 20))
def test_a_log_cut_anywhere_reads_as_its_whole_lines(cut: int, rows: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "progress.jsonl"
        for step in range(rows):
            append_row(file, {"step": step, "text": "é"})
        whole = file.read_bytes() if rows else b""
        file.write_bytes(whole[: max(len(whole) - cut, 0)])
        read = read_rows(file)
        assert read == [{"step": step, "text": "é"} for step in range(len(read))]
        assert len(read) >= whole[: max(len(whole) - cut, 0)].count(b"\n")
        whole_lines = [{"step": step, "text": "é"} for step in range(file.read_bytes().count(b"\n") if rows else 0)]
        append_row(file, {"step": 1000})  # comes in place of half a line, which would hide it
        assert read_rows(file) == [*whole_lines, {"step": 1000}]


def test_a_log_is_cut_back_to_a_step(tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    for step in (100, 200, 300):
        append_row(file, {"step": step})
    cut_rows(file, 200)
    assert read_rows(file) == [{"step": 100}, {"step": 200}]
    cut_rows(tmp_path / "none.jsonl", 5)  # nothing to cut
    assert read_rows(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize("line", ["[]", "{}", '{"step": "x"}', "null", "nonsense"])
def test_a_damaged_line_ends_a_log(line: str, tmp_path: Path) -> None:
    file = tmp_path / "progress.jsonl"
    file.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    assert read_rows(file) == [{"step": 1}]


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    code = f"from pathlib import Path; from coordrl.results import RunFolder\nwith RunFolder(Path({str(tmp_path)!r})).lock(): "
    holder = subprocess.Popen(
        [sys.executable, "-c", code + "print('held', flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(BusyError, match=f"in use by process {holder.pid}"), RunFolder(tmp_path).lock():
        pass
    holder.kill()  # kill -9 leaves no stale lock
    holder.communicate()
    with RunFolder(tmp_path).lock():
        pass


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")  # works as root too, whom permissions do not stop
    folder = RunFolder(tmp_path / "file" / "run")
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        folder.open(SPEC, {}, "")
    with pytest.raises(OutputError, match="cannot be written"), folder.lock():
        pass


def test_json_is_replaced_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    write_json(file, {"a": 1})
    write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 2}
    assert list(tmp_path.iterdir()) == [file]
