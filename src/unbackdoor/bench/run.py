"""Run a grid: what has a record is not repeated, what fails is recorded, what lacks its files is skipped."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unbackdoor.bench.cell import failure, measure_before, run_cell
from unbackdoor.bench.grid import Cell, Grid
from unbackdoor.bench.places import locate
from unbackdoor.bench.records import FORMAT, digest, read_record, record_name, write_record
from unbackdoor.bench.victims import file_hash, missing_file
from unbackdoor.bench.workers import available_cores, run_tasks

VICTIMS = "victims"
"""Folder below the results with the metrics of the victims before purification."""


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        todo: cells without a record.
        done: records that are already there.
        skipped: victim's name -> why its cells cannot run here.
    """

    todo: tuple[Cell, ...]
    done: tuple[dict[str, Any], ...]
    skipped: dict[str, str]


@dataclass(frozen=True)
class Tick:
    """``finished`` of ``total`` cells, the last record, seconds left (``None``: not known)."""

    finished: int
    total: int
    record: dict[str, Any] | None
    seconds_left: float | None


@dataclass
class Outcome:
    """What a run did: records made by it, and those that were there before."""

    plan: Plan
    records: list[dict[str, Any]] = field(default_factory=list)

    @property
    def failed(self) -> list[dict[str, Any]]:
        """Return all failed records of the grid, old and new."""
        return [record for record in (*self.plan.done, *self.records) if record["status"] == "failed"]


def make_plan(grid: Grid, *, retry_failed: bool = False) -> Plan:
    """Look at the results folder and decide what is left to do.

    A record of another checkpoint than the one that lies there now, or of other defaults of the method,
    counts as not done.

    Args:
        grid: the grid.
        retry_failed: count failed records as not done.
    """
    todo, done, skipped = [], [], {}
    victims = {digest(cell["victim"]): cell["victim"] for cell in grid.cells}
    absent = {key: missing_file(victim, grid.root) for key, victim in victims.items()}
    hashes = {key: _hash_of(victim, grid.root) for key, victim in victims.items()}
    for cell in grid.cells:
        key = digest(cell["victim"])
        record = _record_of(cell, grid.results)
        if record is not None and not _outdated(record, cell, hashes[key], retry_failed):
            done.append(record)
        elif (why := absent[key]) is not None:
            skipped[cell["victim"]["name"]] = why
        else:
            todo.append(cell)
    return Plan(tuple(todo), tuple(done), skipped)


def run_grid(
    grid: Grid,
    *,
    jobs: int = 1,
    threads: int | None = None,
    device: str = "cpu",
    retry_failed: bool = False,
    progress: Callable[[Tick], None] | None = None,
) -> Outcome:
    """Run the cells of ``grid`` that have no record yet and write one record each.

    Args:
        grid: the grid.
        jobs: processes, each with its own cell; 0 runs in this process.
        threads: of each process; ``None`` divides the cores that are there.
        device: a torch device for all cells.
        retry_failed: run failed cells again.
        progress: called before the first cell and after every cell.
    """
    plan = make_plan(grid, retry_failed=retry_failed)
    outcome = Outcome(plan)
    threads = threads or max(1, available_cores() // max(1, jobs))
    clock = Clock(plan, max(1, jobs))
    tell = progress or (lambda tick: None)
    total = len(plan.todo)
    tell(Tick(0, total, None, clock.seconds_left()))
    for record in _run(plan, grid, jobs, threads, device):
        write_record(grid.results, record)
        outcome.records.append(record)
        clock.add(record)
        tell(Tick(len(outcome.records), total, record, clock.seconds_left()))
    return outcome


class Clock:
    """Time left, from the seconds that cells of the same method, victim and number of images took so far."""

    def __init__(self, plan: Plan, jobs: int):
        self.jobs = jobs
        self.left = [_kind(cell) for cell in plan.todo]
        self.seconds: dict[Any, list[float]] = defaultdict(list)
        for record in plan.done:
            self._note(record)

    def add(self, record: dict[str, Any]) -> None:
        """Count one finished cell."""
        self.left.remove(_kind(record["cell"]))
        self._note(record)

    def seconds_left(self) -> float | None:
        """Return the estimate, or ``None`` before anything is known."""
        known = [second for seconds in self.seconds.values() for second in seconds]
        if not known:
            return None
        typical = statistics.fmean(known)
        means = {kind: statistics.fmean(seconds) for kind, seconds in self.seconds.items()}
        return sum(means.get(kind, typical) for kind in self.left) / self.jobs

    def _note(self, record: dict[str, Any]) -> None:
        if record["status"] == "done":
            self.seconds[_kind(record["cell"])].append(record["wall_seconds"])


def _kind(cell: Cell) -> tuple[str, ...]:
    return (cell["method"]["label"], cell["victim"]["name"], cell["per_class"])


def _run(plan: Plan, grid: Grid, jobs: int, threads: int, device: str) -> Iterator[dict[str, Any]]:
    """Measure every victim once, then run the cells; a cell whose process dies becomes a failed record."""
    cache = str(grid.results / VICTIMS)
    options = {"root": str(grid.root), "device": device, "cache": cache}
    victims = {digest(cell["victim"]): cell["victim"] for cell in plan.todo}
    if jobs > 1:  # with one process the first cell of a victim does it
        _exhaust(run_tasks(((measure_before, (v,), options) for v in victims.values()), jobs, threads))
    for index, result in run_tasks(((run_cell, (cell,), options) for cell in plan.todo), jobs, threads):
        yield result if isinstance(result, dict) else _failed(plan.todo[index], result)


def _failed(cell: Cell, error: BaseException) -> dict[str, Any]:
    return {"format": FORMAT, "status": "failed", "cell": cell, **failure(error), "wall_seconds": 0.0}


def _hash_of(victim: dict[str, Any], root: Path) -> str | None:
    path = locate(victim["checkpoint"], root)
    return file_hash(path) if path.is_file() else None


def _outdated(record: dict[str, Any], cell: Cell, sha256: str | None, retry_failed: bool) -> bool:
    now = cell["method"]["fields"]
    if any(key not in now or now[key] != value for key, value in record["cell"]["method"]["fields"].items()):
        return True
    if record["status"] == "failed":
        return retry_failed
    return sha256 is not None and record["victim"]["sha256"] != sha256


def _record_of(cell: Cell, results: Path) -> dict[str, Any] | None:
    path = results / record_name(cell)
    return read_record(path) if path.exists() else None


def _exhaust(results: Iterable[Any]) -> None:
    for _ in results:
        pass
