"""coordrl report: what a comparison's runs say, as a page that anyone can open, with its figures and numbers."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from coordrl.console import OptionalName, parse_arguments, run_command
from coordrl.errors import OutputError, RequestError, suggest
from coordrl.files import check_no_link, write_json

if TYPE_CHECKING:
    from coordrl.charts import Chart
    from coordrl.tables import Table

_FILES = "files.json"  # in the report's folder: what it is made of


@dataclass(frozen=True)
class ReportArguments:
    """Report what the runs of a comparison show.

    For example:
        coordrl report runs                          everything, into runs/report
        coordrl report runs --out docs/atari         elsewhere
        coordrl report runs --only curves-a2c        one figure and its numbers alone

    Writes report.html, which needs no network and no other file, report.md, figures/ as SVG and PNG, and every
    number as CSV in tables/. Reads run folders alone, wherever they were copied to; nothing in them changes. What an
    earlier report wrote into the same folder is replaced. If runs are missing, the report says so at its top.
    """

    runs: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="RUNS")]]
    """the folder that compare or train wrote to"""
    out: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: RUNS/report)")] = None
    """the folder to write to"""
    note: OptionalName = ""
    """a sentence at the top of the report, for example what the runs are too short to show"""
    only: OptionalName = ""
    """one figure by its name, as the report gives it"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    return run_command(lambda: _report(parse_arguments(ReportArguments, "report", words)))


def _report(arguments: ReportArguments) -> int:
    """Read, compute, draw and write."""
    if not arguments.runs.is_dir():
        raise RequestError(f"there is no folder {arguments.runs}; give the one that compare or train wrote to")
    from coordrl.evidence import read_evidence  # numpy, scipy, matplotlib: a second to import
    from coordrl.findings import find
    from coordrl.page import Page

    findings = find(read_evidence(arguments.runs))
    out = arguments.out or arguments.runs / "report"
    if arguments.out is None:
        check_no_link(arguments.runs, Path("report"))
    page = Page(findings, runs=arguments.runs.as_posix(), out=out.as_posix(), note=arguments.note)
    if arguments.only:
        chart = page.charts.get(arguments.only)
        if chart is None:
            hint = suggest(arguments.only, page.charts) or f"; there are {', '.join(page.charts)}"
            raise RequestError(f'there is no figure "{arguments.only}"{hint}')
        _write(out, {chart.name: chart}, {chart.name: chart.table}, {}, {})
        print(f"wrote {out}/figures/{chart.name}.svg, .png and {out}/tables/{chart.name}.csv")
        return 0
    _write(out, page.charts, page.tables, page.pictures, page.texts)
    _keep_only(out, {*page.texts, *_names(page.charts, page.tables, page.pictures)})
    for line in page.summary:
        print(line)
    print(f"wrote {out}/report.html, report.md, figures/ and tables/")
    return 0


def _names(charts: Iterable[str], tables: Iterable[str], pictures: Iterable[str]) -> list[str]:
    """Name the files of figures and tables, with their folders."""
    figures = [f"figures/{name}.{kind}" for name in charts for kind in ("svg", "png")]
    return [*figures, *(f"figures/{name}.png" for name in pictures), *(f"tables/{name}.csv" for name in tables)]


def _keep_only(out: Path, written: set[str]) -> None:
    """Remove what the last report listed and this one has not: figures of another comparison would mislead."""
    try:
        names = json.loads((out / _FILES).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        names = []
    write_json(out / _FILES, sorted(written))
    for name in names if isinstance(names, list) else []:
        # A list that somebody changed is no licence to remove anything else.
        if (
            isinstance(name, str)
            and name not in written
            and re.fullmatch(r"report\.(html|md)|(figures|tables)/[\w.-]+\.(svg|png|csv)", name)
        ):
            (out / name).unlink(missing_ok=True)


def _write(
    out: Path,
    charts: Mapping[str, Chart],
    tables: Mapping[str, Table],
    pictures: Mapping[str, bytes],
    texts: Mapping[str, str],
) -> None:
    """Write all files of a report.

    Raises:
        OutputError: the folder cannot be written.
    """
    from coordrl.figures import save_figure

    try:
        for folder in (out, out / "figures", out / "tables"):
            if folder != out and folder.is_symlink():
                raise OutputError(f"{folder} is a link, which may lead anywhere; remove it, or choose another --out")
            folder.mkdir(parents=True, exist_ok=True)
        for name in (*texts, *_names(charts, tables, pictures)):
            if (out / name).is_symlink():  # to write through it would change what it leads to
                (out / name).unlink()
        for chart in charts.values():
            save_figure(chart.panels, chart.columns, chart.legend, out / "figures" / chart.name)
        for name, data in pictures.items():
            (out / "figures" / f"{name}.png").write_bytes(data)
        for name, table in tables.items():
            table_file = out / "tables" / f"{name}.csv"
            with table_file.open("w", encoding="utf-8", errors="replace", newline="") as file:
                csv.writer(file).writerows([table.header, *table.rows])
        for name, text in texts.items():
            (out / name).write_text(text, encoding="utf-8", errors="replace")  # names of files need not be UTF-8
    except OSError as error:
        raise OutputError(f"{out} cannot be written: {error.strerror or error}. Choose another --out") from error


if __name__ == "__main__":
    sys.exit(main())
