"""Trigger recovery: which target, how small a trigger, how strong can it get. Knows nothing of methods."""

from unbackdoor.recover._families import FAMILIES, Additive, Family, Patch
from unbackdoor.recover._search import Minimal, minimal_triggers, strengthen
from unbackdoor.recover._triggers import Recovered
from unbackdoor.recover._verdict import Finding, Verdict, examine

__all__ = [
    "FAMILIES",
    "Additive",
    "Family",
    "Finding",
    "Minimal",
    "Patch",
    "Recovered",
    "Verdict",
    "examine",
    "minimal_triggers",
    "strengthen",
]
