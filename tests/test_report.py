"""The report: what it writes, that it stands alone, and what it refuses."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_runs import write_matrix

from coordrl.arrays import array_bytes
from coordrl.errors import RequestError
from coordrl.evidence import read_evidence
from coordrl.figures import inline_svg
from coordrl.files import write_json
from coordrl.findings import find
from coordrl.page import Page
from coordrl.panels import Panel
from coordrl.plan import Plan, make_plan, read_plan
from coordrl.report import main
from coordrl.suites import SUITES

GAMES = ("MsPacman", "Pong")
_VOID = {"meta", "br", "img", "link", "hr", "input"}


@pytest.fixture(scope="module", autouse=True)
def _a_suite_of_two_games() -> Iterator[None]:
    SUITES["two"] = GAMES
    yield
    del SUITES["two"]


def planned(seeds: int, **changes: Any) -> Plan:
    words: dict[str, Any] = {"agents": ["a2c"], "extractors": ["nature", "coord"], "seeds": seeds, "steps": 400_000}
    return make_plan("two", **{**words, **changes})


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of a whole comparison: two games, three seeds."""
    out = tmp_path_factory.mktemp("whole") / "runs"
    write_matrix(out, planned(3), rows=120, ablations=True)
    return out


@pytest.fixture(scope="module")
def report(runs: Path) -> Path:
    """The report on them, made by the command."""
    out = runs.parent / "report"
    assert main([str(runs), "--out", str(out)]) == 0
    return out


def page(runs: Path) -> Page:
    return Page(find(read_evidence(runs), resamples=200), runs="runs", out="report")


def html(runs: Path) -> str:
    return page(runs).texts["report.html"]


def command(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "coordrl.report", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=300, check=False, cwd=cwd, env=environment)


class Tags(HTMLParser):
    """Collects ids, links and tags, and checks that every element is closed where it should be."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.targets: list[str] = []
        self.names: Counter[str] = Counter()
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.names[tag] += 1
        if tag not in _VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "srcset", "data"):
                (self.targets if (value or "").startswith("#") else self.links).append(value or "")

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        if tag not in _VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_that_needs_no_network(report: Path) -> None:
    text = (report / "report.html").read_text(encoding="utf-8")
    tags = Tags(text)
    assert all(link.startswith("data:image/png;base64,") for link in tags.links)
    assert not {"script", "link", "iframe", "object"} & set(tags.names)
    addresses = set(re.findall(r"https?://[^\s\"'<>)]+", text))
    assert addresses <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}  # names, which nobody fetches
    assert "@import" not in text
    assert "@font-face" not in text


def test_the_page_is_well_formed_and_no_id_is_there_twice(report: Path) -> None:
    tags = Tags((report / "report.html").read_text(encoding="utf-8"))
    assert tags.open == []
    assert [name for name, count in Counter(tags.ids).items() if count > 1] == []
    assert {target.removeprefix("#") for target in tags.targets} <= set(tags.ids)


def test_every_figure_has_its_files_its_numbers_and_its_command(report: Path, runs: Path) -> None:
    text = (report / "report.html").read_text(encoding="utf-8")
    names = [name for name in re.findall(r'<figure id="([a-z0-9-]+)"', text) if not name.startswith("maps-")]
    kinds = ("curves", "returns", "aggregates", "improvement", "profile", "ablations", "ratios")
    assert sorted(names) == sorted(f"{kind}-a2c" for kind in kinds)
    for name in names:
        for file in (f"figures/{name}.svg", f"figures/{name}.png", f"tables/{name}.csv"):
            assert (report / file).stat().st_size > 100, file
        figure = text[text.index(f'<figure id="{name}"') :].split("</figure>")[0]
        assert f"--only {name} --out" in figure
        assert figure.count("<tr>") > 2
        assert "<figcaption>" in figure
        assert 'role="img" aria-label="' in figure
    assert {file.name for file in (report / "figures").glob("maps-*")} == {
        f"maps-a2c-coord-{game}-{when}.png" for game in GAMES for when in ("first", "last")
    }


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def test_no_column_of_a_table_is_there_twice(report: Path) -> None:
    for file in (report / "tables").glob("*.csv"):
        with file.open(encoding="utf-8", newline="") as opened:
            header = next(csv.reader(opened))
        assert len(set(header)) == len(header), file.name


def test_the_tables_hold_what_the_runs_hold(report: Path, runs: Path) -> None:
    table = rows(report / "tables" / "runs.csv")
    assert len(table) == 12
    for row in table:
        result = json.loads((runs / row["folder"] / "result.json").read_text())
        assert float(row["final return"]) == result["final_return"]
        assert (row["state"], row["plan"]) == ("finished", planned(3).hash)
        assert row["command"].startswith("coordrl train --game")
    games = {row["game"]: row for row in rows(report / "tables" / "games.csv")}
    for game in GAMES:
        mine = [float(row["final return"]) for row in table if row["game"] == game and row["extractor"] == "coord"]
        assert float(games[game]["mean treatment"]) == pytest.approx(sum(mine) / 3)
        assert games[game]["verdict"] == "few"  # three against three: at best 2 of 20 arrangements
    curves = rows(report / "tables" / "curves-a2c.csv")
    last = [row for row in curves if row["game"] == "Pong" and row["step"] == "400000" and row["extractor"] == "coord"]
    assert float(last[0]["mean"]) == pytest.approx(float(games["Pong"]["mean treatment"]))
    assert last[0]["runs"] == "3"


def test_the_page_says_what_a_sceptic_asks(report: Path) -> None:
    text = (report / "report.html").read_text(encoding="utf-8")
    plan = planned(3)
    for sentence in (plan.question, plan.better, *plan.tests, *plan.exclusions, plan.hash):
        assert sentence.replace("'", "&#39;").replace(" %", "\N{NO-BREAK SPACE}%") in text
    for words in (
        "too few seeds",
        "What these seeds could have seen",
        "Every run of the matrix finished and counts.",
        "1,690,789",  # parameters
        "A Processor 9000, 2 cores",
        "2.13.0+cpu",
        "python -m coordrl.compare --suite two --agents a2c --extractors nature,coord --seeds 3 --steps 400000",
        "The plan has not been extended",
        "prefers-color-scheme: dark",
        "@media print",
        "rl-zoo",
    ):
        assert words in text, words
    assert "Partial report" not in text
    plain = (report / "report.md").read_text(encoding="utf-8")
    assert plan.hash in plain
    for picture in re.findall(r"\]\((figures/[^)]+)\)", plain):
        assert (report / picture).is_file()
    assert plain.count("| few") == 0
    assert plain.count("too few seeds |") == 2


def test_the_same_runs_give_the_same_report_wherever_they_lie(report: Path, runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs, tmp_path / "elsewhere" / "runs")
    done = command("runs", "--out", "report", cwd=tmp_path / "elsewhere")
    assert done.returncode == 0, done.stderr
    again = tmp_path / "elsewhere" / "report"
    for name in ("tables", "figures"):
        for file in sorted((report / name).iterdir()):
            assert (again / name / file.name).read_bytes() == file.read_bytes(), file.name
    there = (report / "report.html").read_text(encoding="utf-8")
    here = (again / "report.html").read_text(encoding="utf-8")
    for path, name in ((str(report), "report"), (str(runs), "runs")):
        there = there.replace(path, name)
    assert here == there
    assert not re.search(r"/(tmp|home|root|work)/", here)


def test_a_report_lies_beside_its_runs_and_replaces_an_earlier_one(runs: Path, tmp_path: Path) -> None:
    copy = tmp_path / "runs"
    shutil.copytree(runs, copy)
    out = copy / "report"
    (out / "figures").mkdir(parents=True)
    for name in ("figures/old.png", "figures/mine.png", "report.md"):
        (out / name).write_text("of another comparison")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "outside.png").touch()
    listed = ["figures/old.png", "report.md", "../figures/outside.png", "figures/../../figures/outside.png"]
    (out / "files.json").write_text(json.dumps(listed))
    assert main([str(copy)]) == 0
    assert not (out / "figures" / "old.png").exists()
    assert (out / "figures" / "mine.png").exists()  # not the report's own
    assert (tmp_path / "figures" / "outside.png").exists()
    written = {file.relative_to(out).as_posix() for file in out.rglob("*.*")} - {"files.json", "figures/mine.png"}
    assert written == set(json.loads((out / "files.json").read_text()))
    before = {file: file.read_bytes() for file in out.rglob("*.*")}
    assert main([str(copy)]) == 0  # the report's own folder is no run
    assert {file: file.read_bytes() for file in out.rglob("*.*")} == before


def test_a_note_stands_at_the_top_and_is_text_whatever_it_holds(runs: Path, tmp_path: Path) -> None:
    assert main([str(runs), "--note", "<b>short</b> runs", "--out", str(tmp_path)]) == 0
    assert "> **Note.** " in (tmp_path / "report.md").read_text().split("##")[0]
    page = (tmp_path / "report.html").read_text()
    assert "<b>short</b>" not in page
    assert "&lt;b&gt;short&lt;/b&gt; runs" in page.split("<h2")[0]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("progress.jsonl", '{"step": 1' + "0" * 400 + "}"),
        ("progress.jsonl", "[" * 100_000),
        ("result.json", "[" * 100_000),
        ("run.json", "[" * 100_000),
        ("plan.json", "[" * 200_000),
        ("plan.json", '{"format": 2, "hash": "", "alpha": NaN}'),
    ],
)
def test_a_poisoned_file_is_one_line_or_a_run_without_a_result(
    runs: Path, tmp_path: Path, file: str, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    victim = next((tmp_path / "runs").rglob(file))
    victim.write_text(change + "\n")
    code = main([str(tmp_path / "runs"), "--only", "profile-a2c"])
    said = capsys.readouterr().err
    assert (code, said.count("\n")) in ((0, 0), (2, 1)), said


def test_a_name_that_is_markup_stays_text_in_the_ids_of_figures() -> None:
    panel = Panel("a", "a line", lambda axes: axes.plot([0, 1]))
    svg = inline_svg(panel, 'x"><img\tsrc=q\tonerror=alert(1)>')
    assert "<img" not in svg


def test_one_figure_alone_has_the_same_numbers(report: Path, runs: Path, tmp_path: Path) -> None:
    assert main([str(runs), "--only", "profile-a2c", "--out", str(tmp_path)]) == 0
    written = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.*"))
    assert written == ["figures/profile-a2c.png", "figures/profile-a2c.svg", "tables/profile-a2c.csv"]
    for name in written:
        assert (tmp_path / name).read_bytes() == (report / name).read_bytes()


def test_a_report_imports_no_torch(runs: Path, tmp_path: Path) -> None:
    heavy = "{'torch', 'stable_baselines3', 'gymnasium', 'ale_py', 'tensorboard', 'matplotlib.pyplot'}"
    code = (
        "import sys; from coordrl.report import main;"
        f" code = main([{str(runs)!r}, '--only', 'curves-a2c', '--out', {str(tmp_path)!r}]);"
        f" import coordrl.page; print(code, {heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "0 set()"


def test_a_partial_matrix_says_so_at_its_top(tmp_path: Path) -> None:
    plan = planned(3)
    folders = [cell.folder for cell in plan.runs]
    states = {folders[-1]: "missing", folders[0]: "diverged", folders[-3]: "unfinished"}
    write_matrix(tmp_path, plan, rows=40, states=states)
    text = html(tmp_path)
    head = text[: text.index("<main>")]
    assert "Partial report." in head
    assert "2 runs of 12 have no result: 2 did not finish." in head
    assert "not a verdict" in text[text.index("<main>") : text.index("<nav")] or "too few" in text
    assert f"<code>{folders[0]}</code>: diverged at step" in text
    assert "it counts, with" in text
    assert f"<code>{folders[-3]}</code>: unfinished at step 240," in text
    Tags(text)


def test_the_runs_that_lack_a_score_without_coordinates_are_named(tmp_path: Path) -> None:
    plan = planned(3)
    write_matrix(tmp_path, plan, rows=40, ablations=True)
    coord = [cell for cell in plan.runs if cell.spec.extractor == "coord" and cell.spec.game == "Pong"]
    file = coord[1].path(tmp_path) / "ablation.json"
    scores = json.loads(file.read_text())
    del scores["shuffle"]
    write_json(file, scores)
    (coord[2].path(tmp_path) / "ablation.json").unlink()
    chart = page(tmp_path).charts["ablations-a2c"]
    named = f"{coord[1].folder} (shuffle) and {coord[2].folder} (true, zero and shuffle); a kind"
    assert f"Scores are missing of {named}" in chart.caption
    texts = {panel.key: panel.alt for panel in chart.panels}
    assert "shuffle" in texts["MsPacman-coord"]
    assert "shuffle" not in texts["Pong-coord"]
    shown = Counter((row[0], row[3]) for row in chart.table.rows)
    assert [shown["Pong", kind] for kind in ("true", "zero", "shuffle")] == [2, 2, 1]
    assert shown["MsPacman", "shuffle"] == 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(categories=None), max_size=8),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(max_size=8), values, max_size=3),
    max_leaves=6,
)
PLACES = (
    *(("parameters",), ("versions",), ("hardware",), ("command",), ("plan",), ("versions", "torch")),
    *(("hardware", name) for name in ("cores", "torch_threads", "processor", "machine", "system", "cuda")),
)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two")
    write_matrix(out, make_plan("Pong", ["a2c"], ["nature", "coord"], 1, 400), rows=4, maps=False)
    return out


def plain_page(runs: Path) -> Page:
    """Make the page without its figures, which take seconds."""
    return Page(replace(find(read_evidence(runs), resamples=10), agents=()), runs="runs", out="report")


@settings(max_examples=60, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(PLACES), JSON, min_size=1, max_size=4))
def test_facts_of_any_type_make_a_page_or_one_clear_line(two_runs: Path, changes: dict[tuple[str, ...], Any]) -> None:
    file = read_plan(two_runs).runs[0].path(two_runs) / "run.json"
    whole = file.read_bytes()
    facts = json.loads(whole)
    for place, value in sorted(changes.items()):
        inner = facts[place[0]] if len(place) > 1 else facts
        if isinstance(inner, dict):
            inner[place[-1]] = value
    another = facts["plan"] not in (None, read_plan(two_runs).hash)
    try:
        file.write_text(json.dumps(facts))
        if another:
            with pytest.raises(RequestError, match=r"\A[^\n]* belongs to the plan [^\n]*\Z"):
                read_evidence(two_runs)
            return
        made = plain_page(two_runs)
        for text in (*made.texts.values(), *(str(row) for row in made.tables["runs"].rows)):
            text.encode()
    finally:
        file.write_bytes(whole)


def test_facts_of_wrong_types_are_shown_as_unknown(tmp_path: Path) -> None:
    write_matrix(tmp_path, make_plan("Pong", ["a2c"], ["nature", "coord"], 1, 400), rows=4, maps=False)
    odd: dict[str, Any] = {"parameters": "many", "versions": ["2.13"], "hardware": {"cores": "two"}, "command": None}
    for cell in read_plan(tmp_path).runs:
        file = cell.path(tmp_path) / "run.json"
        write_json(file, {**json.loads(file.read_text()), **odd})
    text = html(tmp_path)
    assert "<li>processor unknown, cores unknown, threads unknown, no CUDA, system unknown: 2 runs</li>" in text
    assert '<td data-label="parameters">\N{EN DASH}</td>' in text
    assert {row[-1] for row in page(tmp_path).tables["runs"].rows} == {None}


def test_an_extended_plan_says_so(tmp_path: Path) -> None:
    before = planned(2)
    write_matrix(tmp_path, before.extended(3, "2026-11-25"), rows=40)
    text = html(tmp_path)
    assert f"2026-11-25: from 2 to 3 seeds. The plan before had the hash <code>{before.hash}</code>" in text
    assert "The plan has not been extended" not in text


def test_runs_that_were_begun_before_the_plan_are_reported_as_a_description(tmp_path: Path) -> None:
    plan = planned(6)
    write_matrix(tmp_path, plan, rows=20, effect=dict.fromkeys(plan.games, 3.0))
    for file in list(tmp_path.glob("zoo-v4/*/*/seed-3/run.json")):
        write_json(file, {**json.loads(file.read_text()), "plan": None})
    assert main([str(tmp_path)]) == 0
    for name in ("report.html", "report.md"):
        text = (tmp_path / "report" / name).read_text()
        assert "Not all planned." in text
        assert "not all of which were planned: a description, not a verdict" in text
        for claim in (
            "written down before any run",
            "each run carries it",
            "decided before any run",
            "ends better than",
        ):
            assert claim not in text


def test_runs_without_a_plan_are_reported_as_a_description(tmp_path: Path) -> None:
    write_matrix(tmp_path, planned(2), rows=40)
    (tmp_path / "plan.json").unlink()
    text = html(tmp_path)
    assert "There is no plan.json beside these runs" in text
    assert "coordrl.compare" not in text


@pytest.mark.parametrize(
    "changes",
    [
        {"seeds": 1},
        {"seeds": 2, "extractors": ["coord"]},
        pytest.param({"seeds": 2, "extractors": ["nature", "coord", "shuffled", "coord-all"]}, marks=pytest.mark.slow),
        {"seeds": 2, "agents": ["a2c", "dqn"]},
        {"seeds": 1, "extractors": ["nature"], "steps": 2000},  # no game is finished
    ],
    ids=["one seed", "one arm", "four arms", "two agents", "no game"],
)
def test_matrices_of_any_shape_are_reported(changes: dict[str, Any], tmp_path: Path) -> None:
    plan = planned(**changes)
    write_matrix(tmp_path, plan, rows=30)
    whole = page(tmp_path)
    tags = Tags(whole.texts["report.html"])
    assert tags.open == []
    assert max(Counter(tags.ids).values()) == 1
    assert {target.removeprefix("#") for target in tags.targets} <= set(tags.ids)
    assert not re.search(r"\bnan\b|None", re.sub(r"<svg.*?</svg>", "", whole.texts["report.html"], flags=re.DOTALL))
    assert {f"curves-{agent}" for agent in plan.agents} <= set(whole.charts)


def test_what_a_run_folder_says_is_shown_as_text_and_never_as_markup(tmp_path: Path) -> None:
    plan = planned(1)
    write_matrix(tmp_path, plan, rows=30, states={plan.runs[0].folder: "diverged"})
    folder = plan.runs[0].path(tmp_path)
    for name, key in (("diverged.json", "sign"), ("run.json", "versions")):
        data = json.loads((folder / name).read_text())
        data[key] = "<script>alert(1)</script>" if key == "sign" else {"torch": "<img src=x onerror=alert(1)>"}
        write_json(folder / name, data)
    text = html(tmp_path)
    assert "<script" not in text
    assert "<img src=x" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_damaged_maps_are_one_clear_error(tmp_path: Path) -> None:
    write_matrix(tmp_path, planned(1), rows=30)
    file = next(tmp_path.rglob("maps-000000000000.npy"))
    file.write_bytes(b"nonsense")
    with pytest.raises(RequestError, match=r"maps-000000000000\.npy cannot be read"):
        page(tmp_path)


def test_a_wrong_request_is_one_clear_line_and_exit_code_2(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words, complaint in (
        ([], "RUNS"),
        ([str(tmp_path / "nowhere")], "there is no folder"),
        ([str(tmp_path / "empty")], "holds no runs and no plan.json"),
        ([str(runs), "--only", "curve-a2c"], 'there is no figure "curve-a2c"; did you mean curves-a2c'),
    ):
        done = command(*words, "--out", str(tmp_path / "out"))
        assert done.returncode == 2
        assert complaint in done.stderr
        assert done.stderr.count("\n") == 1
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "out").exists()


def test_an_out_that_cannot_be_written_exits_with_73(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main([str(runs), "--only", "profile-a2c", "--out", str(tmp_path / "file")]) == 73
    assert "file cannot be written: File exists" in capsys.readouterr().err


@pytest.mark.slow
def test_360_runs_of_10_million_steps_are_reported_within_a_minute_and_a_gigabyte(tmp_path: Path) -> None:
    plan = make_plan("atari9", ["a2c", "dqn"], ["nature", "coord"], 10, 10_000_000)
    write_matrix(tmp_path / "runs", plan)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.monotonic()
    # The peak is read in the process itself: RUSAGE_CHILDREN knows that of the largest child of all tests alone.
    code = (
        "import sys; from pathlib import Path; from coordrl.report import main; code = main(sys.argv[1:]);"
        " print(Path('/proc/self/status').read_text()); sys.exit(code)"
    )
    words = [sys.executable, "-c", code, str(tmp_path / "runs"), "--out", str(tmp_path / "report")]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=600)
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 60, f"{used:.0f} s of processor time, {seconds:.0f} s in all"  # other work must not fail the test
    peak = int(re.search(r"VmHWM:\s+(\d+) kB", done.stdout).group(1))
    print(f"{seconds:.1f} s, {used:.1f} s of processor time, {peak:,} KiB")
    assert peak < 1_000_000


@pytest.mark.parametrize("change", ["alpha", "references"])
def test_a_plan_with_numbers_that_are_none_is_one_clear_line(
    change: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs, tmp_path / "runs")
    file = tmp_path / "runs" / "plan.json"
    plan = json.loads(file.read_text())
    plan[change] = {"alpha": math.nan, "references": {"Pong": [0, 10**400]}}[change]
    file.write_text(json.dumps(plan))
    assert main([str(tmp_path / "runs")]) == 2
    said = capsys.readouterr().err
    assert "cannot be read" in said
    assert said.count("\n") == 1


def test_files_that_are_pipes_or_links_are_neither_waited_for_nor_written_through(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, victim = tmp_path / "runs", tmp_path / "victim"
    shutil.copytree(runs, copy)
    victim.write_text("precious")
    for name in ("report.html", "figures/profile-a2c.png"):
        (copy / "report" / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / "report" / name).symlink_to(victim)
    (copy / "report" / "mine").symlink_to(victim)  # nothing that is written
    log = next(copy.rglob("progress.jsonl"))
    log.unlink()
    os.mkfifo(log)
    attempts = copy / "compare" / "attempts.jsonl"
    attempts.parent.mkdir(exist_ok=True)
    attempts.write_text('{"cell": "a", "attempt": 1e999}\n')
    assert main([str(copy)]) == 0, capsys.readouterr().err
    assert victim.read_text() == "precious"
    assert (copy / "report" / "mine").is_symlink()
    assert (copy / "report" / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    "data",
    [
        b"PK\x03\x04",
        array_bytes(np.zeros((0, 3, 3), np.float32)),
        array_bytes(np.zeros((2, 3, 3), np.int64)),
        b"\x93NUMPY\x01\x00\x76\x00"
        + b"{'descr': '<f4', 'fortran_order': False, 'shape': (1048576, 2048, 2048), }".ljust(117)
        + b"\n",
    ],
)
def test_maps_that_are_none_are_one_clear_error(data: bytes, tmp_path: Path) -> None:
    write_matrix(tmp_path, planned(1), rows=30)
    next(tmp_path.rglob("maps-000000000000.npy")).write_bytes(data)
    with pytest.raises(RequestError, match=r"maps-000000000000\.npy cannot be read"):
        page(tmp_path)


def test_names_that_are_no_utf_8_are_written_as_far_as_they_can_be(runs: Path, tmp_path: Path) -> None:
    strange = tmp_path / os.fsdecode(b"r\xff")
    shutil.copytree(runs, strange)
    assert main([str(strange), "--note", os.fsdecode(b"x\xff")]) == 0
    assert (strange / "report" / "report.html").read_text(encoding="utf-8")
