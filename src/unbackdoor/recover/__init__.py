"""Trigger recovery: which target, how small a trigger, how strong can it get. Knows nothing of methods."""

from unbackdoor.recover._families import FAMILIES, Additive, Family, Patch, SizedFamily, Smooth, Warp
from unbackdoor.recover._search import Minimal, minimal_triggers, strengthen
from unbackdoor.recover._stripes import Stripes
from unbackdoor.recover._strokes import Strokes
from unbackdoor.recover._triggers import Displacement, Overlay, Recovered, Sinusoids, Waves, apply_random
from unbackdoor.recover._verdict import Finding, Verdict, examine

__all__ = [
    "FAMILIES",
    "Additive",
    "Displacement",
    "Family",
    "Finding",
    "Minimal",
    "Overlay",
    "Patch",
    "Recovered",
    "Sinusoids",
    "SizedFamily",
    "Smooth",
    "Stripes",
    "Strokes",
    "Verdict",
    "Warp",
    "Waves",
    "apply_random",
    "examine",
    "minimal_triggers",
    "strengthen",
]
