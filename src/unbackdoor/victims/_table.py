"""Victims as a table, from their records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEADS = ("victim", "attack", "labels", "poisoned", "epochs", "seconds", "ACC", "ASR", "RA")
TEXT_COLUMNS = 3
"""Columns of words, aligned left; the others are numbers."""


def victim_row(name: str, record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the cells of one victim, as ``HEADS`` names them; a clean model has no attack's figures.

    Args:
        name: what to call it.
        record: as ``read_victim_record`` returns it. The epochs of a victim that started from a clean model
            are told as "+ 2"; the seconds are those of its own training.
    """
    attack, metrics = record["attack"], record["metrics"]
    epochs = f"{'+ ' if record.get('start') else ''}{record['recipe']['epochs']}"
    figures = tuple(_percent(metrics.get(key)) for key in ("acc", "asr", "ra"))
    said = ("none", "", "") if attack is None else (attack["name"], _labels(attack), _share(record))
    return (name, *said, epochs, f"{record['seconds']:.0f}", *figures)


def victims_markdown(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the victims of ``records``, by name, as a Markdown table.

    >>> print(victims_markdown({}))
    | victim | attack | labels | poisoned | epochs | seconds | ACC | ASR | RA |
    | --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |
    """
    ruler = ["---"] * TEXT_COLUMNS + ["---:"] * (len(HEADS) - TEXT_COLUMNS)
    rows = [HEADS, ruler, *(victim_row(name, record) for name, record in records.items())]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _labels(attack: Mapping[str, Any]) -> str:
    return "clean-label" if attack["clean_label"] else attack["label_map"]["name"]


def _share(record: Mapping[str, Any]) -> str:
    return f"{100 * record['attack']['num_poisoned'] / record['data']['num_train']:.1f} %"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
