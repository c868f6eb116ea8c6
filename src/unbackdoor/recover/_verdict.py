"""Is there a backdoor, and to which class? A goal is suspicious if it is far too easy to reach.

Goals are the classes, and beside them the label map of all-to-all backdoors, "every class to the next".
Kinds of evidence answer in turn: minimal sizes (``_sizes``) and, where none stands apart, the largest
margins at the place of a rather small trigger (``_margins``), those under stripes (``_stripes``), of patches
in windows (``_windows``), of coarse pictures (``_pictures``), under strokes (``_strokes``) and noise
(``_noise``), of sums within an ample budget, then all-to-all's sizes, what noise and dense strokes agree on,
and last the largest margins under dense strokes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import nn

from unbackdoor._clean import CleanImages
from unbackdoor._repeatable import copied
from unbackdoor.recover._families import FAMILIES, Additive, Patch, SizedFamily, Smooth
from unbackdoor.recover._findings import (
    Finding,
    Verdict,
    finding_of,
    picture_to,
    shift_of,
    single,
    strokes_to,
    telling,
    without_stand_ins,
)
from unbackdoor.recover._margins import SMALLISH, Leader, leader, leader_at_place
from unbackdoor.recover._noise import noises
from unbackdoor.recover._pictures import INSTEAD, PICTURED, leading_picture
from unbackdoor.recover._search import minimal_triggers
from unbackdoor.recover._sizes import GAP, SMALL, Sizes, search_shift, search_sizes
from unbackdoor.recover._stripes import AMPLITUDE, Stripes, leading_stripes
from unbackdoor.recover._strokes import (
    DENSE,
    LEAST,
    MOVING,
    STROKES_SURE,
    leading_strokes,
    moving_strokes,
    strokes,
    under_dense_strokes,
)
from unbackdoor.recover._textures import CLEAR, SURE, Answers, answers_under, best_under, clear_leader
from unbackdoor.recover._windows import Window, leading_window

LEAST_CLASSES = 4
UNHEARD = -1.0
"""Smallest margin, in logits, that noise gives a class which additive triggers alone tell of: any network has
directions that lead to a class, but an attacker's pattern is obeyed in pieces, too, and noise holds some."""
LARGE = 0.014
"""A patch that alone tells of the target is a piece of something larger where it is at least this share of
the image: 15 of 1,024 pixels, where minimal triggers of compact patches need up to 6."""
BESIDE = (12, 0.04)
"""Number and width of the strokes that are searched beside such a patch."""
SOMEWHAT = 0.75
"""A class that smooth triggers reach first, at so many times the median class's size, is a target if dense
strokes lead there as well: a blended picture may need little less than chance finds for any class."""
CERTAIN = 0.3
"""A class whose ratio to the median is no larger is a target. Larger ones are had by a piece of what sends
every class to the next one, too, so that this is searched beside them."""
AGREED, ALIKE = 0.8, 0.2
"""Noise that leads to a class by so many times what the network's first answer is ahead of its second tells
of a target if dense strokes lead there as well, by so many times that. What is natural under one is not under
the other: fine noise makes frogs on CIFAR-10, flat strokes aeroplanes. A weak backdoor's target is the answer
to both."""
WINDOW_BATCH = 3
"""Images a step where windows are searched: what leads there does so by many times."""
ABOUT = 0.75
"""Strokes are kept in reserve where noise tells of a class and the best ones lead there by this share."""
ALSO = 0.3
"""Noise leads to what stripes or strokes tell of, too, where it does so by so many times that."""


def examine(
    model: nn.Module,
    clean: CleanImages,
    generator: torch.Generator,
    *,
    families: Sequence[SizedFamily] = FAMILIES,
    steps: int = 75,
    batch: int = 5,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> Verdict:
    """Search minimal triggers of every goal in every family and name the goals that stand apart.

    Where no size of a class stands apart, other evidence is asked, what takes little time first. What
    additive triggers alone tell of has to be heard in noise, too.

    Args:
        model: in eval mode; its parameters need no gradient.
        clean: the defender's images.
        generator: the only source of randomness.
        families: spaces of triggers, searched one after the other.
        steps: Adam steps a family; batch: images a step and goal.
        tell: called with (families done, families in all).

    Returns:
        The verdict. A class that stands apart clearly rules out all-to-all. With fewer than four classes
        there is nothing to stand apart from: no finding.

    References:
        Wang et al., *Neural Cleanse*, S&P 2019. Differs: a gap to the next class beside the ratio to the
        median in place of the MAD index alone, which on ten classes is mostly noise; additive and smooth
        triggers and warps beside patches; all-to-all beside single targets.
    """
    search = _Search(model, clean, generator, {"steps": steps, "batch": batch})
    search.sizes(families, tell)
    findings: list[Finding] = []
    if clean.num_classes >= LEAST_CLASSES:
        findings = search.as_picture(without_stand_ins(search.goals() or search.beyond_sizes()))
        findings += search.beside(findings)
    return Verdict(tuple(findings), {found.family.name: found.to_dict() for found in search.found})


@dataclass
class _Search:
    """A network under examination: what was found in every family so far, and what follows from it.

    Attributes:
        model, clean, generator: as for ``examine``.
        options: steps and images a step of one search, as keywords.
        found: the sizes in every family, after the last search.
    """

    model: nn.Module
    clean: CleanImages
    generator: torch.Generator
    options: dict[str, int]
    found: list[Sizes] = field(default_factory=list)

    def sizes(self, families: Sequence[SizedFamily], tell: Callable[[int, int], None]) -> None:
        """Search the classes in every family."""
        for done, family in enumerate(families, start=1):
            self.found.append(search_sizes(self.model, self.clean, family, self.generator, **self.options))
            tell(done, len(families))

    def goals(self) -> list[Finding]:
        """Return the findings of the classes that stand apart, or all-to-all's, of which they are pieces.

        All-to-all is searched where a class stands apart by little, in its families, and counts where it is
        reached by far sooner.
        """
        targets = self.targets()
        if not targets or min(f.ratio for f in targets) <= CERTAIN:
            return targets
        families = {f.family for f in targets}
        searched = [found for found in self.found if found.family in families]
        shifts = self.all_to_all(searched, copied(self.generator))
        easiest = min(f.ratio for f in targets)
        return [f for f in shifts if f.ratio <= GAP * easiest] or targets

    def beyond_sizes(self) -> list[Finding]:
        """Return the findings of the first kind of evidence that tells of a goal where no size does.

        What takes little time and tells by far comes first, all-to-all and dense strokes, which take the
        longest, last.
        """
        return (
            self.leaders_at_place()
            or self.stripes()
            or self.windows()
            or self.pictures()
            or self.textures()
            or self.leader()
            or self.all_to_all(self.found, self.generator)
            or self.both_textures()
            or self.dense_strokes()
        )

    def targets(self) -> list[Finding]:
        """Return the findings of the classes that stand apart in any family.

        A large patch that alone tells of a class has to be small as if all classes had been searched to the
        end: a clean network of many classes has one that a large patch reaches somewhat sooner, now and then.
        Of several classes with large patches, strokes or noise tell the one that is a target: a piece of a
        watermark has many pixels, and so has what chance makes of another class. Additive triggers that alone
        tell of a class by little need noise to lead there by far. A faint patch tells of its class, but is
        not returned.
        """
        apart = {goal for found in self.found for goal in found.apart()}
        findings = self._well_heard(self._heard(telling(single(self.found, apart))))
        if self._large_several(findings):
            led = self.textures()
            if led and led[0].goal in apart:
                return led
        elif self._large_alone(findings) and findings[0].ratio > SMALL:
            return []
        return self.as_sums(findings)

    def as_sums(self, findings: list[Finding]) -> list[Finding]:
        """Return what tells of the same goals but faint patches; goals that these alone tell of get sums."""
        if self._sums is None or not any(f.faint for f in findings):
            return findings
        goals = {f.goal for f in findings}
        kept = telling([f for f in single(self.found, goals) if not f.faint])
        alone = goals - {f.goal for f in kept}
        return kept + [self._summed(goal, self._sums) for goal in sorted(alone)]

    def all_to_all(self, searched: list[Sizes], generator: torch.Generator) -> list[Finding]:
        """Search all-to-all in the families of ``searched`` and return its findings."""
        shared = (self.model, self.clean)
        added = [search_shift(*shared, found, generator, **self.options) for found in searched]
        self.found = [next((a for a in added if a.family == f.family), f) for f in self.found]
        return telling([shift_of(found, found.shift) for found in added if found.shifts()])

    def leaders_at_place(self) -> list[Finding]:
        """Return the findings of the class that leads most where its own small trigger sits, if any."""
        led = []
        for found in self.found:
            first = leader_at_place(self.model, self.clean, found, self.generator, **self._half)
            led += [(first, found)] if first else []
        if not led:
            return []
        first, found = max(led, key=lambda pair: pair[0].lead)
        own = finding_of(found.family, found.classes, first.goal, found.median, first.lead)
        return self._heard(self._led(own))

    def leader(self) -> list[Finding]:
        """Return the findings of the class that leads in the margin of ample additive triggers, if any.

        They are searched only where noise brings images near some class, which what they find needs.
        """
        sums = self._sums
        if sums is None or self._under_noise.margins.max() < UNHEARD:
            return []
        shared = (self.model, self.clean, sums.family, sums.median)
        first = leader(*shared, self.generator, **self._half)
        return self._heard(self._led(self._summed(first.goal, sums, first.lead))) if first else []

    def windows(self) -> list[Finding]:
        """Return the findings of the class that a patch in a window leads to by far, if any."""
        shared = (self.model, self.clean, copied(self.generator))
        led = leading_window(*shared, steps=self.options["steps"] // 5, batch=WINDOW_BATCH)
        if led is None:
            return []
        first, params = led
        area = (params[0] > 0).sum().item()
        return self._led(Finding(first.goal, False, Window(), area, area, params, first.lead))

    def pictures(self, sure: float = PICTURED) -> list[Finding]:
        """Return the finding of the class that coarse pictures lead to by far, if any.

        Alone: small triggers of other kinds are pieces of it, which do not carry over as it does.
        """
        shared = (self.model, self.clean, copied(self.generator), sure)
        sizes = {"steps": self.options["steps"] // 4, "batch": self.options["batch"]}
        first = leading_picture(*shared, **sizes)
        return [picture_to(first.goal, self.clean, first.lead)] if first else []

    def as_picture(self, findings: list[Finding]) -> list[Finding]:
        """Return the findings, or a picture where they are parts of one: a patch of many pixels and sums."""
        kinds = {type(f.family) for f in findings}
        if kinds != {Patch, Additive} or not self._large(findings):
            return findings
        led = self.pictures(INSTEAD)
        return led if {f.goal for f in led} == {f.goal for f in findings} else findings

    def stripes(self) -> list[Finding]:
        """Return the findings of the class that leads under stripes, if any, and if neither both textures nor
        dense strokes lead to another one, which stripes stand in for.
        """
        led = leading_stripes(self.model, self.clean, self.generator)
        if led is None or self._leads_elsewhere(led[0].goal):
            return []
        first, params = led
        own = Finding(first.goal, False, Stripes(), AMPLITUDE, AMPLITUDE, params, first.lead)
        return self._with_sums(self._led(own), first)

    def textures(self) -> list[Finding]:
        """Return the findings of the class that leads under strokes or noise, whichever tells more."""
        stroked, noisy = answers_under(self.model, self.clean, strokes(), self.generator), self._under_noise
        if stroked.ahead >= noisy.ahead:
            return self._led_by_strokes(stroked) or self._led_by_noise(noisy.leader(SURE), stroked)
        return self._led_by_noise(noisy.leader(SURE), stroked) or self._led_by_strokes(stroked)

    def both_textures(self) -> list[Finding]:
        """Return the findings of the class that leads under noise and under dense strokes, if any."""
        return self._led_by_noise(self._agreed)

    def dense_strokes(self) -> list[Finding]:
        """Return the findings of the class that leads under dense strokes, if any.

        Where smooth triggers reach it sooner than any other, they follow what covers the image closer.
        """
        first = self._under_dense
        if first is None:
            return []
        smooth, goal = self._smoothest
        if smooth is not None and goal == first.goal:
            own = finding_of(smooth.family, smooth.classes, goal, smooth.median, first.lead)
            return self._led(replace(own, lead_of="a net of strokes"))
        return self._with_sums(self._led(strokes_to(first.goal, *DENSE, lead=first.lead)), first)

    def beside(self, findings: list[Finding]) -> list[Finding]:
        """Return strokes where a large patch alone tells of the target: a watermark is found by a piece."""
        return [strokes_to(findings[0].goal, *BESIDE)] if self._large_alone(findings) else []

    def _well_heard(self, findings: list[Finding]) -> list[Finding]:
        """Return the findings without the goals that little tells of beside additive triggers."""
        every = [[f for f in findings if f.goal == goal] for goal in {f.goal for f in findings}]
        hardly = {own[0].goal for own in every if self._hardly_heard(own)}
        return [f for f in findings if f.goal not in hardly]

    def _hardly_heard(self, own: list[Finding]) -> bool:
        """Tell whether additive triggers tell of the goal of ``own``, by no certain size, and noise little.

        A class that others are easily taken for, as shirts are, is reached by them first in a clean network,
        and by large patches, too. Where one stands beside them, it is enough that dense strokes lead there.
        """
        large = self._large(own)
        kinds = {type(f.family) for f in own if f not in large}
        if kinds != {Additive} or min(f.ratio for f in own) <= CERTAIN:
            return False
        if self._under_noise.lead_of(own[0].goal) >= CLEAR:
            return False
        return not large or self._stroked.lead_of(own[0].goal) < 0

    def _leads_elsewhere(self, goal: int) -> bool:
        """Tell whether both textures, or else dense strokes, which take a search, lead to another class."""
        agreed = self._agreed
        if agreed is not None and agreed.goal != goal:
            return True
        dense = self._under_dense
        return dense is not None and dense.goal != goal

    def _large_alone(self, findings: list[Finding]) -> bool:
        """Tell whether all that was found is a patch of many pixels, to one class."""
        return len(findings) == len(self._large(findings)) == 1

    def _large_several(self, findings: list[Finding]) -> bool:
        """Tell whether several classes were found, each by a patch of many pixels."""
        goals = {f.goal for f in findings}
        return len(goals) > 1 and {f.goal for f in self._large(findings)} == goals

    def _large(self, findings: list[Finding]) -> list[Finding]:
        """Return those of a patch of many pixels to one class."""
        least = LARGE * self.clean.images[0, 0].numel()
        return [f for f in findings if type(f.family) is Patch and f.size >= least and not f.all_to_all]

    def _led_by_strokes(self, answers: Answers) -> list[Finding]:
        """Strokes, and a rather small patch beside them: a piece of what strokes stand in for."""
        led = answers.leader(STROKES_SURE, LEAST)
        if led is None:
            return []
        findings = self._led(self._moving(led.goal, answers))
        patches = self._among(Patch)
        if patches is None or any(isinstance(f.family, Patch) for f in findings):
            return findings
        return findings + single([patches], {led.goal}, SMALLISH)

    def _moving(self, goal: int, answers: Answers, reserve: bool = False) -> Finding:
        """Return strokes that move, of the kind whose best picture leads to a class furthest."""
        number, width = MOVING[int(self._best_strokes[: len(MOVING), goal].argmax())]
        return strokes_to(goal, number, width, answers.lead_of(goal), reserve=reserve)

    def _like_strokes(self, goal: int) -> bool:
        """Tell whether of pictures that chance makes the best strokes lead to a class about as far as noise.

        A watermark's strokes are noise, too, but noise is no strokes.
        """
        noisy = best_under(self.model, self.clean, noises(), copied(self.generator))
        return (self._best_strokes[:, goal].max() >= ABOUT * noisy[:, goal].max()).item()

    def _led_by_noise(self, led: Leader | None, stroked: Answers | None = None) -> list[Finding]:
        """Additive triggers stand for noise; strokes that lead there about as far are kept in reserve."""
        sums = self._sums
        if led is None or sums is None:
            return []
        findings = self._led(replace(self._summed(led.goal, sums, led.lead), lead_of="noise"))
        if stroked is None or not self._like_strokes(led.goal):
            return findings
        return [*findings, self._moving(led.goal, stroked, reserve=True)]

    def _heard(self, findings: list[Finding]) -> list[Finding]:
        """Return the findings without the goals that additive triggers alone tell of, and noise does not."""
        others = {f.goal for f in findings if not isinstance(f.family, Additive)}
        alone = {f.goal for f in findings} - others
        unheard = {goal for goal in alone if self._under_noise.margins[goal] < UNHEARD}
        return [f for f in findings if f.goal not in unheard]

    def _with_sums(self, findings: list[Finding], first: Leader) -> list[Finding]:
        """Add additive triggers to a leader's findings, if none are there and noise leads to its class, too.

        What is obeyed as stripes and as noise is neither, but a disturbance of another kind: quantisation.
        Noise that leads there by little tells nothing, and sums cost accuracy.
        """
        sums = self._sums
        if sums is None or any(isinstance(f.family, Additive) for f in findings):
            return findings
        heard = self._under_noise.lead_of(first.goal) >= ALSO * self._under_noise.sureness
        return [*findings, self._summed(first.goal, sums)] if heard else findings

    def _summed(self, goal: int, sums: Sizes, lead: float | None = None) -> Finding:
        """Return the class's finding among additive triggers, searched where it is no finalist."""
        minimal = sums.classes
        if sums.row(goal) is None:
            one = torch.tensor([goal], device=self.clean.labels.device)
            shared = (self.model, self.clean, sums.family, one, self.generator)
            minimal = minimal_triggers(*shared, **self.options)
        return finding_of(sums.family, minimal, goal, sums.median, lead)

    def _led(self, own: Finding) -> list[Finding]:
        """Return a leader's finding, and those of the other families that have small triggers for it."""
        return [own, *single([found for found in self.found if found.family != own.family], {own.goal})]

    @cached_property
    def _under_noise(self) -> Answers:
        """The network's answers under noise."""
        return answers_under(self.model, self.clean, noises(), self.generator)

    @cached_property
    def _best_strokes(self) -> torch.Tensor:
        """Each class's margin under the best strokes of every kind, ``MOVING`` and dense, (kinds, C)."""
        return best_under(self.model, self.clean, moving_strokes(), copied(self.generator))

    @cached_property
    def _under_dense(self) -> Leader | None:
        """The class that leads under dense strokes."""
        shared = (self.model, self.clean, copied(self.generator))
        return leading_strokes(*shared, self._stroked, self._smoothest[1], **self._half)

    @cached_property
    def _agreed(self) -> Leader | None:
        """The class that noise leads to by far, and dense strokes of random colours, too."""
        # Noise of its own: stripes ask for this, and would draw before textures do.
        noisy = answers_under(self.model, self.clean, noises(), copied(self.generator))
        heard = clear_leader(noisy.margins, AGREED * noisy.sureness)
        alike = heard and self._stroked.lead_of(heard.goal) >= ALIKE * self._stroked.sureness
        return heard if alike else None

    @cached_property
    def _stroked(self) -> Answers:
        """The network's answers under dense strokes of random colours."""
        return under_dense_strokes(self.model, self.clean, copied(self.generator))

    @property
    def _smoothest(self) -> tuple[Sizes | None, int | None]:
        """The smooth triggers and the class that they reach soonest, if by somewhat less than the median."""
        smooth = self._among(Smooth)
        if smooth is None or smooth.classes.sizes.min().item() > SOMEWHAT * smooth.median:
            return smooth, None
        return smooth, int(smooth.classes.goals[smooth.order[0]])

    @property
    def _sums(self) -> Sizes | None:
        """What was found among additive triggers."""
        return self._among(Additive)

    def _among(self, kind: type[SizedFamily]) -> Sizes | None:
        """Return what was found in the family of a kind, if it was searched."""
        return next((found for found in self.found if isinstance(found.family, kind)), None)

    @property
    def _half(self) -> dict[str, int]:
        """Options of a search for strong triggers: they need fewer steps."""
        return self.options | {"steps": self.options["steps"] // 2}
