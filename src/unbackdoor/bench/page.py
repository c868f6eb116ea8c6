"""The results page: tables and plots from records, as one Markdown file."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unbackdoor._files import writing
from unbackdoor.bench.formats import markdown
from unbackdoor.bench.plots import write_plots
from unbackdoor.bench.table import is_clean, summarise

Record = Mapping[str, Any]

CAPTIONS = {
    "acc_asr_plane": "ASR against the accuracy that was lost. Large marks are means over victims, small ones "
    "single victims.",
    "asr_by_images": "ASR and ACC against the number of clean images a class, mean over victims; the band is "
    "the spread over draws.",
    "reactivation": "ASR while the purified model is retuned on a few poisoned samples, mean over victims "
    "and draws.",
}


def write_page(records: Sequence[Record], path: Path, images: Path, command: str) -> Path:
    """Write the page and its plots.

    Args:
        records: of one or several grids.
        path: the Markdown file; its folder must exist.
        images: folder for the plots.
        command: what was run, told at the top of the page.
    """
    plots = write_plots(records, images)
    parts = [_head(records, command), *_pooled(records), *(_picture(plot, path) for plot in plots)]
    parts += [*_by_victim(records), *_failures(records)]
    with writing(path) as part:
        part.write_text("\n\n".join(piece.strip() for piece in parts) + "\n", encoding="utf-8")
    return path


def _head(records: Sequence[Record], command: str) -> str:
    done = [record for record in records if record["status"] == "done"]
    dates = sorted(record["finished"][:10] for record in done)
    facts = {
        "records": f"{len(records)}, of them {len(records) - len(done)} failed; {dates[0]} to {dates[-1]}",
        "versions": _said(", ".join(f"{k} {v}" for k, v in sorted(r["versions"].items())) for r in done),
        "commits": _said(
            f"{(r['commit'] or 'unknown')[:10]}{' (changed)' if r['dirty'] else ''}" for r in done
        ),
        "machines": _said(
            f"{r['machine']['processor']}, {r['device']}, {r['threads']} thread(s) a cell" for r in done
        ),
    }
    lines = [f"- {name}: {value}" for name, value in facts.items()]
    return "\n".join(
        [
            "# Results",
            "",
            f"Made by `{command}`; do not edit by hand.",
            "",
            "Clean images are drawn from the training split, metrics are of the whole test split. ASR and RA "
            "leave out images of the target class. No method sees a trigger, a target label or a test image. "
            "Rows `(before)` are the victims as they came. Memory is what the purification needed beside the "
            "loaded model and data. `unbackdoor bench rerun RECORD.json` runs any cell again and compares.",
            "",
            *lines,
        ]
    )


def _pooled(records: Sequence[Record]) -> list[str]:
    """Return one table a data set, over all its victims with a backdoor, and one of the clean models."""
    parts = []
    for name, group in _split(records, with_trigger=True):
        parts.append(f"## {name}: all victims\n\n{markdown(summarise(group, ('images', 'method')))}")
    for name, group in _split(records, with_trigger=False):
        parts.append(
            f"## {name}: clean models\n\n{markdown(summarise(group, ('victim', 'images', 'method')))}"
        )
    return parts


def _by_victim(records: Sequence[Record]) -> list[str]:
    groups = _split(records, with_trigger=True)
    return [f"## {name}: each victim\n\n{markdown(summarise(group))}" for name, group in groups]


def _failures(records: Sequence[Record]) -> list[str]:
    failed = [record for record in records if record["status"] == "failed"]
    if not failed:
        return []
    lines = [f"- {_place(record['cell'])}: {record['error'].splitlines()[0]}" for record in failed]
    return ["## Failed cells\n\n" + "\n".join(lines)]


def _split(records: Iterable[Record], *, with_trigger: bool) -> list[tuple[str, list[Record]]]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        if is_clean(record) != with_trigger:
            groups.setdefault(record["cell"]["victim"]["data"]["name"], []).append(record)
    return sorted(groups.items())


def _picture(plot: Path, page: Path) -> str:
    caption = CAPTIONS[plot.stem]
    return f"![{caption}]({Path(os.path.relpath(plot, page.parent)).as_posix()})\n\n*{caption}*"


def _place(cell: Mapping[str, Any]) -> str:
    victim, method = cell["victim"]["name"], cell["method"]["label"]
    return f"{victim}, {method}, {cell['per_class']} a class, draw {cell['draw']}"


def _said(values: Iterable[str]) -> str:
    return "; ".join(sorted(set(values)))
