"""``unbackdoor zoo``: the named set of victims, built and listed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from unbackdoor._errors import UnbackdoorError
from unbackdoor.bench.places import find_root
from unbackdoor.cli import _open, _options, _show
from unbackdoor.victims import (
    HEADS,
    NAMED,
    NEEDS_GPU,
    TEXT_COLUMNS,
    build_named,
    named_spec,
    read_victim_record,
    record_path,
    victim_row,
    victims_markdown,
    zoo_folder,
)

RECORDS = Path("benchmarks/results/victims")

app = typer.Typer(help="A named set of victims: many attacks, networks and data sets.", no_args_is_help=True)

Folder = Annotated[
    Path | None, typer.Option(help="Where the checkpoints lie: $UNBACKDOOR_ZOO or benchmarks/zoo without it.")
]


@app.command("build")
def build(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Victims to build; the whole set without any, on a CPU less those that take hours there.",
            show_default=False,
        ),
    ] = None,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder with the data sets; $UNBACKDOOR_DATA or ./data without it.")
    ] = None,
    out: Folder = None,
    records: Annotated[Path | None, typer.Option(help="Copy every record into this folder, too.")] = None,
    device: _options.Device = "auto",
) -> None:
    """Build the named set, or some of it; what is there already is kept, what was stopped goes on."""
    for name in names or []:
        named_spec(name)
    folder, where = out or zoo_folder(), _open.pick_device(device)
    failed = []
    for name in names or _all_for(where.type):
        try:
            with _show.progress_bar(name) as listen:
                record, built = build_named(name, folder, data_root=data_root, device=where, progress=listen)
        except UnbackdoorError as error:
            _show.warn(f"{name}: {error}")
            failed.append(name)
            continue
        _show.note(f"{name}: {'built' if built else 'there already'}, {_figures(record)}")
        if records is not None:
            records.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(record_path(folder / name), records / f"{name}.json")
    if failed:
        raise UnbackdoorError(
            f"{len(failed)} victims could not be built", value=", ".join(failed), fix="see the warnings above"
        )


@app.command("list")
def list_(
    out: Folder = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print those that are built as a Markdown table.")
    ] = False,
) -> None:
    """List the named set: what each victim is, and ACC and ASR from its record."""
    found = _records((out or zoo_folder(), find_root(Path.cwd()) / RECORDS))
    if markdown:
        typer.echo(victims_markdown(found))
        return
    table = Table(*HEADS, title="Victims", title_justify="left")
    table.columns[0].no_wrap = True
    for column in table.columns[TEXT_COLUMNS:]:
        column.justify = "right"
    for name in [*NAMED, *sorted(set(found) - set(NAMED))]:
        table.add_row(*(victim_row(name, found[name]) if name in found else _unbuilt(name)))
    _show.console.print(table)
    missing = [name for name in NAMED if name not in found]
    if missing:
        _show.note(f"{len(missing)} not built yet: unbackdoor zoo build")


def _all_for(device_type: str) -> list[str]:
    """Return the whole set, on a CPU without the victims that take hours there."""
    if device_type != "cpu":
        return list(NAMED)
    left_out = ", ".join(name for name in NAMED if name in NEEDS_GPU)
    _show.note(f"left out, hours on a CPU each (name one to build it all the same): {left_out}")
    return [name for name in NAMED if name not in NEEDS_GPU]


def _records(folders: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return the victims' records by name, in the named set's order; the first folder that has one counts."""
    found: dict[str, dict[str, Any]] = {}
    for file in (file for folder in folders for file in sorted(folder.glob("*.json"))):
        try:
            found.setdefault(file.stem, read_victim_record(file))
        except UnbackdoorError as error:
            _show.warn(str(error))
    return {name: found[name] for name in [*NAMED, *sorted(set(found) - set(NAMED))] if name in found}


def _unbuilt(name: str) -> tuple[str, ...]:
    return name, NAMED[name].attack or "none", "not built"


def _figures(record: dict[str, Any]) -> str:
    metrics = record["metrics"]
    asr = f", ASR {_show.percent(metrics['asr'])}" if "asr" in metrics else ""
    return f"ACC {_show.percent(metrics['acc'])}{asr}"
