"""Grids: a TOML file that names victims × methods × clean images a class × draws, expanded into cells.

A cell is a nested dict of plain values and holds everything that decides its figures::

    {"victim": {"name", "checkpoint", "arch", "data", "trigger", "labels", …},
     "method": {"name", "label", "fields"},
     "per_class": 1, "draw": 0, "reactivation": None}

A grid::

    name = "main_cifar10"
    results = "../results/main"            # below the grid's folder; default ../results/<name>
    victims = ["../victims/shared.toml"]   # files of [[victim]] and [data.…] tables; also inline
    methods = ["../methods/all.toml"]      # files of [[method]] tables; also inline
    only = ["badnets*", "clean*"]          # names to keep, default all
    per_class = [1, 10]
    draws = [0, 1, 2, 3, 4]

    [data.cifar10]                         # what a [[victim]] names as its data; here or in victims' files
    loader = "unbackdoor.data:load"        # or file.py:function; returns (TrainSplit, TestSplit)
    args = {name_or_path = "cifar10"}
    needs = "data/cifar-10-batches-py"     # optional: without it the victim is skipped

    [[victim]]
    name = "badnets"
    checkpoint = "{shared}/models/a.pth"   # places in braces: places.py
    arch = "small_vgg"                     # without it, the record beside the checkpoint says the rest
    data = "cifar10"
    trigger = {name = "badnets", size = 4} # none: a clean model
    labels = {target = 8}                  # or {name = "all-to-all"}
    # attack_of = "{zoo}/b.safetensors"    # instead of both: the attack of another victim that we trained

    [[method]]
    name = "awm"
    label = "AWM (official, α 0.99)"
    fields = {variant = "official"}
    sweep = {alpha = [0.8, 0.9, 0.99]}     # one method for every combination
    for_data.gtsrb = {augment = false}     # other fields on one data set

    [reactivation]                         # optional: retune what was purified, see reactivate.py
    num_poisoned = 20
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unbackdoor.bench.grid_file import METHOD_KEYS, check_keys, methods_of, need, read_toml, victims_of
from unbackdoor.bench.places import find_root
from unbackdoor.bench.reactivate import Reactivation
from unbackdoor.bench.records import plain, record_name
from unbackdoor.methods import Method, get_method

Cell = dict[str, Any]

SAME = " = "
"""Between the labels of a cell that several methods of a grid ask for."""

GRID_KEYS = (
    "name",
    "results",
    "victims",
    "victim",
    "data",
    "methods",
    "only",
    "per_class",
    "draws",
    "method",
    "reactivation",
)


@dataclass(frozen=True)
class Grid:
    """A grid read from a file.

    Attributes:
        name: for the progress display.
        cells: in the order in which they run.
        results: folder of the records.
        root: folder that the cells' relative paths start from.
    """

    name: str
    cells: tuple[Cell, ...]
    results: Path
    root: Path


def load_grid(path: Path) -> Grid:
    """Read a grid and check it: names of methods and their fields, victims, unknown keys.

    Raises:
        UnbackdoorError: what is wrong, in which file.
    """
    table = read_toml(path)
    check_keys(table, GRID_KEYS, f"grid {path.name}")
    methods = methods_of(table, path)
    victims = victims_of(table, path)
    reactivation = _reactivation(table.get("reactivation"))
    name = table.get("name", path.stem)
    cells = expand(victims, methods, table.get("per_class", [1]), table.get("draws", [0]), reactivation)
    results = (path.parent / table.get("results", f"../results/{name}")).resolve()
    return Grid(name, _unique(cells), results, find_root(path.parent))


def expand(
    victims: Iterable[Mapping[str, Any]],
    methods: Iterable[Mapping[str, Any]],
    per_class: Iterable[int],
    draws: Iterable[int],
    reactivation: Mapping[str, Any] | None = None,
) -> list[Cell]:
    """Return the cells, draws outermost, so that a half-finished grid has every method and victim."""
    entries = [entry for method in methods for entry in _sweep(method)]
    product = itertools.product(list(draws), list(per_class), list(victims), entries)
    return [_cell(victim, entry, count, draw, reactivation) for draw, count, victim, entry in product]


def method_of(entry: Mapping[str, Any]) -> Method:
    """Return the method object of a cell's ``method`` entry."""
    return get_method(entry["name"], **{key: _frozen(value) for key, value in entry["fields"].items()})


def _cell(
    victim: Mapping[str, Any],
    entry: Mapping[str, Any],
    per_class: int,
    draw: int,
    reactivation: Mapping[str, Any] | None,
) -> Cell:
    fields = {**entry.get("fields", {}), **entry.get("for_data", {}).get(victim["data"]["name"], {})}
    method = {"name": entry["name"], "fields": fields}
    full = plain(method_of(method).fields())
    return plain(
        {
            "victim": victim,
            "method": {"name": entry["name"], "label": entry["label"], "fields": full},
            "per_class": per_class,
            "draw": draw,
            "reactivation": reactivation,
        }
    )


def _sweep(method: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one entry for every combination of the swept fields, named in the label."""
    check_keys(method, METHOD_KEYS, "[[method]]")
    need(method, ("name",), "[[method]]")
    swept = method.get("sweep", {})
    label, fields = method.get("label", method["name"]), method.get("fields", {})
    entries = []
    for values in itertools.product(*swept.values()):
        chosen = dict(zip(swept, values, strict=True))
        named = ", ".join(f"{key}={value}" for key, value in chosen.items())
        entries.append({**method, "label": f"{label} {named}".strip(), "fields": {**fields, **chosen}})
    return entries


def _reactivation(table: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if table is None:
        return None
    check_keys(table, [field.name for field in dataclasses.fields(Reactivation)], "[reactivation]")
    return dataclasses.asdict(Reactivation(**{key: _frozen(value) for key, value in table.items()}))


def _unique(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Return each cell once; one that several methods ask for, as the middle of sweeps, has all labels."""
    found: dict[str, Cell] = {}
    for cell in cells:
        first = found.setdefault(record_name(cell), cell)
        known, label = first["method"]["label"], cell["method"]["label"]
        if label not in known.split(SAME):
            found[record_name(cell)] = {**first, "method": {**first["method"], "label": known + SAME + label}}
    return tuple(found.values())


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
