"""The bench: grids of victims × methods × clean images × draws, one record a cell, tables and plots."""

from __future__ import annotations

from unbackdoor.bench.cell import run_cell
from unbackdoor.bench.grid import Grid, load_grid
from unbackdoor.bench.records import read_records
from unbackdoor.bench.rerun import rerun
from unbackdoor.bench.run import run_grid
from unbackdoor.bench.table import summarise

__all__ = ["Grid", "load_grid", "read_records", "rerun", "run_cell", "run_grid", "summarise"]
