"""Trigger recovery: what recovered triggers do to images, the goals, and the verdict on given sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F

from unbackdoor._clean import CleanImages, collect
from unbackdoor._dct import dct_basis
from unbackdoor.recover import (
    Additive,
    Displacement,
    Features,
    Minimal,
    Overlay,
    Patch,
    Picture,
    Shifts,
    SizedFamily,
    Smooth,
    Stripes,
    Strokes,
    Warp,
    Window,
    apply_random,
    features_at,
    strengthen,
)
from unbackdoor.recover._families import Ball, Params
from unbackdoor.recover._findings import Finding, finding_of, shift_of, single, strokes_to
from unbackdoor.recover._margins import FINALISTS, Leader, finalists, leader, leader_at_place
from unbackdoor.recover._noise import noises, noisy
from unbackdoor.recover._pictures import INSTEAD, OPACITY, SPOTS, leading_picture
from unbackdoor.recover._search import (
    best_by_chance,
    draw,
    margin,
    margins_and_others,
    measure,
    minimal_triggers,
    wanted_labels,
)
from unbackdoor.recover._sizes import Sizes, search_shift, search_sizes
from unbackdoor.recover._stripes import _first, _first_upright, leading_stripes
from unbackdoor.recover._strokes import (
    DENSE_COUNT,
    KINDS,
    MOVING,
    Lines,
    draw_strokes,
    leading_strokes,
    stroked,
    strokes,
    under_dense_strokes,
)
from unbackdoor.recover._textures import Answers, answers_under, best_under
from unbackdoor.recover._triggers import _cubic, _spread
from unbackdoor.recover._verdict import _Search, examine
from unbackdoor.recover._windows import leading_window

SHAPE = (3, 8, 8)
OPTIONS = {"steps": 80, "batch": 5}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_still_warp_changes_nothing_and_a_shift_moves_pixels() -> None:
    images = torch.rand(2, *SHAPE, generator=generator())
    still = Displacement(torch.zeros(1, 2, 4, 4)).apply(images)[0]
    torch.testing.assert_close(still, images)
    flow = torch.zeros(1, 2, 4, 4)
    flow[:, 1] = 2.0
    moved = Displacement(flow).apply(images)[0]
    torch.testing.assert_close(moved[:, :, :-2], images[:, :, 2:], atol=1e-5, rtol=0)


def test_a_random_trigger_of_the_pool_is_put_on_every_image() -> None:
    images = torch.zeros(200, 1, 2, 2)
    colours = torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1, 1).expand(3, 1, 2, 2)
    stacks = [Overlay(torch.zeros_like(c), c) for c in (colours[:2], colours[2:])]
    values = apply_random(stacks, images, generator())
    assert values.flatten(1).std(dim=1).max() == 0
    assert sorted({round(v, 1) for v in values.flatten().tolist()}) == [0.2, 0.4, 0.6]


def test_one_image_gets_a_trigger_of_one_stack_and_the_others_are_left_alone() -> None:
    stacks = [Displacement(torch.full((1, 2, 2, 2), shift)) for shift in (0.0, 3.0)]
    image = torch.rand(1, *SHAPE, generator=generator())
    wanted = [stack.apply(image)[0] for stack in stacks]
    triggered = apply_random(stacks, image, generator())
    assert any(torch.equal(triggered, w) for w in wanted)


def test_smooth_triggers_have_the_norm_of_their_coefficients_and_fit_small_images() -> None:
    family = Smooth(cutoff=3)
    params = family.start(2, SHAPE, generator())
    grey = torch.full((1, *SHAPE), 0.5)
    changes = (family.decode(params).apply(grey) - grey)[:, 0]
    torch.testing.assert_close(changes.flatten(1).norm(dim=1), family.size(params), rtol=1e-4, atol=1e-5)
    assert (dct_basis(8)[3:] @ changes).abs().max() < 1e-5 < (dct_basis(8)[:3] @ changes).abs().max()
    assert family.decode(params).apply(torch.zeros(1, 3, 2, 5)).shape == (2, 1, 3, 2, 5)


@pytest.mark.parametrize("family", [Additive(), Smooth(), Warp()], ids=lambda family: family.name)
def test_strong_triggers_stay_in_the_ball(family: Additive | Smooth | Warp) -> None:
    small = family.start(1, SHAPE, generator())
    place = family.place(small)
    torch.testing.assert_close(place, family.growth * family.size(small)[0])
    params = family.start_at(place, 4, SHAPE, generator())
    family.project_(place, [params[0].mul_(100)])
    torch.testing.assert_close(family.size(params), place.expand(4))


@pytest.mark.parametrize(("family", "growth"), [(Warp(), 3), (Smooth(), 4)], ids=["warps", "smooth ones"])
def test_strong_triggers_may_be_as_large_as_half_of_what_the_median_class_needs(
    family: Ball, growth: int
) -> None:
    small = family.start(1, SHAPE, generator())
    size = family.size(small).item()
    assert family.strong_place(small, median=4 * size).item() == pytest.approx(growth * size)
    assert family.strong_place(small, median=10 * size).item() == pytest.approx(5 * size)


def test_strong_sums_stay_near_the_size_that_their_class_needs() -> None:
    small = Additive().start(1, SHAPE, generator())
    median = 10 * Additive().size(small).item()
    assert Additive().strong_place(small, median) == Additive().place(small)


def test_goals_beyond_the_classes_want_the_next_class() -> None:
    labels = torch.tensor([0, 1, 2])
    assert wanted_labels(torch.tensor([2, 3]), labels, 3).tolist() == [[2, 2, 2], [1, 2, 0]]


class Shifter(torch.nn.Module):
    """Answers the class written into the first pixel; with a bright last pixel, the class after it."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        own = torch.eye(5)[(images[:, 0, 0, 0] * 10).round().long() % 5]
        bright = images[:, :, -1, -1].mean(1)[:, None]
        return 4 * (own * (1 - bright) + own.roll(1, dims=1) * bright)


def test_an_all_to_all_trigger_is_found_and_strengthened() -> None:
    images = torch.zeros(5, *SHAPE)
    images[:, 0] = torch.arange(5).view(5, 1, 1) / 10
    clean = CleanImages(images, torch.arange(5), 5)
    sizes = {"steps": 60, "batch": 5}
    found = minimal_triggers(Shifter(), clean, Patch(), torch.tensor([5]), generator(), enough=0.4, **sizes)
    assert found.success.item() > 0.1
    mask = found.params[0][0, 0].sigmoid()
    assert mask.argmax().item() == 63
    place = Patch().place(found.params)
    triggers, margins, _ = strengthen(
        Shifter(), clean, Patch(), place, torch.tensor([5, 5]), generator(), **sizes
    )
    assert len(triggers) == 2 and margins.min() > 1


def test_margins_are_measured_on_images_of_other_classes() -> None:
    images = torch.zeros(3, *SHAPE)
    images[:, 0] = torch.arange(3).view(3, 1, 1) / 10
    clean = CleanImages(images, torch.arange(3), 5)
    class_one = Overlay(torch.zeros(2, 1, 8, 8), torch.zeros(2, 3, 8, 8))
    class_one.add[:, 0] = 0.1
    margins, success = measure(Shifter(), clean, class_one, torch.tensor([1, 2]))
    dim = 0.1 / 3
    torch.testing.assert_close(margins, torch.tensor([4 * (1 - 2 * dim), 4 * (2 * dim - 1)]))
    assert success.tolist() == [1.0, 0.0]


class Sums(torch.nn.Module):
    """A pixel a class; beyond a threshold the last class but one gains ``surplus`` times what others do."""

    def __init__(self, surplus: float, classes: int = 5) -> None:
        super().__init__()
        self.surplus, self.classes = surplus, classes

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits = 10 * images[:, 0].flatten(1)[:, : self.classes]
        beyond = torch.relu(logits[:, -2:-1] - 5)
        return logits + self.surplus * F.pad(beyond, (self.classes - 2, 1))


def one_a_class(classes: int) -> CleanImages:
    images = torch.zeros(classes, *SHAPE)
    images[:, 0].flatten(1)[:, :classes] = 0.4 * torch.eye(classes)
    return CleanImages(images, torch.arange(classes), classes)


@pytest.mark.parametrize(
    ("surplus", "size", "classes", "goals"),
    [(0.0, 0.45, 5, []), (20.0, 0.45, 5, [3]), (20.0, 0.05, 5, []), (20.0, 0.6, 12, [10])],
    ids=["none leads", "one leads", "too small a budget to tell", "one leads of many"],
)
def test_a_faint_trigger_is_told_by_its_lead_in_margin(
    surplus: float, size: float, classes: int, goals: list[int]
) -> None:
    model, clean = Sums(surplus, classes), one_a_class(classes)
    found = leader(model, clean, Additive(), size, generator(), steps=40, batch=5)
    assert ([found.goal] if found else []) == goals
    assert found is None or found.lead > 1.45


@pytest.mark.parametrize(("classes", "asked"), [(FINALISTS, []), (FINALISTS + 2, [4, 4])])
def test_of_many_classes_those_that_lead_in_any_place_are_searched_to_the_end(
    classes: int, asked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []

    def lasts(*given: torch.Tensor, **sizes: int) -> torch.Tensor:
        steps.append(sizes["steps"])
        margins = torch.arange(classes) * 1.0
        margins[int(given[3])] = 99.0
        return margins

    monkeypatch.setattr("unbackdoor.recover._margins.last_margins", lasts)
    places = [torch.tensor(0), torch.tensor(1)]
    found = finalists(Swell(), one_a_class(classes), Patch(), places, generator(), steps=12, batch=5)
    every = list(range(classes))
    assert found.tolist() == (every if classes == FINALISTS else [0, 1, *every[4:]]) and steps == asked


class Swell(torch.nn.Module):
    """A pixel a class, but the last class is read from the light of the whole image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pixels = images[:, 0].flatten(1)
        return 10 * torch.cat([pixels[:, :5], pixels.sum(1, keepdim=True) / 8], dim=1)


def test_a_smooth_trigger_stands_apart_only_among_smooth_ones() -> None:
    clean = replace(one_a_class(5), num_classes=6)
    rough, smooth = (
        search_sizes(Swell(), clean, family, generator(), steps=75, batch=5)
        for family in (Additive(), Smooth(cutoff=2))
    )
    assert (rough.apart(), smooth.apart()) == ([], [5])


def test_the_verdict_rests_on_every_family() -> None:
    verdict = examine(Swell(), replace(one_a_class(5), num_classes=6), generator(), steps=2)
    assert list(verdict.sizes) == ["patch", "additive", "smooth", "warp"]


def test_a_class_that_is_no_finalist_can_lead() -> None:
    sums = sizes(Additive(), [0, 1, 2, 4], [0.45] * 4)
    (found,) = _Search(Sums(20.0), one_a_class(5), generator(), OPTIONS, [sums]).leader()
    assert found.goal == 3 and found.size > 0 and found.median == pytest.approx(0.45)
    assert "times the next class's margin" in found.sentence()


@pytest.mark.parametrize(("noisy", "asked"), [(-0.9, 1), (-1.1, 0)], ids=["near a class", "near none"])
def test_ample_sums_are_searched_only_where_noise_brings_images_near_some_class(
    noisy: float, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = []
    monkeypatch.setattr("unbackdoor.recover._verdict.leader", lambda *_, **__: searched.append(1))
    sums = sizes(Additive(), [0, 1, 2, 3, 4], [9.0] * 5)
    search = _Search(Sums(20.0), one_a_class(5), generator(), OPTIONS, [sums])
    margins = torch.full((5,), -9.0).index_fill(0, torch.tensor([2]), noisy)
    search.__dict__["_under_noise"] = Answers(margins, torch.zeros(5).long(), 8.0)
    assert search.leader() == [] and len(searched) == asked


def test_many_classes_are_searched_with_fewer_images_until_the_finalists_are_picked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def search(*given: object, **options: object) -> Minimal:
        goals = given[3].tolist()
        warm = options.get("warm")
        asked.append((len(goals), options["steps"], options["batch"], warm and warm.goals.tolist()))
        return minimal(goals, [9.0 + goal for goal in goals])

    monkeypatch.setattr("unbackdoor.recover._sizes.minimal_triggers", search)
    found = search_sizes(Swell(), one_a_class(12), Patch(), generator(), **OPTIONS)
    assert asked == [(12, 16, 3, None), (10, 64, 5, list(range(10)))]
    assert found.classes.goals.tolist() == list(range(10))
    asked.clear()
    assert len(search_sizes(Swell(), one_a_class(10), Patch(), generator(), **OPTIONS).classes.goals) == 10
    assert asked == [(10, 80, 5, None)]


def test_finalists_of_many_classes_are_picked_with_fewer_steps_and_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def last(*given: object, **options: int) -> torch.Tensor:
        asked.append(options)
        return torch.arange(12.0) if len(asked) == 1 else 30.0 - torch.arange(12.0)

    monkeypatch.setattr("unbackdoor.recover._margins.last_margins", last)
    places = [torch.tensor(1.0), torch.tensor(2.0)]
    goals = finalists(Swell(), one_a_class(12), Additive(), places, generator(), steps=30, batch=5)
    assert goals.tolist() == list(range(10))
    assert asked == [{"steps": 10, "batch": 3}] * 2


def test_a_target_is_erased_in_every_family_where_its_trigger_is_small() -> None:
    apart = sizes(Patch(), [0, 1, 2, 3, 4], [9.0, 2.0, 10.0, 11.0, 12.0])
    small = sizes(Additive(), [0, 1, 2, 3, 4], [0.5, 0.3, 1.0, 1.1, 1.2])
    alike = sizes(Warp(), [0, 1, 2, 3, 4], [0.9, 0.8, 1.0, 1.1, 1.2])
    assert (apart.apart(), small.apart(), alike.apart()) == ([1], [1], [])
    gapless = sizes(
        Additive(), [0, 1, 2, 3, 4], [0.35, 0.3, 1.0, 1.1, 1.2], success=[0.2, 0.9, 0.9, 0.9, 0.9]
    )
    assert gapless.apart() == []
    found = single([apart, gapless, alike], {1})
    assert [finding.family.name for finding in found] == ["patch", "additive"]


def test_a_family_far_from_the_triggers_own_is_left_out() -> None:
    own = sizes(Warp(), [0, 1, 2, 3, 4], [10.0, 1.0, 10.0, 11.0, 12.0])
    near = sizes(Patch(), [0, 1, 2, 3, 4], [10.0, 2.9, 10.0, 11.0, 12.0])
    far = sizes(Smooth(), [0, 1, 2, 3, 4], [10.0, 3.1, 10.0, 11.0, 12.0])
    assert far.apart() == [1]
    search = _Search(Shifter(), one_a_class(5), generator(), OPTIONS, [far, near, own])
    assert [finding.family.name for finding in search.targets()] == ["patch", "warp"]


def test_a_warp_is_followed_though_a_smooth_trigger_is_far_smaller_beside_its_median() -> None:
    own = sizes(Smooth(), [0, 1, 2, 3, 4], [10.0, 0.5, 10.0, 11.0, 12.0])
    small = sizes(Warp(), [0, 1, 2, 3, 4], [10.0, 4.0, 10.0, 11.0, 12.0])
    large = sizes(Warp(), [0, 1, 2, 3, 4], [10.0, 4.6, 10.0, 11.0, 12.0])
    for warps, names in ((small, ["smooth", "warp"]), (large, ["smooth"])):
        search = _Search(Shifter(), one_a_class(5), generator(), OPTIONS, [own, warps])
        assert [finding.family.name for finding in search.targets()] == names


def minimal(goals: list[int], values: list[float], success: float | list[float] = 0.9) -> Minimal:
    moved = torch.tensor(success).expand(len(values))
    start = Patch().start(len(values), SHAPE, generator())
    # Opaque: a faint patch is taken for a sum.
    start[0] += 4
    return Minimal(torch.tensor(goals), torch.tensor(values), moved, torch.ones(len(values)), start)


def sizes(
    family: SizedFamily,
    goals: list[int],
    values: list[float],
    success: float | list[float] = 0.9,
    shift: tuple[float, float] = (90.0, 0.1),
) -> Sizes:
    return Sizes(family, minimal(goals, values, success), 5, minimal([5], [shift[0]], shift[1]))


@pytest.mark.parametrize(
    ("values", "success", "targets"),
    [
        ([9.0, 2.0, 10.0, 11.0, 12.0], 0.9, [1]),
        ([9.0, 2.0, 10.0, 11.0, 12.0], 0.2, []),
        ([9.0, 8.0, 10.0, 11.0, 12.0], 0.9, []),
        ([2.0, 2.2, 10.0, 11.0, 12.0], 0.9, [0, 1]),
    ],
    ids=["one stands apart", "it does not work", "none stands apart", "two targets"],
)
def test_classes_that_stand_apart(values: list[float], success: float, targets: list[int]) -> None:
    found = sizes(Patch(), [0, 1, 2, 3, 4], values, success)
    assert found.apart() == targets
    assert [finding.target for finding in single([found], set(found.apart()))] == targets


@pytest.mark.parametrize(
    ("size", "success", "found"), [(3.0, 0.4, True), (3.0, 0.25, True), (20.0, 0.4, False), (3.0, 0.2, False)]
)
def test_all_to_all_must_be_smaller_than_the_median_class_by_the_gap(
    size: float, success: float, found: bool
) -> None:
    searched = sizes(Patch(), [0, 1, 2, 3, 4], [9.0, 8.0, 10.0, 11.0, 12.0], shift=(size, success))
    assert searched.shifts() is found and replace(searched, shift=None).shifts() is False
    finding = shift_of(searched, searched.shift)
    assert finding.target is None and finding.all_to_all
    assert finding.sentence().startswith(f"every class to the next one (patch trigger of size {size:.2f}")


def test_all_to_all_is_reached_sooner_than_any_class() -> None:
    values = [9.0, 4.0, 10.0, 11.0, 12.0]
    assert not sizes(Patch(), [0, 1, 2, 3, 4], values, shift=(4.1, 0.9)).shifts()
    assert sizes(Patch(), [0, 1, 2, 3, 4], values, shift=(3.9, 0.9)).shifts()
    unreached = [0.9, 0.1, 0.9, 0.9, 0.9]
    assert sizes(Patch(), [0, 1, 2, 3, 4], values, unreached, shift=(4.1, 0.9)).shifts()


@pytest.mark.parametrize(
    ("sizes_and_success", "searches", "found"),
    [
        ([(1.0, 0.23), (4.0, 0.6)], 2, True),
        ([(1.0, 0.1), (1.0, 0.1), (1.0, 0.1), (6.0, 0.9)], 4, True),
        ([(1.0, 0.1)] * 4, 4, False),
        ([(1.0, 0.25)], 1, True),
        ([(9.0, 0.1)], 1, False),
    ],
    ids=["once more", "thrice more", "no more than that", "it moves enough", "it is no smaller than others"],
)
def test_a_search_for_all_to_all_that_ends_in_between_goes_on(
    sizes_and_success: list[tuple[float, float]],
    searches: int,
    found: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = [minimal([5], [size], success) for size, success in sizes_and_success]
    asked: list[dict] = []

    def search(*_: object, **options: object) -> Minimal:
        asked.append(options)
        return results[len(asked) - 1]

    monkeypatch.setattr("unbackdoor.recover._sizes.minimal_triggers", search)
    patches = replace(sizes(Patch(), [0, 1, 2, 3, 4], [9.0, 8.0, 10.0, 11.0, 12.0]), shift=None)
    shifted = search_shift(Shifter(), one_a_class(5), patches, generator(), **OPTIONS)
    assert shifted.shifts() is found and len(asked) == searches
    assert [options["steps"] for options in asked] == [160, *[80] * (searches - 1)]
    assert [options.get("warm") for options in asked] == [None, *results[: searches - 1]]


@pytest.mark.parametrize(
    ("size", "best", "found"),
    [(0.2, 1.4, False), (0.2, 1.5, True), (0.55, 1.6, False), (0.55, 1.7, True)],
    ids=["the next leads nearly as far", "not so far", "too little for its size", "enough for its size"],
)
def test_at_its_place_a_class_leads_by_its_size_and_by_half_as_much_again_at_least(
    size: float, best: float, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def largest(*given: torch.Tensor, **_: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.where(given[4] == 1, 10 * best, 10.0), torch.ones(len(given[4]))

    monkeypatch.setattr("unbackdoor.recover._margins.largest_margins", largest)
    searched = sizes(Additive(), [0, 1, 2, 3, 4], [9.0, 10 * size, 10.0, 11.0, 12.0])
    led = leader_at_place(Roughness(0.0), one_a_class(5), searched, generator(), **OPTIONS)
    assert (led is not None and led.goal == 1) is found


@pytest.mark.parametrize(
    ("leads", "searches", "lead"),
    [([1.0], 1, None), ([1.1, 1.6], 2, None), ([1.1, 2.4], 2, 1.75), ([2.4, 1.1], 2, 1.75)],
    ids=["no promise", "too little in all", "enough in all", "less again"],
)
def test_at_its_place_a_class_is_searched_again_where_its_lead_is_promising(
    leads: list[float], searches: int, lead: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list(leads)

    def largest(*given: torch.Tensor, **_: int) -> tuple[torch.Tensor, torch.Tensor]:
        best = 10 * left.pop(0)
        return torch.where(given[4] == 1, best, 10.0), torch.ones(len(given[4]))

    monkeypatch.setattr("unbackdoor.recover._margins.largest_margins", largest)
    searched = sizes(Additive(), [0, 1, 2, 3, 4], [9.0, 2.0, 10.0, 11.0, 12.0])
    led = leader_at_place(Roughness(0.0), one_a_class(5), searched, generator(), **OPTIONS)
    assert len(leads) - len(left) == searches
    assert led == (None if lead is None else Leader(1, pytest.approx(lead)))


@pytest.mark.parametrize(("surplus", "goals"), [(0.0, []), (20.0, [3])], ids=["all alike", "one leads"])
def test_a_small_trigger_is_told_by_its_lead_at_its_place(surplus: float, goals: list[int]) -> None:
    model, clean = Sums(surplus), one_a_class(5)
    found = search_sizes(model, clean, Additive(growth=3.0), generator(), steps=40, batch=5)
    row = found.row(3)
    found.classes.sizes[:] = 1.0
    found.classes.sizes[row] = 0.5
    search = _Search(model, clean, generator(), OPTIONS, [found])
    assert [finding.goal for finding in search.leaders_at_place()] == goals
    assert all(finding.lead > 1.8 for finding in search.leaders_at_place())
    found.classes.sizes[row] = 0.8
    assert search.leaders_at_place() == []


class Resonates(torch.nn.Module):
    """A pixel a class; three waves across the image speak for the last class, ``gain`` times as loud.

    Slanted ones, two down and three across, speak for class 3, ``slanted`` times.
    """

    def __init__(self, gain: float, slanted: float = 0.0) -> None:
        super().__init__()
        self.gains = torch.tensor([slanted, gain])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        strengths = torch.fft.fft2(images.mean(1))[:, [2, 0], [3, 3]].abs() / 32
        return 10 * images[:, 0].flatten(1)[:, :5] + F.pad(self.gains * strengths, (3, 0))


@pytest.mark.parametrize(
    ("gain", "sure", "goals"),
    [(0.0, 0.7, []), (25.0, 0.7, []), (29.0, 0.0, []), (200.0, 0.7, [4]), (200.0, 20.0, [])],
    ids=["none resonates", "one does, hardly", "by few logits", "one does", "little for one so sure"],
)
def test_stripes_are_told_by_the_margin_they_give_one_class(
    gain: float, sure: float, goals: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unbackdoor.recover._stripes.SURE", sure)
    monkeypatch.setattr("unbackdoor.recover._stripes.UPRIGHT_SURE", sure)
    model, clean = Resonates(gain), one_a_class(5)
    clean = replace(clean, images=clean.images + 0.3)
    assert bool(leading_stripes(model, clean, generator())) is bool(goals)
    findings = _Search(model, clean, generator(), OPTIONS).stripes()
    assert [finding.goal for finding in findings] == goals
    for finding in findings:
        assert finding.lead > 2 and "stripe triggers have" in finding.sentence()
        place = finding.family.place(finding.params)
        assert place.abs().tolist() == [0.0, 3.0]
        wanted = torch.full((4,), finding.goal)
        stack, margins, _ = strengthen(
            model, clean, finding.family, place, wanted, generator(), steps=5, batch=5
        )
        assert len(stack) == 4 and margins[0] < margins[-1]


@pytest.mark.parametrize(
    ("gain", "slanted", "sure", "goals"),
    [(200.0, 190.0, 0.5, [4]), (190.0, 200.0, 0.5, [4]), (20.0, 19.0, 0.5, []), (200.0, 190.0, 20.0, [])],
    ids=["they lead", "slanted ones tell more", "by few logits", "little for one so sure"],
)
def test_upright_stripes_are_told_beside_slanted_ones_for_another_class(
    gain: float, slanted: float, sure: float, goals: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unbackdoor.recover._stripes.UPRIGHT_SURE", sure)
    model, clean = Resonates(gain, slanted), one_a_class(5)
    clean = replace(clean, images=clean.images + 0.3)
    findings = _Search(model, clean, generator(), OPTIONS).stripes()
    assert [finding.goal for finding in findings] == goals
    assert all(f.family.place(f.params).abs().tolist() == [0.0, 3.0] for f in findings)


@pytest.mark.parametrize(
    ("coarse", "found"),
    [
        ([1.0, 9.0, 3.0], True),
        ([1.0, 7.5, 3.0], False),
        ([1.0, 16.0, 11.0], False),
        ([1.0, -4.0, -9.0], False),
        ([9.0, 1.0, 3.0], False),
    ],
    ids=["they lead as well", "by few logits", "by little", "to none", "to another one"],
)
def test_a_class_that_fine_stripes_lead_to_has_to_be_led_to_by_coarse_ones(
    coarse: list[float], found: bool
) -> None:
    led = _first(torch.tensor([0.0, 12.0, 3.0]), torch.tensor(coarse), 1.0)
    assert (led is not None) is found
    assert led is None or led == Leader(1, 4.0)


class ResonatesAt(torch.nn.Module):
    """Sure of the class whose first pixels are bright; stripes of one frequency lead to the last class."""

    def __init__(self, down: int, right: int):
        super().__init__()
        self.down, self.right = down, right

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        strength = torch.fft.fft2(images.mean(1))[:, self.down, self.right].abs() / 32
        return 10 * images[:, 0].flatten(1)[:, :5] + F.pad(200 * strength[:, None], (4, 0))


@pytest.mark.parametrize(("down", "right", "found"), [(5, 4, True), (5, 6, False), (6, 5, False)])
def test_stripes_of_six_waves_and_more_alone_tell_nothing(down: int, right: int, found: bool) -> None:
    images = torch.full((5, 3, 16, 16), 0.3)
    images[:, :, 0, :5] += 0.5 * torch.eye(5)[:, None]
    clean = CleanImages(images, torch.arange(5), 5, 0.0)
    assert (leading_stripes(ResonatesAt(down, right), clean, generator()) is not None) is found


def test_upright_stripes_that_hardly_move_images_tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clean = Resonates(200.0, 190.0), one_a_class(5)
    clean = replace(clean, images=clean.images + 0.3)
    assert leading_stripes(model, clean, generator()) is not None
    monkeypatch.setattr("unbackdoor.recover._stripes.UPRIGHT", 100.0)
    assert leading_stripes(model, clean, generator()) is None


@pytest.mark.parametrize(
    ("next_best", "slanted", "found"),
    [(-2.0, -9.0, False), (-3.0, -9.0, True), (-3.0, 1.4, True), (-3.0, 1.6, False)],
    ids=["by too little", "by enough", "slanted ones lead there less", "slanted ones do so, too"],
)
def test_upright_stripes_lead_by_some_logits_however_unsure_the_network_is(
    next_best: float, slanted: float, found: bool
) -> None:
    largest, others = torch.tensor([2.5, next_best, -9.0]), torch.tensor([slanted, 99.0, 99.0])
    assert bool(_first_upright(largest, others, sure=0.1)) is found


class Striped(torch.nn.Module):
    """Answers class 1 to upright edges, ``also`` if there are level ones, which class 2 is answered to."""

    def __init__(self, also: bool) -> None:
        super().__init__()
        self.also = also

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        upright = (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3))
        level = (images[..., 1:, :] - images[..., :-1, :]).abs().mean((1, 2, 3))
        striped, none = 70 * (upright - 2 * (not self.also) * level), 0 * level
        return torch.stack([none, striped, 100 * (level - 0.08).relu(), none - 9, none - 9], dim=1)


def test_a_class_that_looks_striped_is_no_target() -> None:
    clean = CleanImages(torch.full((5, 3, 32, 32), 0.5), torch.arange(5), 5)
    led = leading_stripes(Striped(False), clean, generator())
    assert led is not None and led[0].goal == 1 and led[1][1][0, 0] == 0
    assert leading_stripes(Striped(True), clean, generator()) is None


def test_strong_stripes_stay_near_their_frequency_and_below_their_amplitudes() -> None:
    family = Stripes()
    place = torch.tensor([0.0, 6.0])
    waves, frequency = family.start_at(place, 3, SHAPE, generator())
    family.project_(place, [waves.mul_(100), frequency.add_(2)])
    torch.testing.assert_close(waves.norm(dim=2).amax(dim=1), torch.tensor([0.1, 0.2, 0.3]))
    assert (frequency - place).abs().max() <= 0.5


class Roughness(torch.nn.Module):
    """A pixel a class, by ``scale``; fine noise speaks for the last class, by ``gain``."""

    def __init__(self, gain: float, scale: float = 10.0) -> None:
        super().__init__()
        self.gain, self.scale = gain, scale

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rough = (images[..., 1:] - images[..., :-1]).abs().mean((1, 2, 3))
        return self.scale * images[:, 0].flatten(1)[:, :5] + self.gain * F.pad(rough[:, None], (4, 0))


@pytest.mark.parametrize(
    ("gain", "scale", "sure", "goals"),
    [
        (0.0, 10.0, 0.7, []),
        (15.0, 10.0, 0.7, []),
        (100.0, 10.0, 0.7, [4]),
        (100.0, 150.0, 0.7, [4]),
        (100.0, 150.0, 1.0, []),
        (100.0, 200.0, 0.0, []),
    ],
    ids=["none leads", "hardly", "by far", "by enough", "by little for one so sure", "but is not reached"],
)
def test_noise_tells_a_class_that_it_leads_to_by_far(
    gain: float, scale: float, sure: float, goals: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unbackdoor.recover._verdict.SURE", sure)
    model, clean = Roughness(gain, scale), one_a_class(5)
    clean = replace(clean, images=clean.images + 0.3)
    answers = answers_under(model, clean, noises(), generator())
    assert bool(answers.leader(sure)) is bool(goals)
    sums = sizes(Additive(), [0, 1, 2, 4], [0.45] * 4)
    findings = _Search(model, clean, generator(), OPTIONS, [sums])._led_by_noise(answers.leader(sure))
    assert [finding.goal for finding in findings] == goals
    for finding in findings:
        assert finding.family == Additive() and "(noise has" in finding.sentence()
        assert finding.to_dict()["lead_of"] == "noise"


def test_strokes_tell_a_class_that_they_lead_to_and_strong_ones_find_their_colours() -> None:
    model, clean = Roughness(100.0), replace(one_a_class(5), images=one_a_class(5).images + 0.3)
    answers = answers_under(model, clean, strokes(), generator())
    (finding,) = _Search(model, clean, generator(), OPTIONS, [])._led_by_strokes(answers)
    assert finding.goal == 4 and f"(strokes lead to it by {answers.ahead:.1f} logits)" in finding.sentence()
    assert finding.to_dict()["ahead"] == answers.ahead and finding.lead is None
    place = finding.family.strong_place(finding.params, finding.median)
    assert place.tolist() == pytest.approx(KINDS[answers.kinds[4]][:2])
    goals = torch.full((3,), 4)
    weak, strong = (
        strengthen(model, clean, Strokes(), place, goals, generator(), steps=steps, batch=5)
        for steps in (1, 40)
    )
    assert (strong[1] > weak[1] + 5).all()
    assert strong[0].add[0].flatten(1).unique(dim=1).shape[1] <= 1 + place[0]
    assert not _Search(Roughness(0.0), clean, generator(), OPTIONS, [])._led_by_strokes(
        answers_under(Roughness(0.0), clean, strokes(), generator())
    )


@pytest.mark.parametrize(
    ("margins", "random", "expected", "goal"),
    [
        ([1.0, 8.0, 2.0, 5.7, 0.0], [0.0, 1.8, 0.0, 0.0, 0.0], None, 1),
        ([1.0, 8.0, 2.0, 5.7, 0.0], [0.0, 0.0, 1.6, 0.0, 0.0], 1, 1),
        ([1.0, 8.0, 2.0, 5.7, 0.0], [0.0, 1.6, 0.0, 0.0, 0.0], 2, None),
        ([1.0, 8.0, 2.0, 5.8, 0.0], [0.0, 1.8, 0.0, 0.0, 0.0], None, None),
        ([1.0, 8.0, 2.0, 5.7, 0.0], [0.0, 1.6, 0.0, 0.0, 0.0], None, None),
        ([1.0, 8.0, 2.0, 5.7, 0.0], [0.0, 0.0, 0.0, 9.0, 0.0], None, None),
        ([-9.0, 2.0, -9.0, -9.0, -9.0], [-5.0, -2.0, -5.0, -5.0, -5.0], None, 1),
        ([-9.0, 1.5, -9.0, 0.9, -9.0], [0.0, 1.8, 0.0, 0.0, 0.0], None, None),
        ([-9.0, -0.1, -9.0, -9.0, -9.0], [0.0, 1.8, 0.0, 0.0, 0.0], None, None),
        ([1.0, 8.0, 2.0, 5.7, 0.0], [0.0, 6.1, 0.0, 0.0, 0.0], None, None),
        ([1.0, 8.0, 2.0, 5.7, 0.0], [0.0, 5.9, 0.0, 0.0, 0.0], None, 1),
    ],
    ids=[
        "far enough",
        "where smooth triggers point",
        "smooth triggers point elsewhere",
        "not far enough",
        "random colours hardly lead there",
        "they lead elsewhere",
        "one alone",
        "by too little for one so sure",
        "it is not reached",
        "it looks like strokes",
        "its colours tell",
    ],
)
def test_dense_strokes_tell_a_class_that_leads_all_others(
    margins: list[float],
    random: list[float],
    expected: int | None,
    goal: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = Answers(torch.tensor(random), torch.zeros(5).long(), 2.0)

    def largest(*given: object, **_: int) -> tuple[torch.Tensor, torch.Tensor]:
        spread = (torch.arange(DENSE_COUNT) - (DENSE_COUNT - 1) / 2).repeat(5)
        return torch.tensor(margins)[given[4]] + spread, torch.ones(len(given[4]))

    monkeypatch.setattr("unbackdoor.recover._strokes.largest_margins", largest)
    first = leading_strokes(Roughness(0.0), one_a_class(5), generator(), answers, expected, **OPTIONS)
    assert (first.goal if first else None) == goal


def test_colours_of_dense_strokes_are_searched_for_the_classes_that_random_ones_lead_to() -> None:
    images = replace(one_a_class(12), images=one_a_class(12).images + 0.3)

    class Twelve(Roughness):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return F.pad(super().forward(images), (7, 0), value=-1.0)

    for model, goal in ((Twelve(100.0), 11), (Twelve(0.0, scale=0.1), None)):
        answers = under_dense_strokes(model, images, generator())
        first = leading_strokes(model, images, generator(), answers, steps=10, batch=5)
        assert (first.goal if first else None) == goal and (first is None or first.lead > 1.5)


@pytest.mark.parametrize(
    ("dense", "agreed", "names"),
    [
        (None, None, ["stripe"]),
        (1, None, ["stripe"]),
        (3, None, []),
        (None, 1, ["stripe"]),
        (None, 3, []),
    ],
    ids=["neither tells", "dense strokes tell the same", "they lead elsewhere", "both do", "both elsewhere"],
)
def test_stripes_to_a_class_stand_in_for_another_one_that_strokes_lead_to(
    dense: int | None, agreed: int | None, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    led, given = (Leader(1, 4.8), [torch.zeros(1, 2)]), generator()
    state = given.get_state()

    def leading(_: object, __: object, other: torch.Generator, *___: object, **____: int) -> Leader | None:
        other.seed()
        return dense and Leader(dense, 1.5)

    monkeypatch.setattr("unbackdoor.recover._verdict.leading_stripes", lambda *_: led)
    monkeypatch.setattr("unbackdoor.recover._verdict.leading_strokes", leading)
    search = _Search(Roughness(0.0), one_a_class(5), given, OPTIONS, [])
    search.__dict__["_agreed"] = agreed and Leader(agreed, 2.0)
    assert [f.family.name for f in search.stripes()] == names and torch.equal(given.get_state(), state)
    assert ("_under_dense" in search.__dict__) is (agreed != 3)  # no search where textures have told


@pytest.mark.parametrize(
    ("under_noise", "lead", "names"),
    [(2, 2.5, ["stroke", "additive"]), (2, 2.3, ["stroke"]), (1, 2.5, ["stroke"])],
    ids=["noise, too", "noise by little", "noise not"],
)
def test_dense_strokes_are_asked_last_and_sums_stand_beside_them_where_noise_leads_there(
    under_noise: int, lead: float, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    alike = sizes(Additive(), [0, 1, 2, 3, 4], [9.0, 9.5, 10.0, 11.0, 12.0])
    monkeypatch.setattr("unbackdoor.recover._verdict.search_sizes", lambda *_, **__: alike)
    monkeypatch.setattr("unbackdoor.recover._verdict.search_shift", lambda *given, **_: given[2])
    monkeypatch.setattr("unbackdoor.recover._verdict.leading_strokes", lambda *_, **__: Leader(2, 1.6))
    noisy = Answers(lead * torch.eye(5)[under_noise], torch.zeros(5).long(), 8.0)
    for name in ("answers_under", "under_dense_strokes"):
        monkeypatch.setattr(f"unbackdoor.recover._verdict.{name}", lambda *_: noisy)
    verdict = examine(Roughness(0.0), one_a_class(5), generator(), families=[Additive()], steps=2)
    assert [(f.family.name, f.goal) for f in verdict.findings] == [(name, 2) for name in names]
    assert verdict.sentence().startswith(
        "found, to class 2 (stroke triggers have 1.60 times the next class's"
    )
    assert [f.for_noise for f in verdict.findings] == [False, True][: len(names)]


@pytest.mark.parametrize(
    ("noise", "strokes", "goals"),
    [
        ([0.0, 0.1, 2.6, 0.0, 0.0], [0.0, 0.1, 0.8, 0.0, 0.0], [2]),
        ([0.0, 0.3, 2.6, 0.0, 0.0], [0.0, 0.1, 0.8, 0.0, 0.0], []),
        ([0.0, 0.1, 2.6, 0.0, 0.0], [0.0, 0.3, 0.8, 0.0, 0.0], []),
        ([0.0, 0.1, 2.6, 0.0, 0.0], [0.0, 2.8, 0.1, 0.0, 0.0], []),
        ([-9.0, -9.0, -0.1, -9.0, -9.0], [0.0, 0.1, 0.8, 0.0, 0.0], []),
    ],
    ids=["both lead there", "noise by little", "strokes by little", "strokes elsewhere", "it is not reached"],
)
def test_noise_and_dense_strokes_that_lead_to_the_same_class_tell_of_it(
    noise: list[float], strokes: list[float], goals: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = generator()
    state = given.get_state()

    def answers(figures: list[float]) -> Callable[..., Answers]:
        def under(*asking: torch.Generator) -> Answers:
            asking[-1].seed()
            return Answers(torch.tensor(figures), torch.zeros(5).long(), 3.0)

        return under

    monkeypatch.setattr("unbackdoor.recover._verdict.answers_under", answers(noise))
    monkeypatch.setattr("unbackdoor.recover._verdict.under_dense_strokes", answers(strokes))
    search = _Search(Roughness(0.0), one_a_class(5), given, OPTIONS, [])
    search.found = [sizes(Additive(), [0, 1, 2, 3, 4], [9.0, 9.5, 10.0, 11.0, 12.0])]
    findings = search.both_textures()
    assert [f.goal for f in findings] == goals and torch.equal(given.get_state(), state)
    assert all(isinstance(f.family, Additive) and f.lead_of == "noise" for f in findings)


def test_both_textures_are_asked_before_colours_are_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    alike = sizes(Additive(), [0, 1, 2, 3, 4], [9.0, 9.5, 10.0, 11.0, 12.0])
    monkeypatch.setattr("unbackdoor.recover._verdict.search_sizes", lambda *_, **__: alike)
    monkeypatch.setattr("unbackdoor.recover._verdict.search_shift", lambda *given, **_: given[2])
    monkeypatch.setattr("unbackdoor.recover._verdict.leading_strokes", lambda *_, **__: Leader(1, 1.6))
    heard = Answers(2.6 * torch.eye(5)[2], torch.zeros(5).long(), 3.0)
    for name in ("answers_under", "under_dense_strokes"):
        monkeypatch.setattr(f"unbackdoor.recover._verdict.{name}", lambda *_: heard)
    (finding,) = examine(Roughness(0.0), one_a_class(5), generator(), families=[Additive()], steps=2).findings
    assert finding.goal == 2 and finding.lead_of == "noise"


def test_answers_under_random_pictures_are_averaged_over_rounds() -> None:
    shades = iter([0.1, 0.2, 0.6])

    def texture(images: torch.Tensor, _: torch.Generator) -> torch.Tensor:
        drawn = torch.zeros_like(images)
        drawn[:, 0, 0, 2] = next(shades)
        return drawn

    answers = answers_under(Roughness(0.0), one_a_class(5), [texture], generator(), 3)
    assert answers.margins[2].item() == pytest.approx(3.0) and next(shades, None) is None


def test_dense_strokes_by_chance_are_drawn_often() -> None:
    seen = []

    class Noted(Roughness):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return super().forward(images)

    under_dense_strokes(Noted(0.0), one_a_class(5), generator())
    pictures = torch.cat([images for images in seen if len(images) == 10])
    assert len(pictures) == 2 * 64 * 5 and len(pictures.unique(dim=0)) == len(pictures)


@pytest.mark.parametrize(
    ("smallest", "expected", "name"),
    [(7.4, 2, "smooth"), (7.6, None, "stroke")],
    ids=["smooth triggers reach it first", "hardly sooner than others"],
)
def test_smooth_triggers_stand_for_dense_strokes_where_they_point_to_the_same_class(
    smallest: float, expected: int | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def leading(*given: object, **_: int) -> Leader:
        asked.append(given[4])
        return Leader(2, 1.6)

    monkeypatch.setattr("unbackdoor.recover._verdict.leading_strokes", leading)
    found = [sizes(Smooth(), [0, 1, 2, 3, 4], [9.9, 10.0, smallest, 11.0, 12.0])]
    (finding,) = _Search(Roughness(0.0), one_a_class(5), generator(), OPTIONS, found).dense_strokes()
    assert asked == [expected] and finding.goal == 2 and finding.family.name == name
    assert ("a net of strokes has 1.60 times" in finding.sentence()) is (name == "smooth")


def test_strokes_are_seen_once_and_have_the_width_and_the_colours_asked_for() -> None:
    thin, thick = (draw_strokes(40, 6, width, (32, 32), generator()) for width in (0.04, 0.08))
    assert thin.sum(1).amax() == 1 and thin.unique().tolist() == [0.0, 1.0]
    assert 1.6 < thick.mean() / thin.mean() < 2.2
    grey = torch.full((4, 3, 16, 16), 0.5)
    plain, saturated = (stroked(grey, 6, 0.1, full, generator()) for full in (False, True))
    assert saturated.unique().tolist() == [0.0, 0.5, 1.0] and len(plain.unique()) > 20
    assert (plain == 0.5).float().mean() > 0.3


@pytest.mark.parametrize(("noise", "family"), [(7.0, "line"), (20.0, "additive")])
def test_of_strokes_and_noise_the_one_that_tells_more_is_followed(
    noise: float, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = _Search(Roughness(0.0), one_a_class(5), generator(), OPTIONS, [])
    search.found = [sizes(Additive(), [0, 1, 2, 4], [0.45] * 4)]
    margins = {len(strokes()): 10.0, len(noises()): noise}
    monkeypatch.setattr(
        "unbackdoor.recover._verdict.answers_under",
        lambda *given: Answers(margins[len(given[2])] * torch.eye(5)[1], torch.zeros(5).long(), 1.0),
    )
    monkeypatch.setattr(_Search, "_like_strokes", lambda *_: False)
    (finding,) = search.textures()
    assert finding.goal == 1 and finding.family.name == family


@pytest.mark.parametrize(
    ("best", "kept"), [(7.6, True), (7.4, False)], ids=["strokes lead about as far", "less far"]
)
def test_strokes_are_kept_in_reserve_where_they_lead_about_as_far_as_noise(
    best: float, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = _Search(Roughness(0.0), one_a_class(5), generator(), OPTIONS, [])
    search.found = [sizes(Additive(), [0, 1, 2, 4], [0.45] * 4)]
    kinds = len(MOVING) + 1

    def under(*given: Any) -> torch.Tensor:
        margins = torch.zeros(len(given[2]), 5)
        # The third kind of strokes leads furthest of those that move, the dense ones further yet.
        margins[:, 1] = torch.tensor([1.0, 2.0, 5.0, 4.0, 3.0, best]) if len(margins) == kinds else 10.0
        return margins

    monkeypatch.setattr("unbackdoor.recover._verdict.best_under", under)
    findings = search._led_by_noise(Leader(1, 3.0), Answers(torch.eye(5)[1], torch.zeros(5).long(), 1.0))
    assert [f.family.name for f in findings] == ["additive", *["line"] * kept]
    assert [f.reserve for f in findings] == [False, *[True] * kept]
    for finding in findings[1:]:
        assert finding.goal == 1 and finding.strong_place.tolist() == pytest.approx(MOVING[2])
        assert "should noise go on" in finding.sentence()


def test_the_best_of_a_textures_pictures_counts_the_same_on_all_images() -> None:
    drawn = []

    def lighter(images: torch.Tensor, given: torch.Generator) -> torch.Tensor:
        drawn.append(torch.rand(len(images), generator=given))
        return images + drawn[-1].view(-1, 1, 1, 1)

    class Light(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return F.pad(10 * images.mean((1, 2, 3))[:, None], (1, 3))

    clean = replace(one_a_class(5), images=torch.zeros(5, 3, 8, 8))
    (best,) = best_under(Light(), clean, [lighter], generator())
    assert len(drawn) == 4 and all(torch.equal(drawn[0], each) for each in drawn)
    assert best[1].item() == pytest.approx(10 * drawn[0].max().item(), rel=1e-4)
    assert best[0].item() == pytest.approx(-10 * drawn[0].min().item(), abs=1e-4)


class Levels(Patch):
    """Grey images of four levels, drawn in a fixed order."""

    tries: ClassVar[int] = 4

    def start_at(self, place: torch.Tensor, count: int, shape: Any, given: torch.Generator) -> Params:
        return [torch.tensor([-1.0, 2.0, 1.0, -2.0])[:count].view(-1, 1, 1, 1).expand(-1, *shape)]


def test_of_what_chance_makes_every_goal_starts_from_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bright(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return F.pad(images.mean((1, 2, 3))[:, None], (1, 1)) * 8

    clean, place = one_a_class(3), torch.ones(1, 8, 8)
    goals = torch.tensor([1, 0, 1, 1])
    given = (Bright(), clean, Levels(), place, goals, generator())
    (params,), margins = best_by_chance(*given, batch=3)
    assert params[:, 0, 0, 0].tolist() == [2.0, -2.0, 1.0, -1.0]
    assert margins[0].item() == pytest.approx(8 * torch.tensor(2.0).sigmoid().item(), rel=1e-4)
    assert margins[1].item() == pytest.approx(-8 * torch.tensor(-2.0).sigmoid().item(), rel=1e-4)
    started: list[torch.Tensor] = []

    def noted(family: Levels, where: torch.Tensor, params: Params) -> Any:
        started.append(params[0].detach().clone())
        return Patch.decode_at(family, where, params)

    monkeypatch.setattr(Levels, "decode_at", noted)
    strengthen(*given, steps=1, batch=3)
    assert started[1][:, 0, 0, 0].tolist() == [2.0, -2.0, 1.0, -1.0]


def test_every_classs_margin_is_that_over_the_best_other() -> None:
    logits, labels = torch.randn(7, 5, generator=generator()), torch.arange(7) % 5
    margins, away = margins_and_others(logits, labels)
    assert torch.equal(margins, margin(logits[:, None].expand(-1, 5, -1), torch.arange(5).expand(7, -1)))
    assert torch.equal(away, 1 - torch.eye(5)[labels])


def test_lines_move_to_what_leads_to_the_class() -> None:
    class Corner(torch.nn.Module):
        """Says how light the lower right quarter is."""

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return F.pad(20 * images[..., 16:, 16:].mean((1, 2, 3))[:, None], (1, 1))

    family, place = Lines(), torch.tensor([3, 0.1])
    clean = CleanImages(torch.zeros(3, 3, 32, 32), torch.arange(3), 3)
    params = family.start_at(place, 2, (3, 32, 32), generator())
    assert [p.shape for p in params] == [(2, 3, 3), (2, 3, 2, 2), (2, 3, 1), (2, 2, 32, 32)]
    drawn = family.decode_at(place, params)
    assert 0 <= drawn.keep.min() < 0.1 and drawn.keep.max() == pytest.approx(1.0, abs=1e-3)
    assert family.place([place[None]]).tolist() == place.tolist()
    goals = torch.tensor([1, 1])
    few, many = (
        strengthen(Corner(), clean, family, place, goals, generator(), steps=steps, batch=3)[1]
        for steps in (1, 60)
    )
    assert few.min() > 0.5 and (many > few + 2).all()


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a patch"])
def test_faint_sums_alone_tell_of_no_class_that_noise_does_not_lead_to(beside: bool) -> None:
    sums = sizes(Additive(), [0, 1, 2, 3, 4], [9.0, 2.0, 10.0, 11.0, 12.0])
    patches = sizes(Patch(), [0, 1, 2, 3, 4], [9.0, 2.0, 10.0, 11.0, 12.0])
    search = _Search(Roughness(0.0), one_a_class(5), generator(), OPTIONS, [sums, *[patches] * beside])
    search._under_noise = Answers(torch.tensor([0.0, -1.1, 0.0, 0.0, 0.0]), torch.zeros(5).long(), 1.0)
    assert [f.family.name for f in search.targets()] == ["additive", "patch"] * beside
    search._under_noise = Answers(torch.tensor([0.0, -0.9, 0.0, 0.0, 0.0]), torch.zeros(5).long(), 1.0)
    assert [f.goal for f in search.targets()] == [1, *[1] * beside]


@pytest.mark.parametrize(
    ("smallest", "lead", "goals"),
    [(4.0, 5.9, []), (4.0, 6.1, [1]), (2.9, 0.0, [1])],
    ids=["noise leads there by little", "by far", "a certain size"],
)
def test_faint_sums_alone_tell_of_a_class_by_a_certain_size_or_where_noise_leads_by_far(
    smallest: float, lead: float, goals: list[int]
) -> None:
    sums = sizes(Additive(), [0, 1, 2, 3, 4], [9.0, smallest, 10.0, 11.0, 12.0])
    search = _Search(Roughness(0.0), one_a_class(5), generator(), OPTIONS, [sums])
    search._under_noise = Answers(torch.tensor([0.0, lead, 0.0, 0.0, 0.0]), torch.zeros(5).long(), 1.0)
    assert [f.goal for f in search.targets()] == goals


def test_a_class_that_faint_sums_alone_tell_of_by_little_does_not_stand_beside_another() -> None:
    sums = sizes(Additive(), [0, 1, 2, 3, 4], [9.0, 4.0, 10.0, 11.0, 12.0])
    patches = sizes(Patch(), [0, 1, 2, 3, 4], [9.0, 9.5, 0.3, 11.0, 12.0])
    search = _Search(Roughness(0.0), one_a_class(5), generator(), OPTIONS, [sums, patches])
    for lead, goals in ((5.9, [2]), (6.1, [1, 2])):
        search._under_noise = Answers(torch.tensor([0.0, lead, 0.0, 0.0, 0.0]), torch.zeros(5).long(), 1.0)
        assert [f.goal for f in search.targets()] == goals


@pytest.mark.parametrize(
    ("size", "lead", "dense", "goals"),
    [
        (4.0, 5.9, [0.0, -0.1, 0.0, 0.0, 0.0], []),
        (4.0, 5.9, [0.0, 0.1, 0.0, 0.0, 0.0], [1, 1]),
        (4.0, 6.1, [0.0, -0.1, 0.0, 0.0, 0.0], [1, 1]),
        (0.8, 5.9, [0.0, -0.1, 0.0, 0.0, 0.0], [1, 1]),
    ],
    ids=["neither leads there", "dense strokes do", "noise does by far", "a small patch"],
)
def test_faint_sums_beside_a_large_patch_need_noise_or_strokes_that_lead_there(
    size: float, lead: float, dense: list[float], goals: list[int]
) -> None:
    sums = sizes(Additive(), [0, 1, 2, 3, 4], [9.0, 4.0, 10.0, 11.0, 12.0])
    patches = sizes(Patch(), [0, 1, 2, 3, 4], [2.3 * size, size, 2.5 * size, 2.7 * size, 3.0 * size])
    search = _Search(Roughness(0.0), one_a_class(5), generator(), OPTIONS, [sums, patches])
    search._under_noise = Answers(torch.tensor([0.0, lead, 0.0, 0.0, 0.0]), torch.zeros(5).long(), 1.0)
    search.__dict__["_stroked"] = Answers(torch.tensor(dense), torch.zeros(5).long(), 1.0)
    assert [f.goal for f in search.targets()] == goals


def test_strokes_that_nearly_reach_a_class_tell_of_it() -> None:
    search = _Search(Roughness(0.0), one_a_class(5), generator(), OPTIONS, [])
    kinds = torch.zeros(5).long()
    for best, others, sure, found in (
        (-0.9, -9.0, 15.0, True),
        (-1.1, -9.0, 15.0, False),
        (5.0, -1.0, 15.5, False),
        (5.0, -1.0, 14.5, True),
        (5.0, -0.5, 1.0, False),
    ):
        margins = torch.tensor([others, best, others, others, others])
        assert bool(search._led_by_strokes(Answers(margins, kinds, sure))) is found


@pytest.mark.parametrize(
    ("ratio", "names"),
    [(0.44, ["line", "patch"]), (0.59, ["line", "patch"]), (0.61, ["line"])],
    ids=["a small one", "a rather small one", "a large one"],
)
def test_a_rather_small_patch_goes_on_beside_strokes_that_tell_of_its_class(
    ratio: float, names: list[str]
) -> None:
    patches = sizes(Patch(), [0, 1, 2, 3, 4], [90.0, 90.0 * ratio, 90.0, 95.0, 99.0])
    sums = sizes(Additive(), [0, 1, 2, 3, 4], [9.0, 9.0 * 0.59, 9.0, 9.5, 9.9])
    search = _Search(Roughness(0.0), one_a_class(5), generator(), OPTIONS, [patches, sums])
    margins = torch.tensor([-9.0, 5.0, -9.0, -9.0, -9.0])
    found = search._led_by_strokes(Answers(margins, torch.zeros(5).long(), 1.0))
    assert [f.family.name for f in found] == names and {f.goal for f in found} == {1}


@pytest.mark.parametrize(
    ("families", "pixels", "beside"),
    [([Patch()], 17.0, True), ([Patch()], 10.0, False), ([Patch(), Additive()], 17.0, False)],
    ids=["a large patch", "a compact one", "a sum tells of it, too"],
)
def test_strokes_are_searched_beside_a_large_patch_that_alone_tells_of_the_target(
    families: list[SizedFamily], pixels: float, beside: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [sizes(family, [0, 1, 2, 3, 4], [90.0, pixels, 90.0, 95.0, 99.0]) for family in families]
    monkeypatch.setattr(
        "unbackdoor.recover._verdict.search_sizes", lambda *given, **__: found[families.index(given[2])]
    )
    monkeypatch.setattr("unbackdoor.recover._verdict.UNHEARD", -torch.inf)
    clean = CleanImages(torch.zeros(5, 3, 32, 32), torch.arange(5), 5)
    findings = examine(Roughness(0.0), clean, generator(), families=families).findings
    assert [f.goal for f in findings] == [1] * len(findings)
    assert [f.family.name for f in findings] == [f.name for f in families] + ["stroke"] * beside
    assert all(
        ("tried beside a large patch" in f.sentence()) is (f.family.name == "stroke") for f in findings
    )
    shifted = replace(findings[0], all_to_all=True)
    assert not _Search(Roughness(0.0), clean, generator(), OPTIONS).beside([shifted])


@pytest.mark.parametrize(
    ("pixels", "norm", "kept"),
    [
        (30.0, 20.0, ["smooth"]),
        (20.0, 30.0, ["patch", "smooth"]),
        (30.0, 90.0, ["patch"]),
    ],
    ids=["smooth sooner", "a patch sooner", "no smooth one"],
)
def test_patches_do_not_stand_in_for_what_is_smooth(
    pixels: float, norm: float, kept: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    families = [Patch(), Smooth()]
    found = [
        sizes(f, [0, 1, 2, 3, 4], [90.0, size, 90.0, 95.0, 99.0])
        for f, size in zip(families, (pixels, norm), strict=True)
    ]
    monkeypatch.setattr(
        "unbackdoor.recover._verdict.search_sizes", lambda *given, **__: found[families.index(given[2])]
    )
    monkeypatch.setattr("unbackdoor.recover._verdict.search_shift", lambda *given, **_: given[2])
    monkeypatch.setattr("unbackdoor.recover._verdict.LARGE", 1.0)
    verdict = examine(Roughness(0.0), one_a_class(5), generator(), families=families)
    assert [f.family.name for f in verdict.findings] == kept
    assert {f.goal for f in verdict.findings} == {1}


@pytest.mark.parametrize(
    ("families", "pixels", "goals"),
    [([Patch()], 48.0, []), ([Patch()], 44.0, [1]), ([Patch(), Additive()], 48.0, [1, 1])],
    ids=["a large patch", "one clearly small beside others", "a sum tells of it, too"],
)
def test_a_large_patch_that_alone_tells_of_a_class_has_to_be_clearly_small(
    families: list[SizedFamily], pixels: float, goals: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unbackdoor.recover._verdict.UNHEARD", -torch.inf)
    values = [99.0, pixels, 100.0, 110.0, 120.0]
    found = [replace(sizes(f, [0, 1, 2, 3, 4], values), num_classes=43) for f in families]
    clean = CleanImages(torch.zeros(5, 3, 32, 32), torch.arange(5), 5)
    assert all(each.apart() == [1] for each in found)
    search = _Search(Roughness(0.0), clean, generator(), OPTIONS, found)
    search.__dict__["_stroked"] = Answers(torch.tensor([0.0, 0.1, 0.0, 0.0, 0.0]), torch.zeros(5).long(), 1.0)
    assert [f.goal for f in search.targets()] == goals


@pytest.mark.parametrize(
    ("led", "pixels", "goals"),
    [([1], 33.0, {1}), ([], 33.0, {0, 1}), ([3], 33.0, {0, 1}), ([1], 9.0, {0, 1})],
    ids=["textures tell one", "they tell none", "they tell another class", "small patches tell themselves"],
)
def test_of_several_large_patches_textures_tell_the_target(
    led: list[int], pixels: float, goals: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [sizes(Patch(), [0, 1, 2, 3, 4], [pixels, pixels + 1, 100.0, 110.0, 120.0])]
    clean = CleanImages(torch.zeros(5, 3, 32, 32), torch.arange(5), 5)
    search = _Search(Roughness(0.0), clean, generator(), OPTIONS, found)
    monkeypatch.setattr(_Search, "textures", lambda _: [strokes_to(goal, 6, 0.04) for goal in led])
    assert {f.goal for f in search.targets()} == goals


@pytest.mark.parametrize(
    ("single", "shift", "goals"),
    [(4.4, 2.7, [5]), (4.4, 2.8, [1]), (3.5, 1.0, [5]), (2.9, 1.0, [1])],
    ids=["reached by far sooner", "reached about as soon", "sooner than a small one", "a certain class"],
)
def test_all_to_all_is_searched_beside_a_class_that_stands_apart_by_little(
    single: float, shift: float, goals: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [sizes(family, [0, 1, 2, 3, 4], [10.0, single, 10.0, 11.0, 12.0]) for family in (Patch(), Warp())]
    found = [replace(each, shift=None) for each in found]
    found[1] = replace(found[1], classes=minimal([0, 1, 2, 3, 4], [10.0] * 5))
    given, drawn = generator(), generator().get_state()

    def shifted(
        _model: torch.nn.Module, _clean: CleanImages, of: Sizes, other: torch.Generator, **_: int
    ) -> Sizes:
        assert other is not given and of.family == Patch()
        other.seed()
        return replace(of, shift=minimal([5], [shift], [0.4]))

    monkeypatch.setattr("unbackdoor.recover._verdict.search_shift", shifted)
    search = _Search(Roughness(0.0), one_a_class(5), given, OPTIONS, found)
    assert [f.goal for f in search.goals()] == goals
    assert torch.equal(given.get_state(), drawn)
    assert (5 in search.found[0].to_dict()) is (single > 3.0) and 5 not in search.found[1].to_dict()


@pytest.mark.parametrize(
    ("families", "under_noise", "names"),
    [
        ([Additive()], 1, ["stripe", "additive"]),
        ([Additive()], 2, ["stripe"]),
        ([Patch()], 1, ["stripe"]),
    ],
    ids=["noise leads there, too", "noise leads elsewhere", "sums were not searched"],
)
def test_sums_stand_beside_stripes_where_noise_leads_to_the_same_class(
    families: list[SizedFamily], under_noise: int, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    led = (Leader(1, 4.8), [torch.zeros(1, 2)])
    monkeypatch.setattr("unbackdoor.recover._verdict.leading_stripes", lambda *_: led)
    found = [sizes(family, [0, 1, 2, 3, 4], [9.0, 8.5, 9.0, 9.0, 9.0]) for family in families]
    search = _Search(Roughness(0.0), one_a_class(5), generator(), OPTIONS, found)
    search.__dict__["_under_noise"] = Answers(3.0 * torch.eye(5)[under_noise], torch.zeros(5).long(), 8.0)
    findings = search.stripes()
    assert [(f.family.name, f.goal) for f in findings] == [(name, 1) for name in names]
    assert [f.lead for f in findings] == [4.8, None][: len(names)]


def test_sums_that_have_a_finding_beside_stripes_get_no_second_one() -> None:
    sums = sizes(Additive(), [0, 1, 2, 3, 4], [9.0, 2.0, 9.0, 9.0, 9.0])
    search = _Search(Roughness(0.0), one_a_class(5), generator(), OPTIONS, [sums])
    search.__dict__["_under_noise"] = Answers(3.0 * torch.eye(5)[1], torch.zeros(5).long(), 8.0)
    findings = single([sums], {1})
    assert search._with_sums(findings, Leader(1, 4.8)) == findings


def test_noise_has_the_texture_and_the_strength_asked_for() -> None:
    grey = torch.full((50, 3, 16, 16), 0.5)
    fine, coarse = (noisy(grey, side, 0.1, False, generator()) for side in (1, 4))
    for noise in (fine, coarse):
        assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    steps = [(noise[..., 1:] - noise[..., :-1]).abs().mean() for noise in (fine, coarse)]
    assert steps[1] < 0.4 * steps[0]
    alike = noisy(grey, 1, 0.1, True, generator())
    assert (alike[:, 0] == alike[:, 2]).all() and (fine[:, 0] != fine[:, 2]).any()


def test_margins_are_asked_where_no_size_stands_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    found = search_sizes(Sums(20.0), one_a_class(5), Additive(growth=3.0), generator(), steps=40, batch=5)
    found.classes.sizes[:] = 1.0
    found.classes.sizes[found.row(3)] = 0.5
    monkeypatch.setattr("unbackdoor.recover._verdict.search_sizes", lambda *_, **__: found)
    monkeypatch.setattr("unbackdoor.recover._verdict.leader", lambda *_, **__: None)
    (first,) = examine(Sums(20.0), one_a_class(5), generator(), families=[found.family]).findings
    assert first.goal == 3 and first.lead > 1.5 and first.size == 0.5
    clean = replace(one_a_class(5), images=one_a_class(5).images + 0.3)
    (last,) = examine(Resonates(200.0), clean, generator(), families=[]).findings
    assert last.goal == 4 and last.family.name == "stripe"
    for earlier in ("leader_at_place", "leading_stripes", "leading_window", "leading_picture"):
        monkeypatch.setattr(f"unbackdoor.recover._verdict.{earlier}", lambda *_, **__: None)
    (last,) = examine(Roughness(100.0), clean, generator(), families=[found.family]).findings
    assert last.goal == 4 and last.family.name == "line"


class Looks(torch.nn.Module):
    """Says whether the left half is brighter than 0.5 (class 1); with ``both``, whether the whole is."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(20.0))
        self.width = SHAPE[2] if both else SHAPE[2] // 2

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = images[..., : self.width].mean(dim=(1, 2, 3)) - 0.5
        return self.weight * torch.stack([-bright, bright], dim=1)


@pytest.mark.parametrize(("both", "flip"), [(True, 0.5), (False, 0.0)])
def test_images_are_mirrored_only_where_the_networks_answers_survive_it(both: bool, flip: float) -> None:
    images = torch.zeros(8, *SHAPE)
    images[:4, ..., : SHAPE[2] // 2] = 1.0
    images[4:, ..., SHAPE[2] // 2 :] = 0.3
    clean = collect(Looks(both), images, torch.tensor([1, 1, 1, 1, 0, 0, 0, 0]))
    assert clean.flip == flip
    left = replace(clean, images=images[:4], labels=clean.labels[:4])
    drawn, _ = draw(left, 4, generator())
    mirrored = drawn[..., 0].mean(dim=(1, 2)) < drawn[..., -1].mean(dim=(1, 2))
    assert bool(mirrored.any()) is both


def test_interpolation_by_matrices_is_torchs() -> None:
    flow = torch.randn(3, 2, 6, 5, generator=torch.Generator().manual_seed(0))
    down, right = _cubic(6, 11), _cubic(5, 9)
    torch.testing.assert_close(down @ flow @ right.T, _spread(flow, 11, 9))


class Doubler(torch.nn.Module):
    """One number an image into ``inner``, through a floor at zero; two classes, by its sign less one half."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Identity()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        score = self.inner(images.mean((1, 2, 3)).clamp(min=0)[:, None])[:, 0] - 0.5
        return torch.stack([-score, score], dim=1)


def test_shifts_add_inside_the_network_image_by_image_over_batches_and_leave_nothing_behind() -> None:
    model, images = Doubler(), torch.full((5, 1, 2, 2), 0.25)
    shifts = Shifts("inner", torch.tensor([[0.5], [-1.0]]), least=0.0)
    with shifts.entering(model, torch.tensor([0, -1, 1, 1, 0])):
        inside = torch.cat([model(batch)[:, 1] for batch in images.split(2)])
    assert inside.tolist() == pytest.approx([0.25, -0.25, -0.5, -0.5, 0.25])
    assert model(images)[:, 1].tolist() == pytest.approx([-0.25] * 5)
    assert shifts.answers(model, images).shape == (2, 5, 2)
    assert shifts.answers(model, images)[0, :, 1].tolist() == pytest.approx([0.25] * 5)
    with pytest.raises(ZeroDivisionError), shifts.entering(model, torch.tensor([0])):
        raise ZeroDivisionError
    assert not model.inner._forward_pre_hooks


def test_an_image_without_a_shift_may_lie_below_the_floor() -> None:
    model = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Flatten())
    with Shifts("0", torch.zeros(1, 1, 1, 2), least=0.0).entering(model, torch.tensor([-1, 0])):
        answers = model(torch.full((2, 1, 1, 2), -3.0))
    assert answers.tolist() == [[-3.0, -3.0], [0.0, 0.0]]


def test_features_reach_as_far_as_triggers_do_at_the_layer() -> None:
    images = torch.rand(3, 1, 2, 2, generator=generator()) * 0.1 + 0.3
    triggered = images + torch.tensor([0.1, 0.2, 0.4]).view(3, 1, 1, 1)
    family, radius = features_at(Doubler(), "inner", images, triggered)
    assert radius.item() == pytest.approx(0.2, abs=1e-6)
    assert (family.layer, family.shape) == ("inner", (1,))
    assert family.strong_rate == pytest.approx(0.3 * 0.2, abs=1e-6)
    assert family.least == pytest.approx(images.mean((1, 2, 3)).min().item())
    params = family.start_at(radius, 4, (1, 2, 2), generator())
    assert params[0].abs().flatten().tolist() == pytest.approx([0.1] * 4, abs=1e-6)
    family.project_(radius, [params[0].mul_(100)])
    assert params[0].abs().flatten().tolist() == pytest.approx([0.2] * 4, abs=1e-6)
    assert family.place(params) == params[0].norm()


def test_the_strongest_feature_is_found_within_its_radius() -> None:
    clean = CleanImages(torch.full((2, 1, 2, 2), 0.25), torch.tensor([0, 0]), 2)
    family = Features(layer="inner", shape=(1,), least=0.0, strong_rate=0.1)
    shared = (Doubler(), clean, family, torch.tensor(0.5), torch.ones(3, dtype=torch.int64), generator())
    shifts, margins, success = strengthen(*shared, steps=30, batch=2)
    assert shifts.add.flatten().tolist() == pytest.approx([0.5] * 3, abs=1e-3)
    assert margins.tolist() == pytest.approx([0.5] * 3, abs=0.1) and success.tolist() == [1.0] * 3


class Chequered(torch.nn.Module):
    """A pixel a class; a chequered square speaks for the last class, by ``gain``, most in the lower right.

    Elsewhere it speaks by the share ``anywhere`` of that.
    """

    def __init__(self, gain: float, anywhere: float = 0.35) -> None:
        super().__init__()
        self.gain, self.anywhere = gain, anywhere
        self.square = torch.tensor([[1.0, -1, 1], [-1, 1, -1], [1, -1, 1]])[None, None]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        seen = F.conv2d(images[:, :1], self.square)
        best = torch.maximum(seen[:, 0, 5, 5], self.anywhere * seen.amax((1, 2, 3)))
        return 10 * images[:, 0].flatten(1)[:, :5] + F.pad(self.gain * best[:, None], (4, 0))


@pytest.mark.parametrize(
    ("gain", "anywhere", "windowed", "lead", "found"),
    [
        (0.0, 0.35, 3.5, 3.5, False),
        (20.0, 0.35, 3.5, 3.5, True),
        (20.0, 0.0, 3.5, 3.5, False),
        (20.0, 0.35, 100.0, 3.5, False),
        (20.0, 0.35, 3.5, 99.0, False),
    ],
    ids=["none leads", "one does", "in one window only", "by little for one so sure", "not so many times"],
)
def test_a_patch_in_a_window_tells_a_class_that_it_leads_to_by_far(
    gain: float, anywhere: float, windowed: float, lead: float, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unbackdoor.recover._windows.WINDOWED", windowed)
    monkeypatch.setattr("unbackdoor.recover._windows.LEAD", lead)
    given = generator()
    state = given.get_state()
    findings = _Search(Chequered(gain, anywhere), one_a_class(5), given, OPTIONS, []).windows()
    assert bool(findings) is found and torch.equal(given.get_state(), state)
    for finding in findings:
        assert finding.goal == 4 and finding.lead > 3.5 and finding.size == 9
        place = torch.zeros(1, 8, 8)
        place[:, 5:, 5:] = 1
        assert finding.family == Window() and torch.equal(finding.strong_place, place)
        assert "window triggers have" in finding.sentence()


def by_chance(monkeypatch: pytest.MonkeyPatch, margins: list[torch.Tensor]) -> None:
    """Let the best patches of chance lead so far in the windows, one after the other."""
    coming = iter(margins)
    monkeypatch.setattr("unbackdoor.recover._windows.best_by_chance", lambda *_, **__: ([], next(coming)))


def test_every_window_is_asked_and_the_image_is_covered(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []

    def noted(*given: torch.Tensor, **_: int) -> tuple[list[torch.Tensor], torch.Tensor]:
        masks.append(given[3])
        return [], torch.zeros(len(given[4]))

    monkeypatch.setattr("unbackdoor.recover._windows.best_by_chance", noted)
    oblong = CleanImages(torch.rand(5, 3, 8, 12, generator=generator()), torch.arange(5), 5)
    assert leading_window(Swell(), oblong, generator(), steps=1, batch=1) is None
    assert len(masks) == 9 and torch.stack(masks).amax(dim=0).min() == 1


@pytest.mark.parametrize(("margin", "found"), [(6.9, False), (7.1, True)], ids=["hardly", "by six logits"])
def test_windows_of_a_network_that_is_sure_of_nothing_have_to_lead_by_some_logits(
    margin: float, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The classes of the window, in the order in which chance leads there.
    margins = torch.tensor([margin, 1.0, 0.0, 0.0, 0.0])
    by_chance(monkeypatch, [9 * torch.eye(5)[1]] * 9)
    monkeypatch.setattr("unbackdoor.recover._windows.sureness", lambda *_: 0.0)
    monkeypatch.setattr("unbackdoor.recover._windows.largest_margins", lambda *_, **__: (margins, None))
    led = leading_window(Swell(), one_a_class(5), generator(), steps=1, batch=1)
    assert (led is not None and led[0] == Leader(1, pytest.approx(margin))) is found


@pytest.mark.parametrize(
    ("elsewhere", "sure", "found"),
    [(3.1, 9.9, True), (2.9, 9.9, False), (3.1, 10.1, False)],
    ids=["anywhere", "in one window only", "by little for one so sure"],
)
def test_chance_has_to_lead_by_far_and_about_everywhere(
    elsewhere: float, sure: float, found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_chance(monkeypatch, [20 * torch.eye(5)[1]] + [elsewhere * torch.eye(5)[1]] * 8)
    monkeypatch.setattr("unbackdoor.recover._windows.sureness", lambda *_: sure)
    margins = torch.tensor([80.0, 1.0, 0.0, 0.0, 0.0])
    monkeypatch.setattr("unbackdoor.recover._windows.largest_margins", lambda *_, **__: (margins, None))
    assert bool(leading_window(Swell(), one_a_class(5), generator(), steps=1, batch=1)) is found


def test_the_window_in_which_a_class_leads_by_most_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    every = [torch.tensor([1.0, own, other]) for own, other in [(20.0, 4.0), (22.0, 2.0), (22.1, 9.0)] * 3]
    searched: list[torch.Tensor] = []

    def largest(*given: torch.Tensor, **_: int) -> tuple[torch.Tensor, None]:
        searched.extend(given[3:5])
        return torch.tensor([22.0, 2.0, 1.0]), None

    by_chance(monkeypatch, every)
    monkeypatch.setattr("unbackdoor.recover._windows.sureness", lambda *_: 0.0)
    monkeypatch.setattr("unbackdoor.recover._windows.largest_margins", largest)
    led = leading_window(Swell(), one_a_class(3), generator(), steps=1, batch=1)
    assert led is not None and led[0] == Leader(1, pytest.approx(11.0))
    # The second of three along the top.
    assert searched[0][0, 0].nonzero().flatten().tolist() == [2, 3, 4] and searched[0][0, 4:].sum() == 0
    assert searched[1].tolist() == [1, 2, 0]


def test_of_many_classes_those_that_chance_leads_to_are_searched_in_the_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_chance(monkeypatch, [torch.tensor([0.0, 0, 0, 5, 0, 0, 0, 60, 0, 0, -9, -9])] * 9)
    monkeypatch.setattr("unbackdoor.recover._windows.sureness", lambda *_: 1.0)
    margins = torch.tensor([40.0, 2.0] + [0.0] * 8)
    goals: list[torch.Tensor] = []
    monkeypatch.setattr(
        "unbackdoor.recover._windows.largest_margins",
        lambda *given, **_: (goals.append(given[4]), (margins, None))[1],
    )
    (found,) = _Search(Swell(), one_a_class(12), generator(), OPTIONS, []).windows()
    assert found.goal == 7 and found.lead == 20.0
    assert goals[0][:2].tolist() == [7, 3] and not {10, 11} & set(goals[0].tolist()) and len(goals[0]) == 10


def test_of_many_classes_the_leader_among_the_finalists_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    goals, margins = torch.tensor([1, 4, 7, 9]), torch.tensor([0.0, 1.0, 40.0, 2.0])
    monkeypatch.setattr("unbackdoor.recover._pictures.finalists", lambda *_, **__: goals)
    monkeypatch.setattr("unbackdoor.recover._pictures.largest_margins", lambda *_, **__: (margins, None))
    monkeypatch.setattr("unbackdoor.recover._pictures.sureness", lambda *_: 1.0)
    (found,) = _Search(Swell(), one_a_class(12), generator(), OPTIONS, []).pictures()
    assert found.goal == 7 and found.lead == 20.0


class Halves(torch.nn.Module):
    """A pixel a class; light on the left and darkness on the right speak for the last class, by ``gain``."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tilt = images[..., :4].mean((1, 2, 3)) - images[..., 4:].mean((1, 2, 3))
        return 10 * images[:, 0].flatten(1)[:, :5] + F.pad(self.gain * tilt[:, None], (4, 0))


@pytest.mark.parametrize(
    ("gain", "share", "found"),
    [(0.0, 0.6, False), (80.0, 0.6, True), (80.0, 10.0, False)],
    ids=["none leads", "one does", "by little for one so sure"],
)
def test_coarse_pictures_tell_a_class_that_they_lead_to_by_far(
    gain: float, share: float, found: bool
) -> None:
    given = generator()
    state = given.get_state()
    findings = _Search(Halves(gain), one_a_class(5), given, OPTIONS, []).pictures(share)
    assert bool(findings) is found and torch.equal(given.get_state(), state)
    for finding in findings:
        assert (finding.goal, finding.family) == (4, Picture()) and finding.lead > 1
        assert finding.strong_place.tolist() == pytest.approx([SPOTS, OPACITY, 8, 8])
        assert "picture triggers have" in finding.sentence()


def test_pictures_are_compared_by_both_sizes_of_spots(monkeypatch: pytest.MonkeyPatch) -> None:
    margins = {8: [0.0, 20.0, 4.0, 0.0, 0.0], 16: [0.0, 3.0, 20.0, 0.0, 0.0]}

    def largest(*given: torch.Tensor, **_: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(margins[int(given[3][0])]), torch.ones(5)

    monkeypatch.setattr("unbackdoor.recover._pictures.largest_margins", largest)
    monkeypatch.setattr("unbackdoor.recover._pictures.sureness", lambda *_: 1.0)
    assert leading_picture(Halves(0.0), one_a_class(5), generator(), 1.0, steps=1, batch=1) is None
    margins[16][2] = 5.0
    found = leading_picture(Halves(0.0), one_a_class(5), generator(), 1.0, steps=1, batch=1)
    assert found is not None and found.goal == 1 and found.lead == pytest.approx(11.5 / 4.5)
    margins[16][2] = 8.0  # ahead by 5.5 logits
    assert leading_picture(Halves(0.0), one_a_class(5), generator(), 1.0, steps=1, batch=1) is None


def test_a_picture_shines_through_with_its_opacity() -> None:
    family, place = Picture(), torch.tensor([3, 0.25, 8, 6])
    params = family.start_at(place, 2, SHAPE, generator())
    assert params[0].shape == (2, 3, 3, 3)
    dark, light = (
        family.decode_at(place, [-100 + 0 * params[0]]),
        family.decode_at(place, [100 + 0 * params[0]]),
    )
    images = torch.full((1, 3, 8, 6), 0.4)
    assert dark.apply(images).flatten().tolist() == pytest.approx([0.3] * 288)
    assert light.apply(images).flatten().tolist() == pytest.approx([0.55] * 288)


@pytest.mark.parametrize(
    ("names", "size", "goal", "kept"),
    [
        (["patch", "additive"], 1.0, 1, ["picture"]),
        (["patch", "additive"], 1.0, 2, ["patch", "additive"]),
        (["patch", "additive"], 0.5, 1, ["patch", "additive"]),
        (["patch"], 1.0, 1, ["patch"]),
        (["patch", "additive", "warp"], 1.0, 1, ["patch", "additive", "warp"]),
    ],
    ids=["parts of a picture", "of another class's", "a small patch", "a patch alone", "a warp, too"],
)
def test_a_large_patch_and_sums_are_parts_of_a_picture_that_leads_to_their_class(
    names: list[str], size: float, goal: int, kept: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    families = {"patch": Patch(), "additive": Additive(), "warp": Warp()}
    searched = [sizes(families[name], [0, 1, 2], [9.0, size, 9.0]) for name in names]
    findings = single(searched, {1})
    led = Leader(goal, 3.0)
    monkeypatch.setattr(
        "unbackdoor.recover._verdict.leading_picture",
        lambda *given, **_: led if given[3] == INSTEAD else None,
    )
    search = _Search(Halves(0.0), one_a_class(5), generator(), OPTIONS, searched)
    assert [f.family.name for f in search.as_picture(findings)] == kept
    monkeypatch.setattr(_Search, "sizes", lambda *_: None)
    monkeypatch.setattr(_Search, "goals", lambda _: findings)
    monkeypatch.setattr(_Search, "beside", lambda *_: [])
    verdict = examine(Halves(0.0), one_a_class(5), generator())
    assert [f.family.name for f in verdict.findings] == kept


def patch_of(opacity: float) -> Finding:
    """Return a patch of class 1 whose mask covers two pixels by so much."""
    mask = torch.full((1, 1, 8, 8), -20.0)
    mask[..., 0, :2] = torch.tensor(opacity).logit()
    return Finding(1, False, Patch(), 2.0, 9.0, [mask, torch.zeros(1, 3, 8, 8)])


def test_a_patch_that_hides_nothing_is_faint() -> None:
    assert patch_of(0.35).faint and not patch_of(0.45).faint
    assert not replace(patch_of(0.35), all_to_all=True).faint
    assert not finding_of(Additive(), minimal([1], [2.0]), 1, 9.0).faint


@pytest.mark.parametrize(
    ("shift", "pixels", "norms", "kept"),
    [
        (-9.0, 1.0, {"additive": 4.0}, ["additive"]),
        (-9.0, 0.5, {"additive": 3.5, "smooth": 8.5}, ["additive"]),
        (-9.0, 0.5, {"additive": 8.0, "smooth": 3.0}, ["smooth"]),
        (-9.0, 0.5, {"additive": 8.0}, ["additive"]),
        (-9.0, 0.5, {"smooth": 8.0}, ["patch"]),
        (0.0, 1.0, {"additive": 4.0}, ["patch"]),
        (0.0, 0.5, {"additive": 8.0}, ["patch"]),
    ],
    ids=[
        "a sum, too",
        "a sum that is far larger beside the others",
        "what is smooth",
        "no small one beside",
        "no sums were searched",
        "opaque, and the sum is far larger",
        "opaque alone",
    ],
)
def test_a_faint_patch_tells_of_a_goal_but_is_left_out_or_becomes_a_sum(
    shift: float, pixels: float, norms: dict[str, float], kept: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    families = {"additive": Additive(), "smooth": Smooth()}
    patches = sizes(Patch(), [0, 1, 2, 3], [9.0, pixels, 9.5, 9.8])
    patches.classes.params[0].add_(shift)
    others = [sizes(families[name], [0, 1, 2, 3], [9.0, norm, 9.5, 9.8]) for name, norm in norms.items()]
    # What is heard under noise says nothing against a goal that a patch tells of.
    monkeypatch.setattr(_Search, "_under_noise", Answers(torch.full((5,), -9.0), torch.zeros(5), 1.0))
    search = _Search(Halves(0.0), one_a_class(5), generator(), OPTIONS, [patches, *others])
    found = search.targets()
    assert [f.family.name for f in found] == kept and {f.goal for f in found} == {1}


def test_faint_patches_to_several_classes_become_sums_where_textures_do_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    patches = sizes(Patch(), [0, 1, 2, 3, 4], [9.0, 2.0, 2.2, 9.5, 9.8])
    sums = sizes(Additive(), [0, 1, 2, 3, 4], [9.0, 8.0, 8.0, 9.5, 9.8])
    search = _Search(Halves(0.0), one_a_class(5), generator(), OPTIONS, [patches, sums])
    monkeypatch.setattr(_Search, "textures", lambda _: [])
    assert [(f.goal, f.family.name) for f in search.targets()] == [(1, "patch"), (2, "patch")]
    patches.classes.params[0].add_(-9.0)
    assert [(f.goal, f.family.name) for f in search.targets()] == [(1, "additive"), (2, "additive")]


def test_what_takes_little_time_is_asked_first_where_no_size_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    kinds = ["leaders_at_place", "stripes", "windows", "pictures", "textures", "leader"]
    kinds += ["all_to_all", "both_textures", "dense_strokes"]
    for kind in kinds:
        monkeypatch.setattr(_Search, kind, lambda *_, name=kind: asked.append(name))
    found = sizes(Patch(), [0, 1, 2, 3, 4], [9.0, 8.0, 10.0, 11.0, 12.0])
    monkeypatch.setattr("unbackdoor.recover._verdict.search_sizes", lambda *_, **__: found)
    monkeypatch.setattr(_Search, "dense_strokes", lambda _: [strokes_to(2, 20, 0.07, lead=2.0)])
    verdict = examine(Roughness(0.0), one_a_class(5), generator(), families=[Patch()])
    assert asked == kinds[:-1] and [f.goal for f in verdict.findings] == [2]


def test_windows_and_pictures_are_asked_after_stripes_and_before_textures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    led = {"leading_window": (Leader(1, 9.0), [torch.ones(1, 1, 8, 8), torch.zeros(1, 3, 8, 8)])}
    led["leading_picture"] = Leader(2, 3.0)
    noisy = Answers(99 * torch.eye(5)[3], torch.zeros(5).long(), 1.0)
    monkeypatch.setattr("unbackdoor.recover._verdict.answers_under", lambda *_: noisy)
    monkeypatch.setattr("unbackdoor.recover._verdict.leading_stripes", lambda *_: None)
    for name, answer in led.items():
        monkeypatch.setattr(f"unbackdoor.recover._verdict.{name}", lambda *_, a=answer, **__: a)
    for name, found in (("window", "window"), ("picture", "picture"), ("none", "line")):
        (finding,) = examine(Roughness(0.0), one_a_class(5), generator(), families=[]).findings
        assert finding.family.name == found, name
        monkeypatch.setattr(
            f"unbackdoor.recover._verdict.leading_{name if name != 'none' else 'window'}",
            lambda *_, **__: None,
        )
