"""The first statistic of the verdict: how small a trigger does each goal need, which goals stand apart?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unbackdoor._clean import CleanImages
from unbackdoor.recover._families import SizedFamily
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
SHIFTED = 0.4
"""The same for all-to-all: such backdoors rarely move every image, and by chance hardly any is moved."""
ABOUT = 0.6
"""Share of that which is enough at the end: the search holds it by growing and shrinking, and ends near."""
SHIFT_STEPS, SHIFT_BATCH = 2, 2.4
"""All-to-all is one goal, and a hard one: times the steps and the batch of a class."""
ONWARD = 3
"""So many times a search for all-to-all that ended in between is taken up again: what has a place and keeps
to it is lost at one step too small, and grows back before it shrinks again."""
MOST_TARGETS = 3
ALIKE = 1.3
"""Several targets are about as easy as each other: no larger than this times the smallest."""
FINALISTS = 10
HEAT, HEAT_BATCH = 0.2, 0.6
"""Share of the steps after which the finalists are picked, and of the images that a step until then has."""


@dataclass(frozen=True)
class Sizes:
    """Minimal triggers of one family.

    Attributes:
        family: the family.
        classes: triggers of the classes searched to the end, the finalists.
        num_classes: of the network.
        shift: that of all-to-all, K = 1, where it was searched.
    """

    family: SizedFamily
    classes: Minimal
    num_classes: int
    shift: Minimal | None = None

    @property
    def median(self) -> float:
        """Size of the median finalist."""
        return self.classes.sizes.median().item()

    @property
    def limit(self) -> float:
        """Largest size that a target can have."""
        every = len(self.classes.goals) == self.num_classes
        return (SMALL if every else SMALL_OF_FINALISTS) * self.median

    def row(self, goal: int) -> int | None:
        """Return the class's row; ``None`` if it is no finalist."""
        goals = self.classes.goals.tolist()
        return goals.index(goal) if goal in goals else None

    def small(self, goal: int, share: float | None = None) -> bool:
        """Tell whether a class is reached by a trigger no larger than a target's can be.

        ``share``: no larger than this share of the median class's, instead.
        """
        row, limit = self.row(goal), self.limit if share is None else share * self.median
        return row is not None and bool(self.reached[row]) and self.classes.sizes[row].item() <= limit

    def apart(self) -> list[int]:
        """Return the classes that stand apart: before the first gap, and much like the smallest.

        All before the gap must be small.
        """
        sizes, goals, order = self.classes.sizes, self.classes.goals, self.order
        for last in range(min(MOST_TARGETS, len(order) - 1)):
            if not self.small(int(goals[order[last]])):
                return []
            if sizes[order[last]] <= GAP * sizes[order[last + 1]]:
                return [int(goals[row]) for row in order[: last + 1] if sizes[row] <= ALIKE * sizes[order[0]]]
        return []

    def shifts(self) -> bool:
        """Tell whether all-to-all's trigger is smaller than any class's, and than the median's by the gap.

        Where a class is reached sooner, it is that class which made it small. Clean networks need about twice
        as much with ten classes and three times or more with 43.
        """
        return self.shift is not None and self._sooner(self.shift) and _shifts_enough(self.shift)

    def between(self) -> bool:
        """Tell whether all-to-all would be as small as ``shifts`` asks, but moves too few images."""
        return self.shift is not None and self._sooner(self.shift) and not _shifts_enough(self.shift)

    def _sooner(self, shift: Minimal) -> bool:
        """Tell whether it is smaller than the median class's, by the gap, and than that of any class."""
        easiest = self.classes.sizes.where(self.reached, torch.inf).min().item()
        return shift.sizes.item() <= min(GAP * self.median, easiest)

    def to_dict(self) -> dict[int, float]:
        """Return {goal: size}, all-to-all as the goal past the last class."""
        sizes: dict[int, float] = {}
        for part in (self.classes, self.shift):
            sizes |= dict(zip(part.goals.tolist(), part.sizes.tolist(), strict=True)) if part else {}
        return sizes

    @property
    def reached(self) -> Tensor:
        """Which finalists' triggers move enough images to count, (K,)."""
        return self.classes.success >= REACHED

    @property
    def order(self) -> list[int]:
        """The finalists' rows, those with the smallest triggers first."""
        return self.classes.sizes.argsort().tolist()


def search_sizes(
    model: nn.Module,
    clean: CleanImages,
    family: SizedFamily,
    generator: torch.Generator,
    *,
    steps: int,
    batch: int,
) -> Sizes:
    """Search the minimal triggers of all classes in one family; arguments as for ``minimal_triggers``.

    All classes are searched for a while, and only those with the smallest triggers to the end.
    """
    classes = torch.arange(clean.num_classes, device=clean.labels.device)
    shared, sizes = (model, clean, family), {"steps": steps, "batch": batch}
    if len(classes) <= FINALISTS:
        return Sizes(family, minimal_triggers(*shared, classes, generator, **sizes), clean.num_classes)
    heat = {"steps": max(1, round(HEAT * steps)), "batch": max(1, round(HEAT_BATCH * batch))}
    first = minimal_triggers(*shared, classes, generator, **heat)
    finalists = first.rows(first.sizes.argsort()[:FINALISTS].sort().values)
    rest = sizes | {"steps": max(1, steps - heat["steps"]), "warm": finalists}
    return Sizes(family, minimal_triggers(*shared, finalists.goals, generator, **rest), clean.num_classes)


def search_shift(
    model: nn.Module,
    clean: CleanImages,
    found: Sizes,
    generator: torch.Generator,
    *,
    steps: int,
    batch: int,
) -> Sizes:
    """Add the smallest trigger that sends every class to the one after it; arguments as before.

    Where it is small, but moves too few images at the end, the search goes on.
    """
    goal = torch.tensor([clean.num_classes], device=clean.labels.device)
    sizes = {"steps": round(SHIFT_STEPS * steps), "batch": round(SHIFT_BATCH * batch)}
    shared = (model, clean, found.family, goal, generator)
    found = replace(found, shift=minimal_triggers(*shared, enough=SHIFTED, **sizes))
    for _ in range(ONWARD):
        if not found.between():
            break
        more = minimal_triggers(*shared, enough=SHIFTED, warm=found.shift, **sizes | {"steps": steps})
        found = replace(found, shift=more)
    return found


def _shifts_enough(shift: Minimal) -> bool:
    return shift.success.item() >= ABOUT * SHIFTED
