"""What a command shows: tables, notes and a progress bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table

from unbackdoor import Report
from unbackdoor._evaluate import Metrics
from unbackdoor.methods import Progress

console = Console()
errors = Console(stderr=True)

LOW_ACCURACY = 0.5


def percent(share: float) -> str:
    """Return a share in [0, 1] as a percentage with one decimal.

    >>> percent(0.123)
    '12.3 %'
    """
    return f"{100 * share:.1f} %"


def note(text: str) -> None:
    """Tell something beside the result, on stderr."""
    errors.print(f"[dim]{escape(text)}[/]", highlight=False, soft_wrap=True)


def warn(text: str) -> None:
    """Tell something that the user should look at, on stderr."""
    errors.print(f"[yellow]warning:[/] {escape(text)}", highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[Progress], None]]:
    """Show a bar on stderr while the block runs; gives the listener that moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=errors, transient=True) as bar:
        task = bar.add_task(title, total=None)

        def listen(tick: Progress) -> None:
            values = " ".join(f"{name} {value:.3g}" for name, value in tick.values.items())
            described = escape(f"{title}: {tick.phase} {values}".rstrip())
            bar.update(task, completed=tick.step, total=tick.total, description=described)

        yield listen


def show_report(report: Report) -> None:
    """Show what a purification did: a line a figure, then a line a layer that changed."""
    facts = {
        "method": report.method,
        "clean images": f"{report.num_images} of {report.num_classes} classes, seed {report.seed}",
        "clean accuracy on them before": percent(report.accuracy_before),
        "clean accuracy on them after": percent(report.accuracy_after),
        "seconds": f"{report.seconds:.1f}",
        **_scalars(report.details),
    }
    console.print(facts_table("Purification", facts))
    if report.changed:
        console.print(_layer_table(report))
    else:
        note("no weight was changed")
    if report.accuracy_before < LOW_ACCURACY:
        warn(
            f"before, only {percent(report.accuracy_before)} of the clean images got their label; "
            "check --mean/--std, the order of the classes and the labels"
        )


def show_metrics(title: str, columns: Mapping[str, Metrics]) -> None:
    """Show ACC, ASR and RA, one column a network."""
    rows = {
        "ACC (clean accuracy)": "acc",
        "ACC of the target's images": "acc_target",
        "ASR (without target-class images)": "asr",
        "RA (triggered, true label)": "ra",
        "ASR of no trigger (ordinary errors)": "asr_untriggered",
        "ASR with target-class images": "asr_with_target",
    }
    table = Table("", *columns, title=title, title_justify="left")
    for name, field in rows.items():
        values = [getattr(metrics, field) for metrics in columns.values()]
        table.add_row(name, *("–" if value is None else percent(value) for value in values))
    console.print(table)


def facts_table(title: str, facts: Mapping[str, object]) -> Table:
    """Return a table of names and values."""
    table = Table(title=title, title_justify="left", show_header=False)
    for name, value in facts.items():
        table.add_row(escape(name), escape(str(value)))
    return table


def _layer_table(report: Report) -> Table:
    """Return a line a changed tensor; ``mask`` is the mean of the method's mask on it, where it tells one."""
    told = report.details.get("mask_mean")
    masks = told if isinstance(told, Mapping) else {}
    table = Table(title="Weights that changed, by layer", title_justify="left")
    table.add_column("tensor", overflow="fold")
    for name in ("values", "changed", "halved", "distance", *(["mask"] if masks else [])):
        table.add_column(name, justify="right")
    for layer in (layer for layer in report.layers if layer.changed):
        row = [f"{layer.size:,}", percent(layer.changed), percent(layer.masked), f"{layer.distance:.3f}"]
        mean = [f"{masks[layer.name]:.3f}" if layer.name in masks else ""] if masks else []
        table.add_row(escape(layer.name), *row, *mean)
    table.caption = "halved: share that lost half its size or more; distance: relative change in the 2-norm"
    table.caption_justify = "left"
    return table


def _scalars(details: Mapping[str, Any]) -> dict[str, object]:
    """Return what fits on a line; the rest is in the JSON record."""
    plain = {name: value for name, value in details.items() if isinstance(value, str | bool | int | float)}
    return {
        name.replace("_", " "): f"{value:.4g}" if isinstance(value, float) else value
        for name, value in plain.items()
    }
