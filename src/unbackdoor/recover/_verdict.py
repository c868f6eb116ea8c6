"""Is there a backdoor, and to which class? A goal is suspicious if it is far too easy to reach.

Goals are the classes, and beside them the label map "every class to the one after it" of all-to-all backdoors.
"""

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
REACHED = 0.5
"""Share of images that a minimal trigger must move to count as one. A search that has not got there yet
tells a size that is still growing; it serves as a lower bound for the classes compared with."""
MOST_TARGETS = 3
FINALISTS = 10
HEAT = 0.3
"""Share of the steps after which the finalists are picked."""


@dataclass(frozen=True)
class Finding:
    """One goal that one family of triggers reaches too easily.

    Attributes:
        goal: the target class, or the number of classes for "every class to the one after it".
        all_to_all: whether it is the latter.
        family: the family; size: of its minimal trigger.
        median: size of the median class among those searched to the end; ratio: size / median.
        params: the minimal trigger, in the family's parameters (K = 1).
    """

    goal: int
    all_to_all: bool
    family: Family
    size: float
    median: float
    params: list[torch.Tensor]

    @property
    def target(self) -> int | None:
        """The target class; ``None`` for all-to-all."""
        return None if self.all_to_all else self.goal

    @property
    def ratio(self) -> float:
        return self.size / self.median

    def sentence(self) -> str:
        """Return the finding in words."""
        goal = "every class to the next one" if self.all_to_all else f"class {self.goal}"
        return f"{goal} ({self.family.name} trigger of size {self.size:.2f}, median class {self.median:.2f})"

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values, for a report."""
        values = {"target": self.target, "all_to_all": self.all_to_all, "family": self.family.name}
        return values | {"size": self.size, "median": self.median, "ratio": self.ratio}


@dataclass(frozen=True)
class Verdict:
    """The findings, and the sizes they were drawn from: {family: {goal: size}}, finalists only."""

    findings: tuple[Finding, ...]
    sizes: dict[str, dict[int, float]]

    @property
    def backdoored(self) -> bool:
        return bool(self.findings)

    def sentence(self) -> str:
        """Return the verdict in words, one clause a finding."""
        clauses = [finding.sentence() for finding in self.findings]
        return "found, to " + " and ".join(clauses) if clauses else "none found: no class stands apart"

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values, for a report."""
        sizes = {name: {str(g): s for g, s in found.items()} for name, found in self.sizes.items()}
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
    """Search minimal triggers of every goal in every family and name the goals that stand apart.

    Args:
        model: in eval mode; its parameters need no gradient.
        clean: the defender's images.
        generator: the only source of randomness.
        families: spaces of triggers, searched one after the other.
        steps: Adam steps a family; batch: images a step and goal.
        tell: called with (families done, families in all).

    Returns:
        The verdict. With fewer than four classes there is nothing to stand apart from: no finding.

    References:
        Wang et al., *Neural Cleanse*, S&P 2019. Differs: a gap to the next class beside the ratio to the
        median in place of the MAD index alone, which on ten classes is mostly noise; additive triggers and
        warps beside patches; all-to-all beside single targets.
    """
    findings: list[Finding] = []
    sizes: dict[str, dict[int, float]] = {}
    for done, family in enumerate(families, start=1):
        minimal = _tournament(model, clean, family, generator, steps, batch)
        sizes[family.name] = dict(zip(minimal.goals.tolist(), minimal.sizes.tolist(), strict=True))
        findings += _apart(minimal, family, clean.num_classes)
        tell(done, len(families))
    return Verdict(tuple(findings), sizes)


def _tournament(
    model: nn.Module, clean: CleanImages, family: Family, generator: torch.Generator, steps: int, batch: int
) -> Minimal:
    """Search all goals for a while, and only those with the smallest triggers to the end."""
    goals = torch.arange(clean.num_classes + 1, device=clean.labels.device)
    few = clean.num_classes <= FINALISTS
    heat = steps if few else max(1, round(HEAT * steps))
    minimal = minimal_triggers(model, clean, family, goals, generator, steps=heat, batch=batch)
    if few:
        return minimal
    best = minimal.sizes[:-1].argsort()[:FINALISTS].sort().values
    finalists = minimal.rows(torch.cat([best, goals[-1:]]))
    return minimal_triggers(
        model, clean, family, finalists.goals, generator, steps=steps - heat, batch=batch, warm=finalists
    )


def _apart(minimal: Minimal, family: Family, num_classes: int) -> list[Finding]:
    """Return the findings: all-to-all if that is easier than any class, else the classes that stand apart."""
    if num_classes < 4:
        return []
    shift, sizes = minimal.rows(slice(-1, None)), minimal.sizes[:-1]
    share = SMALL if len(sizes) == num_classes else SMALL_OF_FINALISTS
    median = sizes.median().item()
    reached = minimal.success >= REACHED
    limit = min(share * median, GAP * sizes.min().item())
    if reached[-1] and shift.sizes.item() <= limit:
        return [_finding(minimal, len(sizes), family, median, num_classes)]
    rows = _first_gap(sizes, reached[:-1], share * median)
    return [_finding(minimal, row, family, median, num_classes) for row in rows]


def _first_gap(sizes: torch.Tensor, reached: torch.Tensor, limit: float) -> list[int]:
    """Return the rows before the first gap among the smallest, if all are reached and within ``limit``."""
    order = sizes.argsort().tolist()
    for last in range(min(MOST_TARGETS, len(order) - 1)):
        size = sizes[order[last]].item()
        if size > limit or not reached[order[last]]:
            return []
        if size <= GAP * sizes[order[last + 1]].item():
            return order[: last + 1]
    return []


def _finding(minimal: Minimal, row: int, family: Family, median: float, num_classes: int) -> Finding:
    goal = int(minimal.goals[row])
    size = minimal.sizes[row].item()
    return Finding(goal, goal == num_classes, family, size, median, minimal.of(row))
