"""Is there a backdoor, and to which class? A goal is suspicious if it is far too easy to reach.

Goals are the classes, and beside them the label map of all-to-all backdoors, "every class to the next".

A faint trigger over the whole image may need no less than chance finds for any class: its minimal size tells
nothing. But with a backdoor the margin grows on and on; so where no size stands apart, the margins that an
ample budget allows are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from unbackdoor._clean import CleanImages
from unbackdoor.recover._families import FAMILIES, Additive, Family
from unbackdoor.recover._search import Minimal, measure, minimal_triggers, strengthen

SMALL = 0.45
"""A target's minimal trigger is at most this share of the median class's."""
SMALL_OF_FINALISTS = 0.55
"""The same where the median is that of the finalists, the easiest of many classes."""
GAP = 0.62
"""… and at most this share of the next larger one's: a target stands apart, similar classes do not."""
REACHED = 0.5
"""Share of images that a minimal trigger must move to count as one. A search that has not got there yet
tells a size that is still growing; it serves as a lower bound for the classes compared with."""
SHIFTED = 0.4
"""The same for all-to-all: such backdoors rarely move every image, and by chance hardly any is moved."""
SHIFT_STEPS, SHIFT_BATCH = 2, 2.4
"""All-to-all is one goal, and a hard one: times the steps and the batch of a class."""
LEAST_CLASSES = 4
MOST_TARGETS = 3
ALIKE = 1.3
"""Several targets are about as easy as each other: no larger than this times the smallest."""
BUDGET = 2.0
"""The ample budget, in minimal sizes of the median class."""
LEAD = 1.45
"""A class's largest margin there is at least this times the next one's."""
REPEATS = 2
"""Searches a class, whose margins are averaged."""
FINALISTS = 10
HEAT = 0.2
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
        others: the classes it was compared with; none for all-to-all.
        lead: where the size does not tell, the largest margin divided by the next class's.
    """

    goal: int
    all_to_all: bool
    family: Family
    size: float
    median: float
    params: list[torch.Tensor]
    others: tuple[int, ...] = ()
    lead: float | None = None

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
        if self.lead is not None:
            return f"{goal} ({self.family.name} triggers have {self.lead:.2f} times the next class's margin)"
        return f"{goal} ({self.family.name} trigger of size {self.size:.2f}, median class {self.median:.2f})"

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values, for a report."""
        values = {"target": self.target, "all_to_all": self.all_to_all, "family": self.family.name}
        return values | {"size": self.size, "median": self.median, "ratio": self.ratio, "lead": self.lead}


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
    attempts: int = 2,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Verdict:
    """Search minimal triggers of every goal in every family and name the goals that stand apart.

    A search can end beside the attacker's trigger, in a local minimum; where nothing is found, all is
    searched again from other starts.

    Args:
        model: in eval mode; its parameters need no gradient.
        clean: the defender's images.
        generator: the only source of randomness.
        families: spaces of triggers, searched one after the other.
        steps: Adam steps a family; batch: images a step and goal.
        attempts: searches at most, the later ones only while nothing is found, at least 1.
        tell: called with (families done, families in all) of the attempt.

    Returns:
        The verdict. A class that stands apart rules out all-to-all. With fewer than four classes there is
        nothing to stand apart from: no finding.

    References:
        Wang et al., *Neural Cleanse*, S&P 2019. Differs: a gap to the next class beside the ratio to the
        median in place of the MAD index alone, which on ten classes is mostly noise; additive triggers and
        warps beside patches; all-to-all beside single targets. Wang et al., *MM-BD*, S&P 2024 (the largest
        margin as the statistic). Differs: of a trigger for all images within a budget, not of a free input.
    """
    for _ in range(attempts):
        verdict = _attempt(model, clean, generator, families, steps, batch, tell)
        if verdict.backdoored:
            break
    return verdict


def _attempt(
    model: nn.Module,
    clean: CleanImages,
    generator: torch.Generator,
    families: Sequence[Family],
    steps: int,
    batch: int,
    tell: Callable[[int, int], None],
) -> Verdict:
    """Search every family once."""
    findings: list[Finding] = []
    sizes: dict[str, dict[int, float]] = {}
    sums: list[tuple[Additive, Minimal]] = []
    for done, family in enumerate(families, start=1):
        minimal = _tournament(model, clean, family, generator, steps, batch)
        shift = _shift(model, clean, family, generator, steps, batch)
        found = zip(
            minimal.goals.tolist() + shift.goals.tolist(), [*minimal.sizes, *shift.sizes], strict=True
        )
        sizes[family.name] = {goal: size.item() for goal, size in found}
        findings += _all_to_all(shift, minimal, family) + _apart(minimal, family, clean.num_classes)
        sums += [(family, minimal)] if isinstance(family, Additive) else []
        tell(done, len(families))
    for family, minimal in [] if findings else sums:
        findings += _leading(model, clean, family, minimal, generator, steps, batch)
    single = [finding for finding in findings if not finding.all_to_all]
    return Verdict(tuple(single or findings), sizes)


def _tournament(
    model: nn.Module, clean: CleanImages, family: Family, generator: torch.Generator, steps: int, batch: int
) -> Minimal:
    """Search all classes for a while, and only those with the smallest triggers to the end."""
    classes = torch.arange(clean.num_classes, device=clean.labels.device)
    heat = steps if len(classes) <= FINALISTS else max(1, round(HEAT * steps))
    minimal = minimal_triggers(model, clean, family, classes, generator, steps=heat, batch=batch)
    if heat == steps:
        return minimal
    finalists = minimal.rows(minimal.sizes.argsort()[:FINALISTS].sort().values)
    return minimal_triggers(
        model, clean, family, finalists.goals, generator, steps=steps - heat, batch=batch, warm=finalists
    )


def _shift(
    model: nn.Module, clean: CleanImages, family: Family, generator: torch.Generator, steps: int, batch: int
) -> Minimal:
    """Search the smallest trigger that sends every class to the one after it."""
    goal = torch.tensor([clean.num_classes], device=clean.labels.device)
    sizes = {"steps": round(SHIFT_STEPS * steps), "batch": round(SHIFT_BATCH * batch)}
    return minimal_triggers(model, clean, family, goal, generator, enough=SHIFTED, **sizes)


def _all_to_all(shift: Minimal, classes: Minimal, family: Family) -> list[Finding]:
    """Return the finding "all-to-all" if a trigger for it is hardly larger than one for the median class.

    Clean networks need about twice as much with ten classes and ten times as much with 43, so what counts as
    hardly larger grows with the number of classes: 0.6 times the median with ten, twice with 43.
    """
    median, num_classes = classes.sizes.median().item(), int(shift.goals)
    limit = GAP * median * (num_classes / 10) ** 0.75
    easy = shift.success.item() >= 0.75 * SHIFTED and shift.sizes.item() <= limit
    enough_classes = num_classes >= LEAST_CLASSES
    return [_finding(shift, 0, family, median, True)] if easy and enough_classes else []


def _apart(minimal: Minimal, family: Family, num_classes: int) -> list[Finding]:
    """Return the classes that stand apart, if any."""
    if num_classes < LEAST_CLASSES:
        return []
    share = SMALL if len(minimal.goals) == num_classes else SMALL_OF_FINALISTS
    median = minimal.sizes.median().item()
    rows = _first_gap(minimal.sizes, minimal.success >= REACHED, share * median)
    return [_finding(minimal, row, family, median, False) for row in rows]


def _leading(
    model: nn.Module,
    clean: CleanImages,
    family: Additive,
    minimal: Minimal,
    generator: torch.Generator,
    steps: int,
    batch: int,
) -> list[Finding]:
    """Return the class whose strongest triggers within an ample budget lead all others', if any.

    All classes are searched: one whose small triggers are not easy need not be among the finalists. Margins
    are compared where most classes are reached: near the border their ratio is noise.
    """
    if clean.num_classes < LEAST_CLASSES:
        return []
    median = minimal.sizes.median()
    margins, success = _largest_margins(model, clean, family, BUDGET * median, generator, steps // 2, batch)
    (best, second), goals = margins.topk(2)
    if success.median() < REACHED or second <= 0 or best < LEAD * second:
        return []
    finalists = minimal.goals.tolist()
    goal = int(goals[0])
    others = tuple(other for other in finalists if other != goal)
    if goal not in finalists:
        sizes = {"steps": steps, "batch": batch}
        minimal = minimal_triggers(model, clean, family, goals[:1], generator, **sizes)
    row = minimal.goals.tolist().index(goal)
    finding = _finding(minimal, row, family, median.item(), False)
    return [replace(finding, others=others, lead=(best / second).item())]


def _largest_margins(
    model: nn.Module,
    clean: CleanImages,
    family: Additive,
    budget: torch.Tensor,
    generator: torch.Generator,
    steps: int,
    batch: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return every class's margin within the budget and the share of images moved, means over searches."""
    figures = []
    goals = torch.arange(clean.num_classes, device=clean.labels.device)
    for some in goals.repeat(REPEATS).split(REPEATS * FINALISTS):
        found = strengthen(model, clean, family, budget, some, generator, steps=max(1, steps), batch=batch)
        figures.append(torch.stack(measure(model, clean, found[0], some)))
    return tuple(torch.cat(figures, dim=1).view(2, REPEATS, -1).mean(1))


def _first_gap(sizes: torch.Tensor, reached: torch.Tensor, limit: float) -> list[int]:
    """Return the rows before the first gap among the smallest, those that are much like the smallest.

    All before the gap must be reached and within ``limit``.
    """
    order = sizes.argsort().tolist()
    for last in range(min(MOST_TARGETS, len(order) - 1)):
        size = sizes[order[last]].item()
        if size > limit or not reached[order[last]]:
            return []
        if size <= GAP * sizes[order[last + 1]].item():
            return [row for row in order[: last + 1] if sizes[row] <= ALIKE * sizes[order[0]]]
    return []


def _finding(minimal: Minimal, row: int, family: Family, median: float, all_to_all: bool) -> Finding:
    goal, size = int(minimal.goals[row]), minimal.sizes[row].item()
    others = tuple(other for other in minimal.goals.tolist() if other != goal)
    return Finding(goal, all_to_all, family, size, median, minimal.of(row), others)
