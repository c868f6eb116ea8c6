"""``unbackdoor bench``: run a grid, and make tables, plots and pages of its records."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from typer.core import TyperGroup

from unbackdoor._files import write_json, writing
from unbackdoor.bench.formats import FORMATS
from unbackdoor.bench.grid import load_grid
from unbackdoor.bench.page import write_page
from unbackdoor.bench.places import find_root
from unbackdoor.bench.plots import write_plots
from unbackdoor.bench.records import read_record, read_records, record_name
from unbackdoor.bench.rerun import Difference, rerun
from unbackdoor.bench.run import Outcome, Tick, make_plan, run_grid
from unbackdoor.bench.table import DEFAULT_KEYS, KEYS, summarise
from unbackdoor.cli import _show

SOME_FAILED = 1
DIFFERENT = 1
INTERRUPTED = 130


class _RunByDefault(TyperGroup):
    """``bench GRID.toml`` is ``bench run GRID.toml``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {*self.commands, "-h", "--help"}
        return super().parse_args(ctx, args if not args or args[0] in known else ["run", *args])


app = typer.Typer(
    cls=_RunByDefault,
    no_args_is_help=True,
    help="Run grids of victims, methods and draws: bench GRID.toml; tables and plots of the records.",
)

Format = StrEnum("Format", list(FORMATS))
Results = Annotated[
    list[Path],
    typer.Argument(help="Records, folders of records, or grids (their own cells).", show_default=False),
]
DEFAULT_BY = ",".join(DEFAULT_KEYS)

By = Annotated[str, typer.Option(help=f"What tells rows apart, of: {', '.join(KEYS)}.")]


@app.command("run")
def run(
    grid: Annotated[Path, typer.Argument(help="The grid, a TOML file.", show_default=False)],
    jobs: Annotated[
        int, typer.Option(min=0, help="Cells at the same time, each in its own process; 0: in this one.")
    ] = 1,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of a cell; without it, the cores are divided.")
    ] = None,
    device: Annotated[str, typer.Option(help="A torch device for all cells: cpu, cuda, cuda:1, …")] = "cpu",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed cells again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would run, and run nothing.")] = False,
) -> None:
    """Run the cells of GRID that have no record yet.

    Exit codes: 0 done, 1 some cells failed, 2 bad input, 130 interrupted.
    """
    cells = load_grid(grid)
    plan = make_plan(cells, retry_failed=retry_failed)
    _show.note(f"{cells.name}: {len(plan.todo)} cells to run, {len(plan.done)} done before; {cells.results}")
    for name, why in plan.skipped.items():
        _show.warn(f"{name} is skipped: {why}")
    if dry_run:
        return
    try:
        with _bar(cells.name) as progress:
            outcome = run_grid(
                cells, jobs=jobs, threads=threads, device=device, retry_failed=retry_failed, progress=progress
            )
    except KeyboardInterrupt:
        _show.note(
            "interrupted; finished cells have their records, and the same command goes on with the rest"
        )
        raise typer.Exit(INTERRUPTED) from None
    _finish(outcome)


@app.command("table")
def table(
    results: Results,
    format_: Annotated[Format, typer.Option("--format", help="How it is written.")] = Format["text"],
    by: By = DEFAULT_BY,
    out: Annotated[Path | None, typer.Option(help="Write it here and not to the terminal.")] = None,
) -> None:
    """Show ACC, ASR, RA, DER, seconds and memory: mean ± spread over draws, and the worst."""
    text = FORMATS[format_.name](summarise(_records(results), [key.strip() for key in by.split(",")]))
    if out is None:
        typer.echo(text, nl=False)
        return
    with writing(out) as part:
        part.write_text(text, encoding="utf-8")


@app.command("plot")
def plot(
    results: Results,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("plots"),
) -> None:
    """Draw the ACC–ASR plane, ASR against clean images, and ASR against steps of retuning."""
    for path in write_plots(_records(results), out):
        _show.note(str(path))


@app.command("page")
def page(
    results: Results,
    out: Annotated[Path, typer.Option(help="The Markdown file.")] = Path("docs/results.md"),
    images: Annotated[
        Path | None, typer.Option(help="Folder for the plots; by default beside the page.")
    ] = None,
) -> None:
    """Write the results page: tables and plots of the records."""
    command = shlex.join(["unbackdoor", *sys.argv[1:]])
    write_page(_records(results), out, images or out.parent / "images" / out.stem, command)
    _show.note(str(out))


@app.command("rerun")
def again(
    record: Annotated[Path, typer.Argument(help="A record of a cell.", show_default=False)],
    out: Annotated[Path | None, typer.Option(help="Write the new record here.")] = None,
) -> None:
    """Run the cell of RECORD again and compare. Exit codes: 0 the same figures, 1 others, 2 bad input."""
    result = rerun(read_record(record), find_root(record.parent))
    if out is not None:
        write_json(out, result.record)
    _tell("another circumstance", result.circumstances)
    if not result.figures:
        after = {k: v for k, v in result.record.get("after", {}).items() if k in ("acc", "asr", "ra")}
        _show.console.print(f"the same figures: {escape(str(after))}", highlight=False)
        return
    _tell("another figure", result.figures)
    raise typer.Exit(DIFFERENT)


def _records(paths: list[Path]) -> list[dict[str, Any]]:
    """Read records; of a grid, those of its own cells, in its order and with its labels."""
    plain = [path for path in paths if path.suffix != ".toml"]
    found = read_records(plain) if plain else []
    for path in (path for path in paths if path.suffix == ".toml"):
        grid = load_grid(path)
        by_name = {record_name(record["cell"]): record for record in read_records([grid.results])}
        names = {record_name(cell): cell for cell in grid.cells}
        found += [{**by_name[name], "cell": cell} for name, cell in names.items() if name in by_name]
    return list({record_name(record["cell"]): record for record in found}.values())


@contextmanager
def _bar(title: str) -> Iterator[Any]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[left]}"), console=_show.errors) as bar:
        task = bar.add_task(escape(title), total=None, left="")

        def listen(tick: Tick) -> None:
            left = "" if tick.seconds_left is None else f"{timedelta(seconds=round(tick.seconds_left))} left"
            bar.update(task, completed=tick.finished, total=tick.total, left=left)
            if tick.record is not None:
                bar.console.print(_line(tick.record), highlight=False, soft_wrap=True)

        yield listen


def _line(record: dict[str, Any]) -> str:
    cell = record["cell"]
    victim, method = cell["victim"]["name"], cell["method"]["label"]
    place = f"{victim}  {method}  {cell['per_class']} a class  draw {cell['draw']}"
    if record["status"] == "failed":
        return f"[red]failed[/]  {escape(place)}  {escape(record['error'].splitlines()[0])}"
    names = ("acc", "asr", "ra")
    figures = [f"{k.upper()} {100 * record['after'][k]:.1f}" for k in names if record["after"][k] is not None]
    return escape(f"{place}  {'  '.join(figures)}  {record['seconds']:.1f} s")


def _finish(outcome: Outcome) -> None:
    failed = outcome.failed
    _show.note(f"{len(outcome.records)} cells run, {len(failed)} of the grid failed")
    if failed:
        _show.note("run failed cells again with --retry-failed; their errors are in the records")
        raise typer.Exit(SOME_FAILED)


def _tell(title: str, differences: tuple[Difference, ...]) -> None:
    for difference in differences:
        _show.note(f"{title}: {difference.place} was {difference.old}, is {difference.new}")
