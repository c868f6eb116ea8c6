"""What is found: goals that a family of triggers reaches too easily, and the verdict they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from unbackdoor._clean import CleanImages
from unbackdoor.recover._families import Additive, Family, Patch, Smooth, Warp
from unbackdoor.recover._pictures import OPACITY, Picture, place_of
from unbackdoor.recover._search import Minimal
from unbackdoor.recover._sizes import SMALL_OF_FINALISTS, Sizes
from unbackdoor.recover._strokes import Lines, Strokes

FAINT = 0.4
"""A patch is faint whose mask covers no pixel by so much: it hides nothing, and what opaque ones find in its
place is what chance finds. Those of patches cover some pixel by half and more."""
TELLING = 3.0
"""A family tells of the trigger where its ratio is at most so many times that of the best family."""


@dataclass(frozen=True)
class Finding:
    """One goal that one family of triggers reaches too easily.

    Attributes:
        goal: the target class, or the number of classes for "every class to the one after it".
        all_to_all: whether it is the latter.
        family: the family; size: of its minimal trigger.
        median: size of the median class among those searched to the end; ratio: size / median.
        params: the minimal trigger, in the family's parameters (K = 1).
        lead: where no size stands apart, the goal's largest margin divided by the next class's. Stripes,
            whose minimal size is not searched, have the amplitude compared at as size and median, strokes
            their width, and a lead where they are dense.
        lead_of: whose margins were compared, where not the family's triggers'.
        ahead: by how many logits strokes by chance lead to the goal, where these tell of it, or noise.
        reserve: whether it is followed only should noise, which the others stand for, go on after a round.
    """

    goal: int
    all_to_all: bool
    family: Family
    size: float
    median: float
    params: list[torch.Tensor]
    lead: float | None = None
    lead_of: str | None = None
    ahead: float | None = None
    reserve: bool = False

    @property
    def target(self) -> int | None:
        """The target class; ``None`` for all-to-all."""
        return None if self.all_to_all else self.goal

    @property
    def ratio(self) -> float:
        return self.size / self.median

    @property
    def for_noise(self) -> bool:
        """Whether additive triggers of an ordinary size stand in for noise that leads to the class."""
        return isinstance(self.family, Additive) and self.ratio > SMALL_OF_FINALISTS

    @property
    def faint(self) -> bool:
        """Whether it is a patch by its name only: a little of several pixels, which is a sum."""
        patch = type(self.family) is Patch and not self.all_to_all
        return patch and self.params[0].sigmoid().max().item() < FAINT

    @property
    def strong_place(self) -> torch.Tensor:
        """Where strong triggers are searched, in the family's terms."""
        return self.family.strong_place(self.params, self.median)

    def sentence(self) -> str:
        """Return the finding in words."""
        goal = "every class to the next one" if self.all_to_all else f"class {self.goal}"
        if self.lead is not None:
            what = f"{self.lead_of} has" if self.lead_of else f"{self.family.name} triggers have"
            return f"{goal} ({what} {self.lead:.2f} times the next class's margin)"
        if self.reserve:
            return f"{goal} (strokes, should noise go on to lead to it)"
        if isinstance(self.family, Strokes):
            told = (
                f" lead to it by {self.ahead:.1f} logits" if self.ahead else " are tried beside a large patch"
            )
            return f"{goal} (strokes{told})"
        return f"{goal} ({self.family.name} trigger of size {self.size:.2f}, median class {self.median:.2f})"

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values, for a report."""
        values = {"target": self.target, "all_to_all": self.all_to_all, "family": self.family.name}
        sizes = {"size": self.size, "median": self.median, "ratio": self.ratio}
        return values | sizes | {"lead": self.lead, "lead_of": self.lead_of, "ahead": self.ahead}


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


def telling(findings: list[Finding]) -> list[Finding]:
    """Return the findings without those in families that are too far from the trigger's own.

    Triggers strong enough to follow it there are mostly adversarial, and erasing those costs accuracy. Not so
    warps, which hide nothing of an image: a smooth sum can be smaller beside its median than the attacker's
    warp is beside that of warps, and does not stand in for it.
    """
    best = {goal: min(f.ratio for f in findings if f.goal == goal) for goal in {f.goal for f in findings}}
    return [f for f in findings if f.ratio <= TELLING * best[f.goal] or isinstance(f.family, Warp)]


def without_stand_ins(findings: list[Finding]) -> list[Finding]:
    """Return the findings without patches to a goal that smooth triggers reach sooner, by their ratios.

    What covers the image smoothly is no patch. Patches that follow it are adversarial: they go on to succeed,
    and the rounds that this makes cost accuracy.
    """
    smooth = {f.goal: f.ratio for f in findings if isinstance(f.family, Smooth)}
    return [
        f for f in findings if not isinstance(f.family, Patch) or f.ratio <= smooth.get(f.goal, torch.inf)
    ]


def single(searched: Sequence[Sizes], targets: set[int], share: float | None = None) -> list[Finding]:
    """Return the targets' findings: of every family that has small triggers for them.

    A family where the target has no clear gap to the next class helps to erase all the same. ``share``: as
    for ``Sizes.small``.
    """
    small = [(found, goal) for found in searched for goal in sorted(targets) if found.small(goal, share)]
    return [finding_of(found.family, found.classes, goal, found.median) for found, goal in small]


def finding_of(
    family: Family, minimal: Minimal, goal: int, median: float, lead: float | None = None
) -> Finding:
    """Return the finding of a goal among minimal triggers; ``lead``: where no size tells of it."""
    row = minimal.goals.tolist().index(goal)
    return Finding(goal, False, family, minimal.sizes[row].item(), median, minimal.of(row), lead)


def strokes_to(
    goal: int,
    number: int,
    width: float,
    ahead: float | None = None,
    lead: float | None = None,
    reserve: bool = False,
) -> Finding:
    """Return strokes of that number and width as a finding; ``ahead``, ``lead``: what tells of the goal.

    They move where strokes by chance lead there by ``ahead`` logits. Dense ones that move reach any class,
    and beside a patch, which is a piece of a watermark, they cost several points.
    """
    family, params = Strokes() if ahead is None else Lines(), [torch.tensor([[number, width]])]
    return Finding(goal, False, family, width, width, params, lead, ahead=ahead, reserve=reserve)


def picture_to(goal: int, clean: CleanImages, lead: float | None = None) -> Finding:
    """Return coarse pictures as a finding; ``lead``: by how much they lead, where that tells of the goal."""
    return Finding(goal, False, Picture(), OPACITY, OPACITY, [place_of(clean)[None]], lead)


def shift_of(found: Sizes, shift: Minimal) -> Finding:
    """Return all-to-all as a finding, by its minimal trigger."""
    return Finding(found.num_classes, True, found.family, shift.sizes.item(), found.median, shift.of(0))
