"""Is there a backdoor, and to which class? A target is a class that is far too easy to reach."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unbackdoor._clean import CleanImages
from unbackdoor.recover._families import FAMILIES, Family
from unbackdoor.recover._search import Minimal, minimal_triggers

SMALL = 0.45
"""A target's minimal trigger is at most this share of the median class's."""
SMALL_OF_FINALISTS = 0.55
"""The same where the median is that of the finalists, the easiest of many classes."""
GAP = 0.62
"""… and at most this share of the next larger one's: a target stands apart, similar classes do not."""
MOST_TARGETS = 3
FINALISTS = 10


@dataclass(frozen=True)
class Finding:
    """One class that one family of triggers reaches too easily.

    Attributes:
        target: the class; family: the family; size: of its minimal trigger.
        median: size of the median class among those searched to the end; ratio: size / median.
        params: the minimal trigger, in the family's parameters (K = 1).
    """

    target: int
    family: Family
    size: float
    median: float
    params: list[torch.Tensor]

    @property
    def ratio(self) -> float:
        return self.size / self.median

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values, for a report."""
        values = {"target": self.target, "family": self.family.name, "size": self.size}
        return values | {"median": self.median, "ratio": self.ratio}


@dataclass(frozen=True)
class Verdict:
    """The findings, and the sizes they were drawn from: {family: {class: size}}, finalists only."""

    findings: tuple[Finding, ...]
    sizes: dict[str, dict[int, float]]

    @property
    def backdoored(self) -> bool:
        return bool(self.findings)

    def sentence(self) -> str:
        """Return the verdict in words, one clause a finding."""
        clauses = [
            f"class {f.target} ({f.family.name} trigger of size {f.size:.2f}, median class {f.median:.2f})"
            for f in self.findings
        ]
        return "found, to " + " and ".join(clauses) if clauses else "none found: no class stands apart"

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values, for a report."""
        sizes = {name: {str(c): s for c, s in found.items()} for name, found in self.sizes.items()}
        return {
            "backdoored": self.backdoored,
            "findings": [f.to_dict() for f in self.findings],
            "minimal_sizes": sizes,
        }


def examine(
    model: nn.Module,
    clean: CleanImages,
    generator: torch.Generator,
    *,
    families: Sequence[Family] = FAMILIES,
    steps: int = 75,
    batch: int = 5,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Verdict:
    """Search minimal triggers of every class in every family and name the classes that stand apart.

    Args:
        model: in eval mode; its parameters need no gradient.
        clean: the defender's images.
        generator: the only source of randomness.
        families: spaces of triggers, searched one after the other.
        steps: Adam steps a family; batch: images a step and class.
        tell: called with (families done, families in all).

    Returns:
        The verdict. With fewer than four classes there is nothing to stand apart from: no finding.

    References:
        Wang et al., *Neural Cleanse*, S&P 2019. Differs: a gap to the next class beside the ratio to the
        median in place of the MAD index alone, which on ten classes is mostly noise; additive triggers beside
        patches.
    """
    findings: list[Finding] = []
    sizes: dict[str, dict[int, float]] = {}
    for done, family in enumerate(families, start=1):
        minimal = _tournament(model, clean, family, generator, steps, batch)
        sizes[family.name] = dict(zip(minimal.classes.tolist(), minimal.sizes.tolist(), strict=True))
        share = SMALL if len(minimal.classes) == clean.num_classes else SMALL_OF_FINALISTS
        findings += _apart(minimal, family, share)
        tell(done, len(families))
    return Verdict(tuple(findings), sizes)


def _tournament(
    model: nn.Module, clean: CleanImages, family: Family, generator: torch.Generator, steps: int, batch: int
) -> Minimal:
    """Search all classes half-way, and only those with the smallest triggers to the end, and longer."""
    classes = torch.arange(clean.num_classes, device=clean.labels.device)
    heats = steps if len(classes) <= FINALISTS else (steps + 1) // 2
    minimal = minimal_triggers(model, clean, family, classes, generator, steps=heats, batch=batch)
    if heats == steps:
        return minimal
    finalists = minimal.rows(minimal.sizes.argsort()[:FINALISTS].sort().values)
    rest = 2 * steps // 3
    return minimal_triggers(
        model, clean, family, finalists.classes, generator, steps=rest, batch=batch, warm=finalists
    )


def _apart(minimal: Minimal, family: Family, share: float) -> list[Finding]:
    """Return the findings: the classes before the first gap, if at most ``share`` of the median."""
    if len(minimal.classes) < 4:
        return []
    order = minimal.sizes.argsort()
    sizes, median = minimal.sizes[order], minimal.sizes.median().item()
    for last in range(min(MOST_TARGETS, len(order) - 1)):
        small = sizes[last].item() <= share * median
        if small and sizes[last].item() <= GAP * sizes[last + 1].item():
            return [_finding(minimal, row, family, median) for row in order[: last + 1].tolist()]
    return []


def _finding(minimal: Minimal, row: int, family: Family, median: float) -> Finding:
    size = minimal.sizes[row].item()
    return Finding(int(minimal.classes[row]), family, size, median, minimal.of(row))
