"""The second statistic of the verdict: how large a margin does each class reach, given more than it needs?

With a backdoor the margin grows on and on. Two places are asked. Where a class has a rather small trigger,
but others are near, all the finalists are compared at the very place of that trigger. A faint trigger over
the whole image may need no less than chance finds for any class, so that its size tells nothing: all classes
are compared within an ample budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbackdoor._clean import CleanImages
from unbackdoor.recover._families import Additive, Family
from unbackdoor.recover._search import measure, strengthen
from unbackdoor.recover._sizes import HEAT_BATCH, Sizes

BUDGET = 2.0
"""The ample budget, in minimal sizes of the median class."""
LEAD = 1.45
"""A class's largest margin there, in either place, is at least this times the next one's."""
REACHED = 0.5
"""Share of images moved by the median class's triggers: near the border the ratio of margins is noise."""
EVIDENCE = 3.0
"""At the place of its small trigger, a class's lead divided by the trigger's ratio to the median size. The
lead is ``LEAD`` at least: of classes that look alike one is easy to reach, but the next hardly less so."""
PROMISING = 0.7
"""Share of the lead asked for that a first search has to show for a second one to be made."""
SMALLISH = 0.6
"""The ratio up to which it is asked: at the places of larger triggers chance leads by as much."""
FINALISTS = 10
"""Of more classes than these, only so many are searched to the end, those that lead …"""
HEAT = 1 / 3
"""… after so large a part of the steps, with fewer images, as for sizes."""
AT_ONCE = 20
"""Searches side by side."""


@dataclass(frozen=True)
class Leader:
    """The class whose margin leads, and its margin divided by the next class's."""

    goal: int
    lead: float


def leader(
    model: nn.Module,
    clean: CleanImages,
    family: Additive,
    median: float,
    generator: torch.Generator,
    *,
    steps: int,
    batch: int,
) -> Leader | None:
    """Return the class whose strongest triggers within the budget lead all others', if any.

    All classes are searched, also those whose small triggers are not easy, the finalists twice, from other
    starts; both margins are averaged.

    Args:
        model, clean, family, generator, batch: as for ``strengthen``.
        median: minimal size of the median class; steps: Adam steps, at least one is made.

    References:
        Wang et al., *MM-BD*, S&P 2024 (the largest margin as the statistic). Differs: of a trigger for all
        images within a budget, not of a free input.
    """
    sizes = {"steps": max(1, steps), "batch": batch}
    place = torch.tensor(BUDGET * median).to(clean.images)
    goals = finalists(model, clean, family, [place], generator, **sizes)
    margins, success = largest_margins(model, clean, family, place, goals, generator, **sizes)
    again, _ = largest_margins(model, clean, family, place, goals, generator, **sizes)
    (best, second), order = ((margins + again) / 2).topk(2)
    if success.median() < REACHED or second <= 0 or best < LEAD * second:
        return None
    return Leader(int(goals[order[0]]), (best / second).item())


def finalists(
    model: nn.Module,
    clean: CleanImages,
    family: Family,
    places: Sequence[Tensor],
    generator: torch.Generator,
    *,
    steps: int,
    batch: int,
) -> Tensor:
    """Return the classes to search to the end, int64 (K,), in order: all, or those that lead in any place.

    Args:
        model, clean, family, generator, batch: as for ``strengthen``; steps: those of a search to the end.
        places: where triggers are compared, at least one.
    """
    goals = torch.arange(clean.num_classes, device=clean.labels.device)
    if len(goals) <= FINALISTS:
        return goals
    sizes = {"steps": max(1, round(HEAT * steps)), "batch": max(1, round(HEAT_BATCH * batch))}
    every = [last_margins(model, clean, family, place, goals, generator, **sizes) for place in places]
    return torch.stack(every).amax(dim=0).topk(FINALISTS).indices.sort().values


def last_margins(
    model: nn.Module,
    clean: CleanImages,
    family: Family,
    place: Tensor,
    goals: Tensor,
    generator: torch.Generator,
    *,
    steps: int,
    batch: int,
) -> Tensor:
    """Return each goal's margin at ``place`` over the images of the last step, (K,).

    They do to choose by: with many clean images, all take as long as the search.
    """
    shared = (model, clean, family, place)
    searched = [
        strengthen(*shared, some, generator, steps=steps, batch=batch) for some in goals.split(AT_ONCE)
    ]
    return torch.cat([margins for _, margins, _ in searched])


def leader_at_place(
    model: nn.Module, clean: CleanImages, found: Sizes, generator: torch.Generator, *, steps: int, batch: int
) -> Leader | None:
    """Return the class with one family's smallest trigger, if it leads by far where that trigger sits.

    A class that chance made easy is outdone, or nearly so, by others at the very place of its own small
    trigger. Every finalist is searched there, and where the lead comes near enough, once more; both margins
    are averaged.

    Args:
        model, clean, generator, batch: as for ``strengthen``.
        found: sizes of the family; steps: Adam steps, at least one is made.
    """
    row = int(found.order[0])
    ratio = found.classes.sizes[row].item() / found.median
    if not found.reached[row] or ratio > SMALLISH:
        return None
    place, goals = found.family.place(found.classes.of(row)), found.classes.goals
    shared = (model, clean, found.family, place, goals, generator)
    sizes, enough = {"steps": max(1, steps), "batch": batch}, max(LEAD, EVIDENCE * ratio)
    once, _ = largest_margins(*shared, **sizes)
    if _lead_of(once, row) < PROMISING * enough:
        return None
    again, _ = largest_margins(*shared, **sizes)
    lead = _lead_of((once + again) / 2, row)
    return Leader(int(goals[row]), lead) if lead >= enough else None


def _lead_of(margins: Tensor, row: int) -> float:
    """Return one margin of (K,) divided by the largest other one."""
    others = margins[torch.arange(len(margins), device=margins.device) != row]
    # Next classes with margins about zero would make any lead a large one.
    return (margins[row] / others.max().clamp(min=1)).item()


def largest_margins(
    model: nn.Module,
    clean: CleanImages,
    family: Family,
    place: Tensor,
    goals: Tensor,
    generator: torch.Generator,
    *,
    steps: int,
    batch: int,
) -> tuple[Tensor, Tensor]:
    """Return each goal's margin at ``place`` and the share of images moved, (K,) each."""
    figures = []
    for some in goals.split(AT_ONCE):
        triggers, _, _ = strengthen(model, clean, family, place, some, generator, steps=steps, batch=batch)
        figures.append(torch.stack(measure(model, clean, triggers, some)))
    return tuple(torch.cat(figures, dim=1))
