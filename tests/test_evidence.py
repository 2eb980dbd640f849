"""What the runs of a comparison say: states, results, curves, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic_runs import write_matrix

from coordrl.attempts import attempts_file, record_end, record_start
from coordrl.errors import RequestError
from coordrl.evidence import Evidence, read_evidence
from coordrl.files import append_row, read_rows, write_json
from coordrl.plan import Arm, Cell, Plan, make_plan, write_plan
from coordrl.record import POINTS, read_run
from coordrl.results import RunFolder
from coordrl.suites import SUITES

NATURE, COORD = Arm("a2c", "nature"), Arm("a2c", "coord")
GAMES = ("MsPacman", "Pong")
# As coordrl.course writes it: with advice and a path, which a report leaves out.
SIGN = "the training diverged at step 640: train/loss is nan. The last good checkpoint is kept in /a/b; try a smaller"


@pytest.fixture(autouse=True)
def _a_suite_of_two_games(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUITES, "two", GAMES)


def planned(seeds: int = 2, **changes: Any) -> Plan:
    return make_plan("two", ["a2c"], ["nature", "coord"], seeds, 400_000, **changes)


def written(out: Path, plan: Plan | None = None, **words: Any) -> Plan:
    plan = plan or planned()
    write_matrix(out, plan, rows=60, **words)
    return plan


def change(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(file.read_text())
    edit(data)
    write_json(file, data)


def final(out: Path, cell: Cell) -> float:
    value: float = json.loads((cell.path(out) / "result.json").read_text())["final_return"]
    return value


def test_the_final_returns_are_those_of_the_runs(tmp_path: Path) -> None:
    plan = written(tmp_path)
    evidence = read_evidence(tmp_path)
    assert evidence.planned
    assert evidence.plan == plan
    assert evidence.arms == (NATURE, COORD)
    assert evidence.pairs == ((COORD, NATURE),)
    matrix = evidence.matrix(COORD, GAMES, (0, 1))
    cells = {(cell.arm, cell.spec.game, cell.spec.seed): cell for cell in plan.runs}
    for seed in (0, 1):
        for column, game in enumerate(GAMES):
            assert matrix[seed, column] == final(tmp_path, cells[COORD, game, seed])
    assert evidence.missing == ()
    assert evidence.notes == ()
    assert evidence.finals(COORD, "Pong").tolist() == matrix[:, 1].tolist()


def row(step: int, mean: float | None, games: list[float], **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "seconds": step / 10,
        "steps_per_second": 20.0,
        "return_mean": mean,
        "games_finished": 3,
        "games": [[step, value, 5] for value in games],
        "train": {},
        "coordinates": {},
        **changes,
    }


def one_run(out: Path, rows: list[dict[str, Any]], result: dict[str, Any] | None = None) -> tuple[Cell, RunFolder]:
    """Write one run of 1000 steps with this log."""
    cell = make_plan("two", ["a2c"], ["coord"], 1, 1000).runs[0]
    folder = RunFolder(cell.path(out))
    folder.open(cell.spec, {"parameters": 7}, "")
    for one in rows:
        append_row(folder.progress_file, one)
    if result is not None:
        write_json(folder.result_file, {"spec": asdict(cell.spec), "final_return_games": 3, **result})
    return cell, folder


def test_a_curve_holds_each_mean_until_the_next_and_starts_with_the_first_game(tmp_path: Path) -> None:
    log = [row(100, None, []), row(305, 4.0, [4.0]), row(500, 6.0, [8.0]), row(1000, 5.0, [3.0])]
    run = read_run(*one_run(tmp_path, log, {"final_return": 5.0}))
    assert run.state == "finished"
    assert np.isnan(run.curve[: 30 - 1]).all()  # step 305 is nearest to the thirtieth point
    assert run.curve[29:49].tolist() == [4.0] * 20
    assert run.curve[49:99].tolist() == [6.0] * 50
    assert run.curve[99] == 5.0
    # Straight lines between the rows, the first mean held back to step 0.
    assert run.area == pytest.approx((305 * 4 + 195 * 5 + 500 * 5.5) / 1000)
    assert run.steps_per_second == pytest.approx(20.0)
    assert run.ratio is None
    assert run.note == ""


def test_an_unfinished_run_has_a_curve_and_no_result(tmp_path: Path) -> None:
    run = read_run(*one_run(tmp_path, [row(200, 1.0, [1.0]), row(600, 2.0, [3.0])]))
    assert (run.state, run.step, run.final_return, run.area) == ("unfinished", 600, None, None)
    assert run.curve[59] == 2.0
    assert np.isnan(run.curve[60:]).all()
    assert run.note == "at step 600 of 1,000"


def test_a_diverged_run_counts_with_its_last_games_and_its_curve_is_carried_on(tmp_path: Path) -> None:
    cell, folder = one_run(tmp_path, [row(200, 1.0, [1.0]), row(600, 2.0, [3.0])])
    diverged = {"spec": asdict(cell.spec), "step": 640, "sign": SIGN, "returns": [1.0, 3.0, 5.0]}
    write_json(folder.path / "diverged.json", diverged)
    run = read_run(cell, folder)
    assert (run.state, run.final_return, run.final_games) == ("diverged", 3.0, 3)
    assert run.note == "at step 640: train/loss is nan"
    assert run.curve[59:].tolist() == [2.0] + [3.0] * 40
    write_json(folder.path / "diverged.json", {**diverged, "returns": []})
    assert read_run(cell, folder).final_return is None
    write_json(folder.path / "diverged.json", {**diverged, "spec": asdict(replace(cell.spec, seed=5))})
    assert read_run(cell, folder).state == "unfinished"  # it is of another run


def test_a_run_without_a_single_game_is_finished_without_a_result(tmp_path: Path) -> None:
    run = read_run(*one_run(tmp_path, [row(1000, None, [])], {"final_return": None}))
    assert (run.state, run.final_return, run.note) == ("finished", None, "no game was finished")


def test_a_result_that_its_log_contradicts_is_said_and_does_not_count(tmp_path: Path) -> None:
    log = [row(1000, 5.0, [4.0, 6.0])]
    assert read_run(*one_run(tmp_path / "a", log, {"final_return": 5.0})).note == ""
    run = read_run(*one_run(tmp_path / "b", log, {"final_return": 50.0}))
    assert run.note == "its result says 50.00, the last games of its log 5.00: it counts as no result"
    assert run.final_return is None
    run = read_run(*one_run(tmp_path / "c", [row(400, 5.0, [5.0])], {"final_return": 5.0}))
    assert run.note == "its log ends at step 400, its result is of step 1,000"


def test_only_the_last_hundred_games_are_the_final_return(tmp_path: Path) -> None:
    log = [row(500, 9.0, [1e6] * 7), row(600, None, []), row(1000, 2.0, [1.0, 3.0] * 50)]
    assert read_run(*one_run(tmp_path, log, {"final_return": 2.0})).note == ""


def test_a_log_written_in_another_way_reads_the_same(tmp_path: Path) -> None:
    log = [row(500, 2.0, [-1.5, 1e-05, 2e16]), row(1000, 5.0, [4.0, 6.0], coordinates={"coordinates/ratio": 1.5})]
    cell, folder = one_run(tmp_path, log, {"final_return": 5.0})
    usual = read_run(cell, folder)
    for write in (
        lambda one: json.dumps(one, separators=(",", ":")),
        lambda one: json.dumps(dict(reversed(one.items()))),
        lambda one: json.dumps({**one, "train": {"a": {"b": 1}}}),
    ):
        folder.progress_file.write_text("".join(write(one) + "\n" for one in log))
        other = read_run(cell, folder)
        assert np.array_equal(other.curve, usual.curve, equal_nan=True)
        assert usual.ratio is not None
        assert other.ratio is not None
        assert other.ratio[99] == usual.ratio[99] == 1.5
        assert (other.area, other.note, other.steps_per_second) == (usual.area, usual.note, usual.steps_per_second)


def test_an_ablation_of_an_agent_that_trained_on_is_not_taken(tmp_path: Path) -> None:
    cell, folder = one_run(tmp_path, [row(1000, 5.0, [5.0])], {"final_return": 5.0})
    for step, taken in ((500, False), (1000, True), (1040, True), ("all", False)):
        write_json(folder.path / "ablation.json", {"step": step, "true": {"mean": 1.0, "returns": [1.0]}})
        assert bool(read_run(cell, folder).ablation) == taken


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        ("result", "final_return is nan"),
        ("log", "return_mean at step 1,000 is nan"),
        ("ratio", "coordinates/ratio at step 1,000 is inf"),
        ("evaluation", "the evaluation's mean is nan"),
        ("ablation", "the mean of zero is nan"),
        ("shape", "cannot be read: KeyError: 'steps_per_second'"),
    ],
)
def test_what_is_no_number_is_refused_with_its_place(where: str, complaint: str, tmp_path: Path) -> None:
    last = row(1000, math.nan if where == "log" else 5.0, [5.0])
    if where == "ratio":
        last["coordinates"] = {"coordinates/ratio": math.inf}
    if where == "shape":
        del last["steps_per_second"]
    evaluation = {"mean": math.nan if where == "evaluation" else 1.0, "returns": [1.0]}
    result = {"final_return": math.nan if where == "result" else 5.0, "evaluation": evaluation}
    cell, folder = one_run(tmp_path, [last], result)
    if where == "ablation":
        write_json(folder.path / "ablation.json", {"step": 1000, "true": {"mean": 1.0}, "zero": {"mean": math.nan}})
    with pytest.raises(RequestError) as caught:
        read_run(cell, folder)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_state_is_told_apart_and_the_gaps_are_listed(tmp_path: Path) -> None:
    plan = planned(3)
    folders = [cell.folder for cell in plan.runs]
    written(tmp_path, plan, states={folders[0]: "missing", folders[5]: "unfinished", folders[6]: "diverged"})
    damaged = tmp_path.joinpath(*folders[7].split("/"), "run.json")
    damaged.write_text("{")
    evidence = read_evidence(tmp_path)
    states = {run.cell.folder: run.state for run in evidence.runs.values()}
    assert [states[folders[index]] for index in (0, 5, 6, 7, 8)] == [
        "missing",
        "unfinished",
        "diverged",
        "missing",
        "finished",
    ]
    assert {run.cell.folder for run in evidence.missing} == {folders[0], folders[5], folders[7]}
    with pytest.raises(RequestError, match="these cells have no result: a2c-nature MsPacman seed 0; finish them first"):
        evidence.matrix(NATURE, GAMES, (0, 1, 2))
    assert len(evidence.finals(NATURE, "MsPacman")) == 2


def test_the_block_of_a_partial_matrix_is_whole_in_every_arm(tmp_path: Path) -> None:
    plan = planned(3)
    missing = {cell.folder: "missing" for cell in plan.runs if cell.spec.seed == 2}
    del missing["zoo-v4/a2c-nature/Pong/seed-2"]
    written(tmp_path, plan, states=missing)
    evidence = read_evidence(tmp_path)
    assert evidence.block(evidence.arms, GAMES) == ((0, 1), GAMES)
    assert evidence.block((NATURE,), ("Pong",)) == ((0, 1, 2), ("Pong",))
    assert evidence.matrix(COORD, GAMES, (0, 1)).shape == (2, 2)


def test_a_game_that_has_not_begun_does_not_empty_the_block(tmp_path: Path) -> None:
    plan = planned(2)
    written(tmp_path, plan, states={cell.folder: "missing" for cell in plan.runs if cell.spec.game == "Pong"})
    evidence = read_evidence(tmp_path)
    assert evidence.block(evidence.arms, GAMES) == ((0, 1), ("MsPacman",))
    assert evidence.block(evidence.arms, ("Pong",)) == ((), ())


def test_runs_of_another_plan_are_refused_and_those_of_the_plan_before_are_not(tmp_path: Path) -> None:
    plan = written(tmp_path)
    grown = plan.extended(3, "2026-11-25")
    write_plan(tmp_path, grown)
    evidence = read_evidence(tmp_path)
    assert len(evidence.missing) == 4
    assert evidence.plan.extensions[0].hash_before == plan.hash
    change(plan.runs[0].path(tmp_path) / "run.json", lambda data: data.update(plan="0123456789abcdef"))
    with pytest.raises(RequestError, match=f"belongs to the plan 0123456789abcdef, and plan.json is {grown.hash}"):
        read_evidence(tmp_path)


def test_a_plan_that_lost_its_history_is_told_by_the_runs_of_the_plan_before(tmp_path: Path) -> None:
    plan = written(tmp_path)
    fresh = planned(3)  # as if nobody had looked at two seeds first
    write_plan(tmp_path, fresh)
    with pytest.raises(RequestError, match=f"belongs to the plan {plan.hash}, and plan.json is {fresh.hash}"):
        read_evidence(tmp_path)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"alpha": 0.1}, "decided that alpha is 0.1, and this coordrl takes 0.05"),
        ({"fewest_seeds": 2}, "decided that fewest_seeds is 2, and this coordrl takes 5"),
        ({"interval": "percentile"}, "decided that interval is 'percentile', and this coordrl takes 'symmetric"),
    ],
)
def test_a_plan_with_other_criteria_is_refused(changes: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    written(tmp_path, replace(planned(), **changes))
    with pytest.raises(RequestError, match=complaint):
        read_evidence(tmp_path)


def test_a_run_that_was_made_alone_counts_and_is_said(tmp_path: Path) -> None:
    plan = written(tmp_path)
    change(plan.runs[0].path(tmp_path) / "run.json", lambda data: data.update(plan=None))
    evidence = read_evidence(tmp_path)
    assert evidence.missing == ()
    assert evidence.unplanned == (next(iter(evidence.runs.values())),)
    assert not evidence.decided
    (note,) = evidence.notes
    assert note.startswith("1 run without the plan's hash: begun one by one, with the same spec")


def test_a_run_with_other_settings_than_planned_is_refused(tmp_path: Path) -> None:
    plan = written(tmp_path)
    file = plan.runs[3].path(tmp_path) / "run.json"
    change(file, lambda data: data["spec"]["settings"].update(gamma=0.5))
    with pytest.raises(RequestError, match="is another run than planned: gamma is 0.99 there and 0.5 here"):
        read_evidence(tmp_path)


def without_plan(out: Path, **words: Any) -> Plan:
    plan = written(out, **words)
    (out / "plan.json").unlink()
    return plan


def test_runs_without_a_plan_are_read_by_what_they_are(tmp_path: Path) -> None:
    plan = without_plan(tmp_path)
    evidence = read_evidence(tmp_path)
    assert not evidence.planned
    assert (evidence.plan.games, evidence.plan.seeds, evidence.plan.control) == (GAMES, (0, 1), "nature")
    specs = [run.cell.spec for run in evidence.runs.values()]
    assert all(cell.spec in specs for cell in plan.runs)
    assert evidence.pairs == ((COORD, NATURE),)
    assert evidence.missing == ()


def test_runs_of_one_arm_make_no_pair(tmp_path: Path) -> None:
    without_plan(tmp_path)
    shutil.rmtree(tmp_path / "zoo-v4" / "a2c-nature")
    evidence = read_evidence(tmp_path)
    assert (evidence.arms, evidence.pairs) == ((COORD,), ())


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (lambda spec: spec.update(protocol="machado-v5"), "mixes protocol"),
        (lambda spec: spec.update(steps=5), "mixes steps"),
        (lambda spec: spec["settings"].update(gamma=0.5), "has other settings than other runs of a2c: gamma is"),
        (lambda spec: spec.update(seed=1), "holds zoo-v4/a2c-coord/MsPacman/seed-1 more than once"),
    ],
)
def test_what_must_not_be_mixed_is_refused(edit: Callable[[Any], object], complaint: str, tmp_path: Path) -> None:
    without_plan(tmp_path)
    file = tmp_path / "zoo-v4" / "a2c-coord" / "MsPacman" / "seed-0" / "run.json"
    change(file, lambda data: edit(data["spec"]))
    with pytest.raises(RequestError) as caught:
        read_evidence(tmp_path)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_runs_and_no_folder_are_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no folder"):
        read_evidence(tmp_path / "nowhere")
    with pytest.raises(RequestError, match="holds no runs and no plan.json"):
        read_evidence(tmp_path)


def same(one: Evidence, other: Evidence) -> bool:
    pairs = zip(one.runs.values(), other.runs.values(), strict=True)
    return all(
        np.array_equal(a.curve, b.curve, equal_nan=True) and a.final_return == b.final_return and a.area == b.area
        for a, b in pairs
    )


def test_a_folder_copied_elsewhere_says_the_same(tmp_path: Path) -> None:
    written(tmp_path / "here")
    shutil.copytree(tmp_path / "here", tmp_path / "another machine" / "runs")
    assert same(read_evidence(tmp_path / "here"), read_evidence(tmp_path / "another machine" / "runs"))


def test_other_runs_in_the_folder_are_not_used_and_said(tmp_path: Path) -> None:
    plan = written(tmp_path)
    shutil.copytree(plan.runs[0].path(tmp_path), tmp_path / "older" / "seed-9")
    evidence = read_evidence(tmp_path)
    assert len(evidence.runs) == 8
    assert evidence.notes == ("1 run in the folder beside the plan's own: not part of it, and not used.",)


def test_different_versions_are_said(tmp_path: Path) -> None:
    plan = written(tmp_path)
    change(plan.runs[0].path(tmp_path) / "run.json", lambda data: data["versions"].update(torch="2.14.0"))
    (note,) = read_evidence(tmp_path).notes
    assert note == "The runs were made with different versions of torch: 2.13.0+cpu in 7 runs, 2.14.0 in 1 run."


def test_attempts_are_counted_for_each_cell(tmp_path: Path) -> None:
    plan = written(tmp_path)
    (tmp_path / "compare").mkdir()
    first, second, third = (cell.folder for cell in plan.runs[:3])
    end: dict[str, Any] = {"exit_code": 1, "state": "waiting", "seconds": 2.0, "where": "process 17"}
    record_start(tmp_path, first, 1)
    record_end(tmp_path, first, 1, **end)
    record_start(tmp_path, second, 1)
    record_start(tmp_path, first, 2)  # its launcher was killed, and so was the next one's
    record_start(tmp_path, first, 3)
    with attempts_file(tmp_path).open("a") as log:
        log.write('{"cell": "cut sh\n[]\n' + json.dumps({"cell": third, "attempt": None}))
    assert read_evidence(tmp_path).attempts == {first: 3, second: 1}


def test_a_real_run_is_read_as_it_is(finished_run: RunFolder) -> None:
    evidence = read_evidence(finished_run.path.parents[3])
    (run,) = evidence.runs.values()
    result = json.loads(finished_run.result_file.read_text())
    assert (run.state, run.note) == ("finished", "")
    assert (run.final_return, run.final_games) == (result["final_return"], result["final_return_games"])
    rows = read_rows(finished_run.progress_file)
    assert run.curve[POINTS - 1] == rows[-1]["return_mean"]
    assert run.ratio is not None
    assert run.ratio[POINTS - 1] == rows[-1]["coordinates"]["coordinates/ratio"]
    assert run.maps[0][1] == 0
    assert run.facts["parameters"] > 1_000_000
