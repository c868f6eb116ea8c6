"""Tables from records: mean ± spread over draws, and the worst."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from unbackdoor._errors import unknown_name

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """One figure of a table.

    Attributes:
        key: name in CSV; ``title``: in the head of the other formats.
        value: record -> figure, or ``None`` where the record has none.
        worst: which of several figures is the worst.
        scale: factor from the record's unit to the shown one.
        digits: decimals shown.
    """

    key: str
    title: str
    value: Callable[[Record], float | None]
    worst: Callable[[Iterable[float]], float]
    scale: float = 100.0
    digits: int = 1


@dataclass(frozen=True)
class Figure:
    """Mean over all records, spread over draws, and the worst single record, in the column's unit.

    The spread is the sample standard deviation over draws of the mean over what else is pooled in the row
    (victims); ``None`` for a single draw.
    """

    mean: float
    spread: float | None
    worst: float


@dataclass(frozen=True)
class Row:
    """One row: what it stands for, how many records are in it and failed beside it, and its figures."""

    keys: tuple[str, ...]
    count: int
    failed: int
    figures: tuple[Figure | None, ...]


def _metric(stage: str, name: str) -> Callable[[Record], float | None]:
    return lambda record: record[stage].get(name) if record.get(stage) else None


def _memory(record: Record) -> float | None:
    """Return what the purification needed beside what was there when it started."""
    return record["peak_memory"] - record["memory_at_start"] if "peak_memory" in record else None


COLUMNS = (
    Column("acc", "ACC %", _metric("after", "acc"), min),
    Column("asr", "ASR %", _metric("after", "asr"), max),
    Column("ra", "RA %", _metric("after", "ra"), min),
    Column("der", "DER %", _metric("after", "der"), min),
    Column("seconds", "seconds", lambda record: record.get("seconds"), max, scale=1),
    Column("memory", "memory MiB", _memory, max, scale=2**-20, digits=0),
)


def is_clean(record: Record) -> bool:
    """Tell whether the record is of a model without a backdoor, as far as a failed one tells."""
    if record["status"] == "done":
        return record["before"]["asr"] is None
    victim = record["cell"]["victim"]
    return "arch" in victim and "trigger" not in victim


def _fact(record: Record, name: str) -> str:
    """Return what a finished record tells of its victim; a failed one has only what the grid said."""
    victim = record["cell"]["victim"]
    known = {"arch": victim.get("arch"), "attack": victim.get("trigger", {}).get("name")}
    return record.get("victim", known)[name] or "–"


KEYS: dict[str, Callable[[Record], Any]] = {
    "victim": lambda record: record["cell"]["victim"]["name"],
    "data": lambda record: record["cell"]["victim"]["data"]["name"],
    "arch": lambda record: _fact(record, "arch"),
    "attack": lambda record: _fact(record, "attack"),
    "images": lambda record: record["cell"]["per_class"],
    "method": lambda record: record["cell"]["method"]["label"],
    "draw": lambda record: record["cell"]["draw"],
}
"""What the rows of a table can be told apart by."""

DEFAULT_KEYS = ("victim", "images", "method")
BEFORE = "(before)"


@dataclass(frozen=True)
class Table:
    """Rows under a head, ready to be written, see ``formats.py``."""

    keys: tuple[str, ...]
    rows: tuple[Row, ...]


def summarise(records: Iterable[Record], by: Sequence[str] = DEFAULT_KEYS) -> Table:
    """Gather records into rows, with a row of the victim before purification where rows tell methods apart.

    Args:
        records: of one or several grids.
        by: keys of ``KEYS``.

    Raises:
        UnbackdoorError: unknown key.
    """
    for key in by:
        if key not in KEYS:
            raise unknown_name("key of a table", key, list(KEYS))
    records = [dict(record) for record in records]
    if "method" in by:
        records = _before(records) + records
    groups: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records:
        groups[tuple(KEYS[key](record) for key in by)].append(record)
    order = _order(groups, by)
    return Table(tuple(by), tuple(_row(group, groups[group]) for group in order))


def _before(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return one record a victim and image count that tells of the victim itself."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for record in records:
        if record["status"] != "done":
            continue
        method = {"name": BEFORE, "label": BEFORE, "fields": {}}
        cell = {**record["cell"], "method": method, "draw": 0}
        place = (KEYS["victim"](record), KEYS["images"](record))
        own = {key: record[key] for key in ("status", "victim", "before")}
        found.setdefault(place, {**own, "cell": cell, "after": record["before"]})
    return list(found.values())


def _order(groups: Mapping[tuple[Any, ...], Any], by: Sequence[str]) -> list[tuple[Any, ...]]:
    """Sort by every key but methods, which keep the order of first appearance, the victim itself first."""
    appearance: dict[str, dict[Any, int]] = {key: {} for key in by}
    for group in groups:
        for key, value in zip(by, group, strict=True):
            appearance[key].setdefault(value, len(appearance[key]))

    def rank(group: tuple[Any, ...]) -> tuple[Any, ...]:
        pairs = zip(by, group, strict=True)
        return tuple(appearance[key][value] if key == "method" else value for key, value in pairs)

    return sorted(groups, key=rank)


def _row(keys: tuple[Any, ...], records: Sequence[Record]) -> Row:
    done = [record for record in records if record["status"] == "done"]
    figures = tuple(_figure(column, done) for column in COLUMNS)
    return Row(tuple(map(str, keys)), len(done), len(records) - len(done), figures)


def _figure(column: Column, records: Sequence[Record]) -> Figure | None:
    by_draw: dict[Any, list[float]] = defaultdict(list)
    for record in records:
        value = column.value(record)
        if value is not None:
            by_draw[KEYS["draw"](record)].append(value * column.scale)
    values = [value for drawn in by_draw.values() for value in drawn]
    if not values:
        return None
    means = [statistics.fmean(drawn) for drawn in by_draw.values()]
    spread = statistics.stdev(means) if len(means) > 1 else None
    return Figure(statistics.fmean(values), spread, column.worst(values))
