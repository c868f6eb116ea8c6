"""Records: one JSON a cell, written atomically, with a readable name that ends in a hash of the cell."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from unbackdoor._errors import UnbackdoorError
from unbackdoor._files import write_json
from unbackdoor.methods import METHODS

FORMAT = 1
"""Version of the record's layout; a reader refuses newer ones."""

HASH_LENGTH = 12


def plain(value: Any) -> Any:
    """Return ``value`` as JSON has it: tuples become lists, keys become text.

    >>> plain({"steps": (1, 2)})
    {'steps': [1, 2]}
    """
    return json.loads(json.dumps(value))


def digest(value: Any) -> str:
    """Return a SHA-256 of plain values that does not depend on the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def cell_hash(cell: Mapping[str, Any]) -> str:
    """Return the hash that names a cell: of everything that decides its figures, and of no label or note.

    Of the method's fields those count that are not at their default, so that a field which a later version
    adds leaves the names as they are.
    """
    victim = {key: value for key, value in cell["victim"].items() if key not in ("note", "source")}
    name, fields = cell["method"]["name"], cell["method"]["fields"]
    usual = _defaults(name)
    changed = {key: value for key, value in fields.items() if key not in usual or usual[key] != value}
    return digest({**cell, "victim": victim, "method": [name, changed]})[:HASH_LENGTH]


def record_name(cell: Mapping[str, Any]) -> str:
    """Return the file name of a cell's record.

    >>> cell = {"victim": {"name": "v"}, "method": {"name": "awm", "fields": {}}, "per_class": 1, "draw": 0}
    >>> record_name(cell)[:12]
    'v-awm-n1-d0-'
    """
    readable = f"{cell['victim']['name']}-{cell['method']['name']}-n{cell['per_class']}-d{cell['draw']}"
    return f"{slug(readable)}-{cell_hash(cell)}.json"


@lru_cache
def _defaults(name: str) -> dict[str, Any]:
    """Return a method's default fields; none for a method that this version does not have."""
    return plain(METHODS[name]().fields()) if name in METHODS else {}


def slug(text: str) -> str:
    """Return ``text`` as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text)


def write_record(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write a record into ``folder`` under the name of its cell."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / record_name(record["cell"])
    write_json(path, record)
    return path


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UnbackdoorError: no such file, or no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnbackdoorError(
            f"the record cannot be read: {error}", value=path, fix="delete the file and run its grid again"
        ) from error


def read_record(path: Path) -> dict[str, Any]:
    """Read one record.

    Raises:
        UnbackdoorError: no such file, no JSON, or no record of a layout that this version knows.
    """
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT or "cell" not in record:
        raise UnbackdoorError(
            "not a record of this version of the bench",
            value=path,
            fix="give files made by: unbackdoor bench",
        )
    return record


def read_records(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Read the records in files and folders (``*.json`` directly inside), sorted by name, each cell once.

    Raises:
        UnbackdoorError: no record there, or one that cannot be read.
    """
    paths = list(paths)
    records: dict[str, dict[str, Any]] = {}
    for path in _files(paths):
        record = read_record(path)
        records.setdefault(record_name(record["cell"]), record)
    if not records:
        raise UnbackdoorError(
            "no record found",
            value=", ".join(map(str, paths)),
            fix="run a grid first: unbackdoor bench GRID.toml",
        )
    return [records[name] for name in sorted(records)]


def _files(paths: Iterable[Path]) -> Iterator[Path]:
    for path in paths:
        yield from sorted(path.glob("*.json")) if path.is_dir() else [path]
