"""Tables written out: for the terminal, as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

from rich.console import Console
from rich.table import Table as RichTable

from unbackdoor.bench.table import COLUMNS, Column, Figure, Table

CAPTION = (
    "Mean ± standard deviation over draws (worst). ACC on the whole test split; ASR and RA on triggered "
    "images of other classes than the target."
)

LATEX = {"%": r"\%", "&": r"\&", "_": r"\_", "#": r"\#", "±": r"$\pm$", "α": r"$\alpha$", "β": r"$\beta$"}
LATEX |= {"γ": r"$\gamma$", "τ": r"$\tau$", "–": "--", "→": r"$\to$"}


def text_table(table: Table, title: str = "") -> RichTable:
    """Return the table for the terminal."""
    shown = RichTable(title=title, caption=CAPTION, header_style="bold")
    for head in table.keys:
        shown.add_column(head)
    for head in _heads(table)[len(table.keys) :]:
        shown.add_column(head, justify="right")
    for cells in _cells(table):
        shown.add_row(*cells)
    return shown


def markdown(table: Table) -> str:
    """Return the table in Markdown, with the caption below."""
    heads = _heads(table)
    ruler = ["---"] * len(table.keys) + ["---:"] * (len(heads) - len(table.keys))
    lines = [heads, ruler, *([cell.replace("|", "\\|") for cell in cells] for cells in _cells(table))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{CAPTION}\n"


def comma_separated(table: Table) -> str:
    """Return the table as CSV: numbers only, mean, spread and worst in columns of their own."""
    parts = ("mean", "spread", "worst")
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        [*table.keys, "records", "failed", *(f"{column.key}_{part}" for column in COLUMNS for part in parts)]
    )
    for row in table.rows:
        values = [getattr(figure, part, None) for figure in row.figures for part in parts]
        writer.writerow(
            [*row.keys, row.count, row.failed, *("" if v is None else f"{v:.6g}" for v in values)]
        )
    return out.getvalue()


def latex(table: Table) -> str:
    """Return the table as LaTeX for the package booktabs."""
    lines = [" & ".join(map(_escape, cells)) + r" \\" for cells in (_heads(table), *_cells(table))]
    columns = "l" * len(table.keys) + "r" * (len(_heads(table)) - len(table.keys))
    head, *body = lines
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def terminal(table: Table) -> str:
    """Return the table as plain text, as wide as it needs."""
    console = Console(file=io.StringIO(), width=200, color_system=None)
    console.print(text_table(table))
    return console.file.getvalue()  # type: ignore[attr-defined]


FORMATS: dict[str, Callable[[Table], str]] = {
    "text": terminal,
    "markdown": markdown,
    "csv": comma_separated,
    "latex": latex,
}


def _heads(table: Table) -> list[str]:
    return [*table.keys, "records", *(column.title for column in COLUMNS)]


def _cells(table: Table) -> list[list[str]]:
    rows = []
    for row in table.rows:
        figures = [_shown(c, f) for c, f in zip(COLUMNS, row.figures, strict=True)]
        rows.append([*row.keys, f"{row.count}" + (f" ({row.failed} failed)" if row.failed else ""), *figures])
    return rows


def _shown(column: Column, figure: Figure | None) -> str:
    if figure is None:
        return "–"
    mean = f"{figure.mean:.{column.digits}f}"
    if figure.spread is None:
        one = round(figure.worst, column.digits) == round(figure.mean, column.digits)
        return mean if one else f"{mean} ({figure.worst:.{column.digits}f})"
    return f"{mean} ± {figure.spread:.{column.digits}f} ({figure.worst:.{column.digits}f})"


def _escape(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)
