"""Trigger recovery: which target, how small a trigger, how strong can it get. Knows nothing of methods."""

from unbackdoor.recover._families import (
    FAMILIES,
    Additive,
    Family,
    Patch,
    SizedFamily,
    Smooth,
    Warp,
)
from unbackdoor.recover._features import Features, Shifts, features_at
from unbackdoor.recover._findings import Finding, Verdict, picture_to
from unbackdoor.recover._noise import noises
from unbackdoor.recover._pictures import Picture
from unbackdoor.recover._search import Minimal, margin, minimal_triggers, strengthen
from unbackdoor.recover._stripes import Stripes
from unbackdoor.recover._strokes import Strokes
from unbackdoor.recover._textures import CLEAR, answers_under
from unbackdoor.recover._triggers import Displacement, Overlay, Recovered, Sinusoids, Waves, apply_random
from unbackdoor.recover._verdict import examine
from unbackdoor.recover._windows import Window

__all__ = [
    "CLEAR",
    "FAMILIES",
    "Additive",
    "Displacement",
    "Family",
    "Features",
    "Finding",
    "Minimal",
    "Overlay",
    "Patch",
    "Picture",
    "Recovered",
    "Shifts",
    "Sinusoids",
    "SizedFamily",
    "Smooth",
    "Stripes",
    "Strokes",
    "Verdict",
    "Warp",
    "Waves",
    "Window",
    "answers_under",
    "apply_random",
    "examine",
    "features_at",
    "margin",
    "minimal_triggers",
    "noises",
    "picture_to",
    "strengthen",
]
