"""Backdoored networks to measure a defence on: specification, building, records, and a named set."""

from __future__ import annotations

from unbackdoor.victims._architecture import Architecture
from unbackdoor.victims._build import build_named, build_victim, named_spec, zoo_folder
from unbackdoor.victims._load import SavedVictim, load_victim, read_attack, read_victim_record
from unbackdoor.victims._named import NAMED, NEEDS_GPU
from unbackdoor.victims._record import check_suffix, record_path, save_victim
from unbackdoor.victims._spec import VictimSpec, default_recipe
from unbackdoor.victims._table import HEADS, TEXT_COLUMNS, victim_row, victims_markdown

__all__ = [
    "HEADS",
    "NAMED",
    "NEEDS_GPU",
    "TEXT_COLUMNS",
    "Architecture",
    "SavedVictim",
    "VictimSpec",
    "build_named",
    "build_victim",
    "check_suffix",
    "default_recipe",
    "load_victim",
    "named_spec",
    "read_attack",
    "read_victim_record",
    "record_path",
    "save_victim",
    "victim_row",
    "victims_markdown",
    "zoo_folder",
]
