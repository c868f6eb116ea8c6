"""The TOML files of a grid: what may stand in them, and the victims and methods that they name."""

from __future__ import annotations

import fnmatch
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unbackdoor._errors import UnbackdoorError

METHOD_KEYS = ("name", "label", "fields", "sweep", "for_data")
RECORDED = {"key", "trigger", "labels"}
"""What the record beside a checkpoint tells, or the grid together with ``arch``; never a part of each."""
VICTIM_KEYS = (
    "name",
    "checkpoint",
    "arch",
    "key",
    "sha256",
    "data",
    "trigger",
    "labels",
    "attack_of",
    "note",
    "source",
)
DATA_KEYS = ("name", "loader", "args", "needs")
VICTIM_FILE_KEYS = ("data", "victim")


def methods_of(table: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """Return the [[method]] tables of a grid and of the files that it names."""
    found = list(table.get("method", []))
    for name in table.get("methods", []):
        file = path.parent / name
        content = read_toml(file)
        check_keys(content, ("method",), f"methods {file.name}")
        found += content.get("method", [])
    need({"method": found}, ("method",), f"grid {path.name}")
    return found


def victims_of(table: Mapping[str, Any], path: Path) -> list[dict[str, Any]]:
    """Return the [[victim]] tables of a grid and of the files that it names, those that it keeps."""
    found = _victim_tables(table, f"grid {path.name}")
    for name in table.get("victims", []):
        file = path.parent / name
        content = read_toml(file)
        check_keys(content, VICTIM_FILE_KEYS, f"victims {file.name}")
        found += _victim_tables(content, f"victims {file.name}")
    patterns = table.get("only", ["*"])
    kept = [v for v in found if any(fnmatch.fnmatch(v["name"], pattern) for pattern in patterns)]
    if not kept:
        names = ", ".join(v["name"] for v in found) or "none"
        raise UnbackdoorError(
            "the grid has no victim", value=f"only = {patterns}", fix=f"victims there: {names}"
        )
    return kept


def _victim_tables(table: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the [[victim]] tables with the data set's own table in place of its name."""
    data = {name: {"name": name, **values} for name, values in table.get("data", {}).items()}
    for name, entry in data.items():
        check_keys(entry, DATA_KEYS, f"[data.{name}] of {where}")
    victims = []
    for victim in table.get("victim", []):
        check_keys(victim, VICTIM_KEYS, f"[[victim]] of {where}")
        need(victim, ("name", "checkpoint", "data"), f"[[victim]] of {where}")
        for key in sorted(RECORDED & victim.keys()):
            need(victim, ("arch",), f"[[victim]] {victim['name']} of {where}, which has {key!r},")
        if "attack_of" in victim and (RECORDED - {"key"}) & victim.keys():
            raise UnbackdoorError(
                f"victim {victim['name']} of {where} has two attacks",
                value="trigger or labels beside attack_of",
                fix="keep one of them",
            )
        if victim["data"] not in data:
            known = ", ".join(data) or "none"
            raise UnbackdoorError(
                f"victim {victim['name']} names a data set that {where} does not have",
                value=victim["data"],
                fix=f"add [data.{victim['data']}], or use one of: {known}",
            )
        victims.append({**victim, "data": data[victim["data"]]})
    return victims


def check_keys(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Refuse keys that nothing reads."""
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise UnbackdoorError(
            f"unknown key in {where}", value=", ".join(unknown), fix=f"use: {', '.join(known)}"
        )


def need(table: Mapping[str, Any], keys: Iterable[str], where: str) -> None:
    """Refuse a table that lacks a key."""
    missing = [key for key in keys if not table.get(key)]
    if missing:
        raise UnbackdoorError(
            f"missing in {where}",
            value=", ".join(missing),
            fix=f"add: {missing[0]} = …, see unbackdoor.bench.grid",
        )


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        UnbackdoorError: no such file, or not TOML.
    """
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise UnbackdoorError(
            f"cannot read: {error.strerror}", value=path, fix="give the path of a TOML file"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise UnbackdoorError(
            f"not TOML: {error}", value=path, fix="see benchmarks/grids for examples"
        ) from error
