"""Restore: the rows of a layer, the closed-form step, and a planted backdoor that has to go."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from unbackdoor import UnbackdoorError, purify
from unbackdoor._clean import CleanImages
from unbackdoor._layers import LayerRows, add_to_weight_, augmented_weight, restorable_layers
from unbackdoor.methods import Restore
from unbackdoor.methods._base import Session
from unbackdoor.methods._given_back import give_back_
from unbackdoor.methods._handicap import forward, handicap, hard_views, own_margins, set_back_
from unbackdoor.methods._varied import unless_enlarging_triggers, varied
from unbackdoor.methods.restore import BY_CHANCE, _Repair, covering, depends_on_image, half_of
from unbackdoor.recover import (
    Additive,
    Family,
    Finding,
    Patch,
    Picture,
    Recovered,
    Shifts,
    SizedFamily,
    Smooth,
    Stripes,
    Strokes,
    Verdict,
    Warp,
)
from unbackdoor.recover._findings import strokes_to

CLASSES = 6


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 5, 3, padding=1),
        nn.Conv2d(3, 5, (3, 1), stride=(2, 1), padding=(0, 2), dilation=(1, 2), bias=False),
        nn.Conv2d(3, 5, 4, padding="same"),
        nn.Conv2d(3, 5, 2, padding="valid"),
    ],
)
def test_rows_times_weight_is_the_convolution(layer: nn.Conv2d) -> None:
    model, images = nn.Sequential(layer), torch.rand(3, 3, 9, 7, generator=generator())
    count = layer(images)[0, 0].numel()
    cutter = LayerRows(count, generator())
    rows = cutter.of(model, "0", images)
    out = (rows @ augmented_weight(layer).T).view(3, count, 5)
    wanted = layer(images).flatten(2).transpose(1, 2)
    at = cutter.positions["0"][..., None].expand(-1, -1, 5)
    torch.testing.assert_close(out, wanted.gather(1, at))


def test_rows_of_tokens_and_vectors() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Flatten(), nn.Linear(20, 3, bias=False))
    tokens = torch.rand(2, 5, 6, generator=generator())
    [first], [second] = LayerRows(5, generator()).walk(model, ["0", "2"], [tokens])
    assert first.shape == (10, 7) and second.shape == (2, 20)
    torch.testing.assert_close(second @ model[2].weight.T, model(tokens))


def test_layers_come_in_running_order_and_unfit_ones_are_left_out() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 3)
            self.twice = nn.Conv2d(4, 4, 1)
            self.deep = nn.Conv2d(4, 4, 3, groups=4)
            self.stem = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.deep(self.twice(self.twice(self.stem(x)))).mean((2, 3)))

    model = Net()
    assert list(restorable_layers(model, torch.rand(1, 3, 8, 8))) == ["stem", "head"]
    assert not any(module._forward_hooks for module in model.modules())


def test_hooks_go_when_the_forward_pass_fails() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(7, 2), nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(LayerRows(2, generator()).walk(model, ["0", "3"], [torch.rand(1, 3, 8, 8)]))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_rows_of_a_layer_are_what_images_send_on_through_the_changed_one_before() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 2))
    names, sets = ["0", "2", "4"], [torch.rand(70, 3, 8, 8) for _ in range(2)]
    walked, afresh = LayerRows(2, generator()), LayerRows(2, generator())
    for name, rows in zip(names, walked.walk(model, names, sets), strict=True):
        alone = [afresh.of(model, name, images) for images in sets]
        torch.testing.assert_close(rows, alone)
        model.get_submodule(name).requires_grad_(False).weight.mul_(-2)
    torch.testing.assert_close(walked.positions, afresh.positions)


def test_solve_minimises_the_stated_objective() -> None:
    torch.manual_seed(0)
    method = Restore(ridge=0.3, trigger_weight=0.7, noise_weight=0.4)
    weight = torch.randn(3, 5, dtype=torch.float64)
    before = [torch.randn(20, 5, dtype=torch.float64) for _ in range(4)]
    now = [torch.randn(20, 5, dtype=torch.float64) for _ in range(3)]

    def objective(change: torch.Tensor) -> torch.Tensor:
        new, (clean, benign, strong, calm) = weight + change, before
        fit = [(now[0], clean, 1.0), (strong, benign, 0.35), (now[1], benign, 0.35), (now[2], calm, 0.4)]
        loss = sum(w * (x @ new.T - y @ weight.T).square().sum() / len(x) for x, y, w in fit)
        return loss + 0.3 * now[0].square().mean() * change.square().sum()

    change = method.solve(weight, before, now).requires_grad_()
    (slope,) = torch.autograd.grad(objective(change), change)
    assert slope.abs().max() < 1e-6


@pytest.mark.parametrize(
    "field",
    [
        {"num_layers": 0},
        {"escalation": 0.5},
        {"noise": 2.0},
        {"success_share": -0.5},
        {"margin_share": 1.5},
        {"strong_steps": 0},
        {"ridge": -1.0},
        {"agreement_limit": 2.0},
        {"agreement_ample": -0.1},
        {"success_left": 1.5},
        {"agreement_fair": 1.1},
        {"agreement_free": -0.1},
        {"clearance": -1.0},
        {"layer_share": 1.5},
    ],
)
def test_fields_outside_their_range_are_refused(field: dict[str, float]) -> None:
    with pytest.raises(UnbackdoorError, match=next(iter(field))):
        Restore(**field)


@pytest.mark.parametrize(
    ("margins", "success", "agreement", "all_to_all", "done"),
    [
        ([[50.0, 9.0], [2.0, -3.0]], [1.0, 0.9], 0.99, False, True),
        ([[50.0, 9.0], [-3.0, 4.0]], [1.0, 0.1], 0.99, False, False),
        ([[50.0, 9.0], [-3.0, 4.0]], [1.0, 0.1], 0.94, False, True),
        ([[50.0, 9.0], [-3.0, 4.0]], [1.0, 0.5], 0.94, False, False),
        ([[50.0, 9.0], [-3.0, 4.0]], [1.0, 0.5], 0.92, False, True),
        ([[50.0, 9.0], [9.0, 6.0], [-3.0, 4.0]], [1.0, 1.0, 0.5], 0.94, False, True),
        ([[50.0, 9.0], [-3.0, 6.0]], [1.0, 0.1], 0.94, False, False),
        ([[2.0], [-2.0]], [0.6, 0.35], 0.99, True, False),
        ([[2.0], [1.0], [1.0]], [0.6, 0.25, 0.25], 0.96, True, True),
        ([[2.0], [1.0], [1.0]], [0.6, 0.25, 0.25], 0.98, True, False),
        ([[2.0], [1.0]], [0.6, 0.25], 0.99, True, False),
        ([[2.0], [1.0]], [0.6, 0.25], 0.9, True, False),
        ([[2.0], [1.0], [1.0]], [0.6, 0.25, 0.35], 0.9, True, False),
        ([[2.0], [1.0], [-2.0]], [0.6, 0.4, 0.4], 0.9, True, True),
        ([[2.0], [1.0], [-1.9]], [0.6, 0.4, 0.4], 0.9, True, False),
        ([[2.0], [1.0], [-9.0, 1.0]], [0.6, 0.4, 0.4], 0.9, True, False),
        ([[9.0], [-9.0]], [1.0, 0.0], 0.99, False, False),
        ([[9.0], [-9.0]], [1.0, 0.0], 0.96, False, True),
        ([[9.0], [-9.0], [-9.0]], [1.0, 0.0, 0.0], 0.99, False, True),
        ([[-2.0], [-3.0]], [0.6, 0.25], 0.94, False, True),
        ([[-2.0], [-9.0]], [0.6, 0.5], 0.94, False, False),
    ],
    ids=[
        "little margin left",
        "by a hair",
        "by a hair, at a price",
        "by a hair, at a price, and many are moved yet",
        "by a hair, at a high price",
        "by a hair, at a price, and many are moved yet, twice",
        "too much left",
        "all-to-all moves many",
        "few, twice",
        "few, twice, and it cost nothing",
        "few, once",
        "few, once, at a price",
        "many, twice",
        "many, but they fail clearly",
        "many, by less",
        "many, and one of two kinds fails",
        "weak, once",
        "weak, once, at a price",
        "weak, twice",
        "no margin ever, few moved",
        "no margin ever, many moved",
    ],
)
def test_rounds_end_when_fresh_triggers_lost_their_force(
    margins: list[list[float]], success: list[float], agreement: float, all_to_all: bool, done: bool
) -> None:
    told = [
        {"margins": m, "success": s, "agreement": agreement, "noise": None, "inside": None, "others": [-9.0]}
        for m, s in zip(margins, success, strict=True)
    ]
    method = Restore(margin_share=0.1, success_share=0.5, clearance=2.0, agreement_ample=0.95)
    goal = CLASSES if all_to_all else 5
    assert method.done(told, (finding(Patch(), goal, all_to_all=all_to_all),)) is done


@pytest.mark.parametrize(
    ("led", "leads", "agreement", "done"),
    [(14.0, -4.0, 0.94, True), (14.0, 1.0, 0.94, False), (5.0, -4.0, 0.94, False), (14.0, -4.0, 0.96, False)],
    ids=["noise leads elsewhere", "it leads there yet", "it never did by far", "another round is cheap"],
)
def test_rounds_end_where_noise_told_of_the_target_and_no_longer_does(
    led: float, leads: float, agreement: float, done: bool
) -> None:
    first = {"margins": [11.0], "success": 1.0, "agreement": 1.0, "noise": led, "inside": None, "others": [0]}
    last = {"margins": [4.0], "success": 1.0, "agreement": agreement, "noise": leads}
    assert Restore().done([first, last], ONE) is done


def test_triggers_found_afresh_need_not_fail_clearly_where_some_were_found_inside_the_network() -> None:
    first = {
        "margins": [50.0],
        "success": 1.0,
        "agreement": 1.0,
        "noise": None,
        "inside": None,
        "others": [-9],
    }
    last = {"margins": [0.0], "success": 0.4, "agreement": 0.99, "noise": None}
    method = Restore(agreement_free=1.0)
    inside = first | {"inside": 90.0}
    assert not method.done([first, last], ONE)
    assert method.done([inside, last], ONE)
    moving = last | {"success": 0.55, "agreement": 0.94}
    assert not method.done([inside, moving], ONE)
    assert method.done([inside, moving | {"agreement": 0.92}], ONE)
    assert method.done([inside, moving, moving], ONE)
    assert method.done([first, moving | {"success": 0.4}], ONE)


def test_pictures_have_to_fail_clearly_as_long_as_rounds_are_cheap() -> None:
    first = {"margins": [20.0], "success": 1.0, "agreement": 1.0, "noise": None, "inside": 30.0}
    last = {"margins": [-1.5], "success": 0.3, "agreement": 0.93, "noise": None, "inside": None}
    picture = (formed(Picture(), torch.tensor([[12, 0.2, 8, 8]])),)
    smooth = (finding(Smooth(), 5),)
    assert Restore().done([first | {"others": []}, last], smooth)
    assert not Restore().done([first | {"others": []}, last], picture)
    assert Restore().done([first | {"others": []}, last | {"agreement": 0.92}], picture)
    assert Restore().done([first | {"others": []}, last | {"margins": [-1.7]}], picture)


@pytest.mark.parametrize(
    ("margins", "others", "inside", "agreement", "done"),
    [
        ([5.9, -2.0], [6.0, -2.0], None, 0.96, True),
        ([5.9, -1.9], [6.0, -2.0], None, 0.96, False),
        ([5.9, -2.0], [6.0, -2.0], 9.0, 0.96, False),
        ([5.9, -2.0], [6.0, -2.0], None, 0.98, False),
    ],
    ids=["no further than others", "one goes further", "stand-ins", "weak ones, and it cost nothing"],
)
def test_rounds_end_where_triggers_reach_the_target_no_further_than_others(
    margins: list[float], others: list[float], inside: float | None, agreement: float, done: bool
) -> None:
    first = {"margins": [19.0, 12.0], "success": 1.0, "agreement": 1.0, "noise": None, "inside": inside}
    last = {"margins": margins, "success": 1.0, "agreement": agreement, "noise": None, "inside": None}
    assert Restore().done([first | {"others": others}, last], ONE) is done


@pytest.mark.parametrize(
    ("margin", "success", "inside", "done"),
    [
        (0.9, 0.4, 5.9, True),
        (0.9, 0.41, 5.9, False),
        (1.1, 0.0, 5.9, False),
        (0.9, 0.41, 6.0, True),
        (0.9, 0.41, None, False),
    ],
    ids=["fail and move few", "move many", "do not fail", "one inside is enough", "none inside"],
)
def test_where_triggers_depend_on_the_image_fresh_ones_must_move_few(
    margin: float, success: float, inside: float | None, done: bool
) -> None:
    first = {"margins": [50.0], "success": 1.0, "agreement": 1.0, "noise": None, "others": [-9.0]}
    last = {"margins": [margin], "success": success, "agreement": 0.96, "noise": None, "inside": inside}
    assert Restore().done([first | {"inside": inside}, last, last], ONE) is done


def test_triggers_inside_that_follow_a_round_are_no_measure_of_other_classes_either() -> None:
    first = {
        "margins": [19.0],
        "success": 1.0,
        "agreement": 1.0,
        "noise": None,
        "inside": None,
        "others": [6.0],
    }
    last = {"margins": [5.9], "success": 1.0, "agreement": 0.96, "noise": None, "inside": None}
    assert Restore().done([first, last, last], ONE)
    assert not Restore().done([first, last | {"inside": 9.0}, last], ONE)


class Reddened(nn.Module):
    """Answers class 1, and class 2 the more the rougher the first channel is."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        rough = (images[:, 0, 1:] - images[:, 0, :-1]).abs().mean((1, 2))
        return torch.stack([rough * 0, rough * 0 + 1, 100 * rough], dim=1)


@pytest.mark.parametrize(
    ("families", "goal", "size", "asked"),
    [
        ([Additive()], 2, 1.2, True),
        ([Additive(), Patch()], 2, 1.2, False),
        ([Additive()], 3, 1.2, False),
        ([Additive()], 2, 1.0, False),
    ],
    ids=["sums alone", "a patch beside", "all-to-all", "sums of their own"],
)
def test_noise_is_asked_after_each_round_where_sums_alone_tell_of_a_target(
    families: list[SizedFamily], goal: int, size: float, asked: bool
) -> None:
    images = torch.full((6, 3, 12, 12), 0.5)
    clean = CleanImages(images, torch.arange(6) % 3, 3, 0.0)
    findings = tuple(
        Finding(goal, goal == 3, f, size, 2.0, f.start(1, (3, 12, 12), generator(0))) for f in families
    )
    model, session = Reddened(), Session(generator(0))
    method = Restore(strong_steps=1, strong_count=2)
    repair = _Repair(method, model, model, [], clean, findings, session, images)
    state = session.generator.get_state()
    lead = repair.lead_of_noise()
    assert (lead is not None) is asked
    assert lead is None or lead > 5
    assert torch.equal(session.generator.get_state(), state)
    repair.look()
    assert (repair.told[0]["noise"] is not None) is asked


def finding(family: SizedFamily, goal: int = 2, all_to_all: bool = False) -> Finding:
    return Finding(goal, all_to_all, family, 0.5, 1.0, family.start(1, (3, 12, 12), generator(0)))


ONE = (finding(Patch(), 5),)


def formed(family: Family, *params: torch.Tensor) -> Finding:
    return Finding(2, False, family, 0.5, 1.0, list(params))


@pytest.mark.parametrize(
    ("findings", "covers"),
    [
        ([finding(Smooth())], True),
        ([finding(Warp()), finding(Additive())], True),
        ([finding(Smooth()), finding(Patch())], False),
        ([finding(Additive())], False),
        ([formed(Stripes(), torch.zeros(1, 3, 2), torch.ones(1, 2))], False),
        ([formed(Stripes(), torch.zeros(1, 3, 2), torch.ones(1, 2)), finding(Additive())], True),
        ([formed(Strokes(), torch.tensor([[8.0, 0.1]]))], False),
        ([finding(Smooth(), CLASSES, all_to_all=True)], False),
    ],
    ids=[
        "smooth",
        "warp and sum",
        "a patch beside",
        "sums alone",
        "stripes alone",
        "stripes and sums",
        "strokes",
        "all-to-all",
    ],
)
def test_triggers_inside_are_searched_where_the_attackers_covers_the_image(
    findings: list[Finding], covers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.ReLU(), nn.Linear(8, CLASSES)).eval()
    images, labels = toy(1, 0)
    clean = CleanImages(images, labels, CLASSES, 0.0)
    monkeypatch.setattr(_Repair, "noise_goes_on", lambda _: False)
    monkeypatch.setattr("unbackdoor.methods.restore.carry_over", lambda _: False)
    seen = []
    spied = Restore.restore
    monkeypatch.setattr(Restore, "restore", lambda *given: (seen.append(given[7]), spied(*given))[1])
    told = Restore(rounds=2, strong_steps=2, strong_count=3, num_images=32, agreement_limit=0.0).erase(
        model, ["1", "3"], clean, tuple(findings), Session(generator(0))
    )["rounds"]
    assert covering(tuple(findings)) is covers
    assert [entry["inside"] is not None for entry in told] == [covers] * (len(told) - 1) + [False]
    assert [len(shifts.add) if shifts else 0 for shifts in seen] == [
        3 * covers * (n + 1) for n in range(len(seen))
    ]
    assert not covers or {shifts.layer for shifts in seen} == {"1"}
    off = Restore(rounds=1, strong_steps=1, num_images=16, feature_share=0.0)
    told = off.erase(model, ["1", "3"], clean, tuple(findings), Session(generator(0)))["rounds"]
    assert [entry["inside"] for entry in told] == [None] * len(told)


def test_what_is_found_inside_is_put_on_the_triggered_images_of_both_networks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 8)).eval().requires_grad_(False)
    images, labels = toy(1, 0)
    clean, stack = CleanImages(images, labels, CLASSES, 0.0), Patch().decode(finding(Patch()).params)
    picked: list[torch.Tensor] = []

    def entering(_: Shifts, __: nn.Module, pick: torch.Tensor) -> nullcontext[None]:
        picked.append(pick)
        return nullcontext()

    monkeypatch.setattr(Shifts, "entering", entering)
    shifts, method = Shifts("1", torch.zeros(2, 432), 0.0), Restore(num_images=20, feature_share=0.5)
    method.restore(copy.deepcopy(model), model, ["1"], clean, [stack], [], shifts, generator(1))
    then, now = (pick.view(-1, 20) for pick in picked)
    assert [(part >= 0).any().item() for part in then] == [False, False, True, False]
    assert [(part >= 0).any().item() for part in now] == [False, True, False]
    torch.testing.assert_close(then[2], now[1])
    assert then[2, :10].unique().tolist() == [0, 1] and then[2, 10:].unique().tolist() == [-1]


def test_a_layer_withstands_what_is_found_inside() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(432, 8), nn.ReLU(), nn.Linear(8, CLASSES)).eval()
    model.requires_grad_(False)
    images, labels = toy(1, 0)
    clean, stack = CleanImages(images, labels, CLASSES, 0.0), Patch().decode(finding(Patch()).params)
    shifts = Shifts("1", torch.randn(2, 432, generator=generator(3)), -torch.inf)
    moved = {}
    for found in (None, shifts):
        repaired = copy.deepcopy(model)
        method = Restore(num_images=256, trigger_weight=10.0, feature_share=0.5, noise_weight=0.0, ridge=0.01)
        method.restore(repaired, model, ["1", "3"], clean, [stack], [], found, generator(1))
        with shifts.entering(repaired, torch.zeros(len(images), dtype=torch.int64)):
            under = repaired(images)
        moved[found is None] = (under - repaired(images)).norm().item()
    assert moved[False] < 0.3 * moved[True]


class Reader(nn.Module):
    """Answers the class that the mean of the first channel names, in steps of a sixth; by a linear layer."""

    def __init__(self, bias: bool = True, widest: int = CLASSES):
        super().__init__()
        self.last = nn.Linear(1, widest, bias=bias).requires_grad_(False)
        steps = torch.arange(widest).float()
        self.last.weight[:] = 12 * steps[:, None]
        if bias:
            self.last.bias[:] = -steps * (steps + 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(images[:, 0].mean((1, 2))[:, None])[:, :CLASSES]


class Softened(Reader):
    """The same in probabilities: the last layer's outputs are not the answers."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images).softmax(1)


def shades(classes: list[int]) -> CleanImages:
    labels = torch.tensor(classes)
    shade = (labels + 0.5).view(-1, 1, 1, 1).expand(-1, 3, 12, 12) / CLASSES
    return CleanImages(shade.clone(), labels, CLASSES, 0.0)


def test_a_class_is_set_back_by_a_third_of_what_hard_views_of_its_own_images_bear() -> None:
    model, clean = Reader(), shades([4, 5])
    margins = own_margins(model, model, clean, 5, generator(0))
    assert 100 < len(margins) <= 384 and margins.min() > 0
    assert handicap(margins) == pytest.approx(margins.quantile(0.01).item() / 3)
    by = handicap(margins)
    before = model(clean.images)
    assert set_back_(model, "last", 5, by, clean.images)
    change = model(clean.images) - before
    torch.testing.assert_close(change[:, 5], torch.full((2,), -by))
    assert change[:, :5].abs().max() == 0
    assert own_margins(model, model, shades([0, 1]), 5, generator(0)).numel() == 0
    assert own_margins(model, model, shades([5, 5]), 5, generator(0)).numel() == 0


def test_hard_views_are_mixed_with_others_noisy_and_turned() -> None:
    own, other = torch.linspace(0, 0.5, 12).expand(3, 12, 12), torch.ones(3, 12, 12)
    clean = CleanImages(torch.stack([own, other]), torch.tensor([1, 0]), 2, 0.0)
    mixed, noisy, tilted = hard_views(clean, 1, generator(0)).split(128)
    torch.testing.assert_close(mixed, (0.6 * own + 0.4).expand(128, -1, -1, -1))
    assert 0.02 < (noisy - own).std() < 0.15
    columns = tilted.diff(dim=2).abs().mean((1, 2, 3))
    assert (columns > 0.005).float().mean() > 0.5


@pytest.mark.parametrize(
    ("lost", "by"), [(0.2, 0.0), (0.3, -0.125), (0.6, -0.5)], ids=["a few views", "a quarter", "most"]
)
def test_a_class_is_set_forward_where_it_lost_its_own_views_but_not_far(lost: float, by: float) -> None:
    margins = torch.full((100,), 3.0)
    margins[: int(100 * lost)] = -0.125 if lost < 0.5 else -4.0
    assert handicap(margins) == by == -forward(margins, 0.5)
    assert forward(margins[:31] - 9.0, 0.5) == 0
    model, images = Reader(), shades([4, 5]).images
    before = model(images)[:, 5]
    assert by == 0 or set_back_(model, "last", 5, by, images)
    torch.testing.assert_close(model(images)[:, 5], before - by)


@pytest.mark.parametrize(
    "model",
    [Reader(bias=False), Reader(widest=7), Softened()],
    ids=["no bias", "more outputs", "not the answers"],
)
def test_where_a_bias_does_not_set_a_class_back_nothing_changes(model: Reader) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not set_back_(model, "last", 5, 0.1, shades([4, 5]).images)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def repair_of(model: nn.Module, found: Finding, shifts: Shifts | None = None) -> _Repair:
    clean, session = shades([4, 5]), Session(generator(0))
    pool = [Smooth().decode([torch.zeros(1, 3, 6, 6)])]
    given = (["last"], clean, (found,), session, clean.images)
    return _Repair(Restore(), model, Reader(), *given, pool, shifts=shifts)


TOLD = {"success": 0.0, "margins": [-9.0], "noise": None, "agreement": 1.0}
"""A look that finds triggers silenced and all answers as they were."""


def test_only_a_target_that_triggers_inside_lead_to_is_set_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbackdoor.methods.restore.give_back_", lambda *_: False)
    told = {}
    for name, shifts in {"inside": Shifts("last", torch.zeros(1, 1), -torch.inf), "none": None}.items():
        model = Reader()
        repair = repair_of(model, finding(Smooth(), 5), shifts)
        repair.told = [{**TOLD, "success": 1.0, "margins": [9.0], "inside": 9.0 if shifts else None}]
        told[name] = repair.set_back()
        assert (model(images := shades([4, 5]).images) == Reader()(images)).all().item() is (name == "none")
    assert told["inside"]["handicap"] > 0 == told["none"]["handicap"]
    assert told["inside"]["target_kept"] >= 0.99 and told["none"]["target_kept"] == 1.0
    assert not told["inside"]["given_back"] and not told["none"]["given_back"]
    told = repair_of(Reader(), finding(Patch(), CLASSES, all_to_all=True)).set_back()
    assert told == {"given_back": False, "handicap": 0.0, "target_kept": None}


@pytest.mark.parametrize(
    ("family", "margins", "noise", "by"),
    [
        (Patch(), [-1.5, -9.0], None, 0.75),
        (Patch(), [-90.0], None, 1.0),
        (Patch(), [0.5, -9.0], None, 0.0),
        (Strokes(), [-2.0], None, 0.0),
        (Additive(), [-2.0], -1.0, 0.5),
        (Additive(), [-1.0], -2.0, 0.5),
    ],
    ids=[
        "as triggers allow",
        "by a logit at most",
        "one trigger works",
        "strokes stand in",
        "as noise allows",
        "as sums allow",
    ],
)
def test_a_target_that_lost_its_views_is_set_forward_by_what_fresh_triggers_fail_by(
    family: Family, margins: list[float], noise: float | None, by: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Repair, "give_back", lambda _: False)
    model = Reader()
    model.last.bias[5] -= 40.0
    lost = model(shades([4, 5]).images)[:, 5]
    repair = repair_of(model, replace(formed(Patch()), goal=5))
    repair.findings += (replace(formed(family), goal=5),)
    repair.told = [{**TOLD, "margins": margins, "noise": noise}]
    told = repair.set_back()
    assert -told["handicap"] == pytest.approx(by) and not told["given_back"]
    torch.testing.assert_close(model(shades([4, 5]).images)[:, 5] - lost, torch.full((2,), -told["handicap"]))
    assert told["target_kept"] == 0
    monkeypatch.setattr("unbackdoor.methods.restore.MOST_FORWARD", 90.0)
    assert (repair.set_back()["target_kept"] > 0.5) is (margins == [-90.0])


@pytest.mark.parametrize("lost", [0.0, 40.0], ids=["that kept its views", "that lost them"])
def test_a_target_that_triggers_inside_lead_to_is_refitted_before_it_is_set_back(
    lost: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, given = Reader(), []

    def noted(*of: Any) -> bool:
        given.append(of[6])
        return give_back_(*of)

    monkeypatch.setattr("unbackdoor.methods.restore.give_back_", noted)
    monkeypatch.setattr(_Repair, "_works_again", lambda _: False)
    model.last.bias[5] -= lost
    before = model(shades([4, 5]).images)[:, 5]
    shifts = Shifts("last", torch.zeros(1, 1), -torch.inf)
    repair = repair_of(model, finding(Smooth(), 5), shifts)
    repair.told = [{"margins": [9.0], "inside": 9.0, "success": 0.0}]
    told = repair.set_back()
    assert told["given_back"] and given == [shifts] and len(repair.told) == 1
    change = model(shades([4, 5]).images)[:, 5] - before
    assert change.min() > 1 if lost else change.abs().max() > 0.1


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [(0.5, 0.5, True), (0.5, 0.51, False), (0.51, 0.9, True)],
    ids=["they fail yet", "they work again", "they had not been silenced"],
)
def test_a_refitted_row_that_wakes_silenced_triggers_is_taken_back(
    before: float, after: float, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refitted(model: nn.Module, *_: Any) -> bool:
        model.last.bias[5] += 3.0
        return True

    def look() -> None:
        torch.rand(9, generator=repair.session.generator)
        repair.told.append({"success": after})

    monkeypatch.setattr("unbackdoor.methods.restore.give_back_", refitted)
    model, shifts = Reader(), Shifts("last", torch.zeros(1, 1), -torch.inf)
    bias = model.last.bias[5].item()
    repair = repair_of(model, finding(Smooth(), 5), shifts)
    repair.told = [{"margins": [9.0], "inside": 9.0}, {"margins": [-1.0], "inside": None, "success": before}]
    monkeypatch.setattr(repair, "look", look)
    drawn = repair.session.generator.get_state()
    assert repair.give_back() is kept
    assert model.last.bias[5].item() == pytest.approx(bias + (3.0 if kept else 0.0))
    assert torch.equal(repair.session.generator.get_state(), drawn)
    assert len(repair.told) == (3 if kept and before <= 0.5 else 2)


def test_a_target_without_an_image_is_not_refitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Repair, "give_back", lambda _: pytest.fail("nothing to refit it to"))
    repair = repair_of(Reader(), finding(Smooth(), 2), Shifts("last", torch.zeros(1, 1), -torch.inf))
    assert repair.set_back() == {"given_back": False, "handicap": 0.0, "target_kept": None}


def test_a_target_without_triggers_inside_is_given_back_against_fresh_ones_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, pools = Reader(), []

    def noted(*given: Any) -> bool:
        pools.append(len(given[5]))
        return give_back_(*given)

    monkeypatch.setattr("unbackdoor.methods.restore.give_back_", noted)
    model.last.bias[5] -= 40.0
    lost = model(shades([4, 5]).images)[:, 5]
    repair = repair_of(model, finding(Smooth(), 5))
    repair.told = [{**TOLD, "success": 0.4, "margins": [0.1]}]
    assert not repair.set_back()["given_back"] and not pools
    assert (model(shades([4, 5]).images)[:, 5] == lost).all()
    repair.told = [{**TOLD, "success": 0.5, "margins": [0.1]}]
    assert repair.set_back()["given_back"] and pools == [1, 2, 3] and len(repair.told) == 3
    assert (model(shades([4, 5]).images)[:, 5] - lost).min() > 1
    kept = repair_of(Reader(), finding(Smooth(), 5))
    kept.told = [{**TOLD, "success": 1.0, "margins": [9.0]}]
    assert not kept.set_back()["given_back"] and len(pools) == 3


@pytest.mark.parametrize(
    ("margins", "rounds", "given"),
    [(13.9, 1, False), (14.1, 1, True), (13.9, 2, True)],
    ids=["one round took nearly all", "one round left a share", "it took two"],
)
def test_a_target_is_not_refitted_where_one_round_took_nearly_all_force_of_its_triggers(
    margins: float, rounds: int, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unbackdoor.methods.restore.give_back_", lambda *_: True)
    model = Reader()
    model.last.bias[5] -= 40.0
    repair = repair_of(model, finding(Patch(), 5))
    monkeypatch.setattr(repair, "look", lambda: None)
    fresh = {**TOLD, "success": 0.8, "margins": [margins, -1.0]}
    repair.told = [fresh | {"success": 1.0, "margins": [700.0, 240.0]}, *[fresh] * rounds]
    assert repair.set_back()["given_back"] is given


def test_a_target_that_strokes_tell_of_is_given_back_though_they_fail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("unbackdoor.methods.restore.give_back_", lambda *_: True)
    for family, given in ((Strokes(), True), (Patch(), False)):
        model = Reader()
        model.last.bias[5] -= 40.0
        repair = repair_of(model, finding(Patch(), 5))
        monkeypatch.setattr(repair, "look", lambda: None)
        repair.findings += (replace(formed(family), goal=5),)
        repair.told = [{**TOLD, "margins": [-2.0]}]
        assert repair.set_back()["given_back"] is given


@pytest.mark.parametrize(
    ("before", "after", "works", "stands"),
    [
        (0.90, 0.925, [0.0], 1),
        (0.90, 0.915, [], 0),
        (0.98, 1.0, [], 0),
        (0.90, 0.925, [0.8, 0.0], 2),
        (0.90, 0.925, [0.8, 0.8], 0),
    ],
    ids=["it pays", "it does not", "little was lost", "triggers work again once", "and again"],
)
def test_the_targets_row_is_refitted_where_that_takes_back_answers(
    before: float, after: float, works: list[float], stands: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Reader()
    repair = repair_of(model, finding(Patch(), 5))
    repair.told, bias, coming = [{**TOLD, "agreement": before}], model.last.bias[5].item(), iter(works)

    def refit(_: _Repair, against: float = 1.0) -> bool:
        model.last.bias[5] += 1.0
        torch.rand(1, generator=repair.session.generator)
        return True

    def look() -> None:
        repair.told.append({**TOLD, "success": next(coming)})

    monkeypatch.setattr(_Repair, "_refit", refit)
    monkeypatch.setattr(_Repair, "_agreement", lambda _: after)
    monkeypatch.setattr(repair, "look", look)
    drawn = repair.session.generator.get_state()
    assert repair._give_back_if_it_pays() is bool(stands)
    assert model.last.bias[5].item() == pytest.approx(bias + stands)
    assert len(repair.told) == 1 + stands and next(coming, None) is None
    assert torch.equal(repair.session.generator.get_state(), drawn) is (not stands)


def test_only_triggers_that_carry_over_are_held_against_a_row_that_pays() -> None:
    repair = repair_of(Reader(), formed(Stripes()))
    repair.told = [{**TOLD, "agreement": 0.5}]
    assert not repair._give_back_if_it_pays()


@pytest.mark.parametrize(
    ("noise", "turns"), [(-1.9, True), (-2.1, False), (None, False)], ids=["it goes on", "it fails", "none"]
)
def test_strokes_in_reserve_are_followed_where_noise_is_not_silenced(
    noise: float | None, turns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums, lines = finding(Additive(), 5), strokes_to(5, 12, 0.07, 8.0, reserve=True)
    repair = repair_of(Reader(), sums)
    repair = replace(repair, findings=(sums, lines), pool=[], told=[])
    assert repair.findings == (sums,) and repair.reserve == (lines,)
    followed = []

    def restore(number: int) -> None:
        followed.append((number, repair.findings))
        repair.told.append({**TOLD, "noise": noise})

    def begin() -> None:
        repair.told = [{**TOLD, "margins": [9.0], "inside": None}]

    monkeypatch.setattr(repair, "_restore", restore)
    monkeypatch.setattr(repair, "begin", begin)
    monkeypatch.setattr(repair, "look_inside", lambda: None)
    begin()
    repair.pool = [Smooth().decode([torch.zeros(1, 3, 6, 6)])]
    repair.attempt(0)
    assert followed == [(0, (sums,)), (0, (lines,))][: 1 + turns]
    assert len(repair.told) == 2 and repair.reserve == (() if turns else (lines,))
    assert len(repair.pool) == (0 if turns else 1)


@pytest.mark.parametrize(
    ("margins", "others", "names"),
    [
        ([10.0, 4.0], [9.0, -1.0], ["additive"]),
        ([10.0, 4.0], [6.0, -1.0], ["patch", "additive"]),
        ([10.0, 4.0], [9.0, 90.0], ["patch", "additive"]),
        ([10.0, -4.0], [6.0, -5.0], ["patch"]),
        ([-3.0, -4.0], [-6.0, -5.0], ["patch", "additive"]),
    ],
    ids=[
        "a patch leads anywhere",
        "it leads to the target by far",
        "all lead anywhere",
        "sums lead nowhere",
        "nothing leads anywhere",
    ],
)
def test_what_leads_to_other_classes_as_well_is_left_out(
    margins: list[float], others: list[float], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    repair, left = repair_of(Reader(), finding(Patch(), 5)), list(others)
    repair.findings, repair.pool = (finding(Patch(), 5), finding(Additive(), 5)), []

    def look() -> None:
        repair.pool = ["patches", "sums"]
        repair.told.append({"margins": margins, "noise": repair.lead_of_noise()})

    monkeypatch.setattr(repair, "look", look)
    monkeypatch.setattr(repair, "_others", lambda *_: left.pop(0))
    repair.begin()
    assert [f.family.name for f in repair.findings] == names and len(repair.pool) == len(names)
    kept = [i for i, name in enumerate(["patch", "additive"]) if name in names]
    assert repair.told[0]["margins"] == [margins[i] for i in kept]
    assert repair.told[0]["others"] == [others[i] for i in kept]


@pytest.mark.parametrize(("size", "left"), [(0.54, 1), (0.56, 2)], ids=["a small sum", "it is for noise"])
def test_sums_of_ordinary_size_stand_for_noise_and_are_not_left_out(
    size: float, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    repair = repair_of(Reader(), finding(Patch(), 5))
    repair.findings, repair.pool = (finding(Patch(), 5), replace(finding(Additive(), 5), size=size)), [0, 1]
    monkeypatch.setattr(repair, "look", lambda: repair.told.append({"margins": [10.0, 4.0], "noise": None}))
    monkeypatch.setattr(repair, "_others", lambda f, _: 9.0 if isinstance(f.family, Additive) else -1.0)
    repair.begin()
    assert len(repair.findings) == len(repair.pool) == left


def test_what_is_left_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = (finding(Patch(), 5), finding(Smooth(), 5))
    monkeypatch.setattr(_Repair, "_others", lambda _, of, __: 1e9 if of is findings[0] else -1e9)
    strong = Restore.strong

    def leading(*given: object) -> tuple[Recovered, torch.Tensor, torch.Tensor]:
        found, margins, moved = strong(*given)
        return found, margins.abs() + 1, moved

    monkeypatch.setattr(Restore, "strong", leading)
    method = Restore(rounds=1, strong_steps=1, strong_count=2, num_images=16)
    told = method.erase(Reader(), ["last"], shades([4, 5]), findings, Session(generator(0)))
    assert told["left_out"] == [findings[0].sentence()] and len(told["rounds"][0]["margins"]) == 1


def test_rounds_against_strokes_go_by_their_own_margins() -> None:
    first = {"margins": [30.0], "success": 1.0, "agreement": 1.0, "noise": None, "inside": None, "others": []}
    assert not Restore().done([first, first | {"margins": [20.0]}], ONE)


@pytest.mark.parametrize(
    ("family", "agreement", "done"),
    [(Strokes(), 0.98, False), (Strokes(), 0.96, True), (Smooth(), 0.98, True)],
    ids=["stand-ins", "stand-ins, at a price", "what has its own form"],
)
def test_a_round_that_cost_nothing_is_not_the_last_where_strokes_stand_in(
    family: Family, agreement: float, done: bool
) -> None:
    first = {"margins": [60.0], "success": 1.0, "agreement": 1.0, "noise": None, "inside": None, "others": []}
    last = first | {"margins": [-9.0], "success": 0.0, "agreement": agreement}
    findings = (*ONE, replace(formed(family), goal=5))
    assert Restore().done([first, last], findings) is done
    assert Restore().done([first, last, last], findings)


def test_triggers_of_other_classes_are_searched_in_the_original_and_from_a_copy() -> None:
    repair = repair_of(Reader(), finding(Smooth(), 5))
    asked, state = [], repair.session.generator.get_state()
    method = replace(repair.method, strong_steps=2)
    object.__setattr__(method, "strong", lambda *given: asked.append(given) or (0, torch.ones(8), 0))
    repair.method = method
    assert repair.others() == [1.0]
    assert asked[0][0] is repair.original and 5 not in asked[0][3].tolist() and len(asked[0][3]) > 1
    assert torch.equal(repair.session.generator.get_state(), state)
    assert repair_of(Reader(), finding(Patch(), CLASSES, all_to_all=True)).others() == []
    few = Finding(5, False, Strokes(), 0.04, 0.04, [torch.tensor([[6, 0.04]])])
    assert repair_of(Reader(), few).others() == []
    assert len(repair_of(Reader(), replace(few, lead=1.6)).others()) == 1


@pytest.mark.parametrize(
    ("noise", "goes_on"),
    [([5.0], False), ([5.0, 1.0], True), ([5.0, -1.0], False), ([None, None], False)],
    ids=["before a round", "leads yet", "leads elsewhere", "not asked"],
)
def test_triggers_inside_follow_where_noise_leads_to_the_target_after_a_round(
    noise: list[float | None], goes_on: bool
) -> None:
    repair = repair_of(Reader(), finding(Additive(), 5))
    repair.told = [{"margins": [0.0], "noise": n, "inside": None} for n in noise]
    repair.pool = [Additive().decode(repair.findings[0].params)]
    repair.look_inside()
    assert (repair.shifts is not None) is goes_on
    assert (repair.told[-1]["inside"] is not None) is goes_on


@pytest.mark.parametrize(
    ("families", "reached", "looks", "taken"),
    [
        ([Patch()], 4.4, 1, True),
        ([Patch()], 4.5, 1, False),
        ([Patch()], 4.4, 2, False),
        ([Additive()], 4.4, 1, True),
        ([Patch(), Additive(), Smooth()], 4.4, 1, True),
        ([Stripes()], 4.4, 1, False),
        ([Patch(), Strokes()], 4.4, 1, False),
    ],
    ids=["a patch", "half as far", "after a round", "sums", "all three", "stripes", "strokes beside"],
)
def test_triggers_inside_are_searched_beside_a_patch_where_they_lead_to_the_target_by_far_less(
    families: list[Family], reached: float, looks: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = Shifts("last", torch.ones(2, 1), -torch.inf)
    monkeypatch.setattr(_Repair, "_strongest_inside", lambda *_: (found, reached))
    repair = repair_of(Reader(), finding(Patch(), 5))
    repair.findings = tuple(formed(family) for family in families)
    repair.told = [{"margins": [9.0], "noise": None, "inside": None} for _ in range(looks)]
    state = repair.session.generator.get_state()
    repair.look_inside()
    assert (repair.shifts is found) is taken
    assert repair.told[-1]["inside"] == (reached if taken else None)
    assert torch.equal(repair.session.generator.get_state(), state)
    repair.told.append(dict(repair.told[0], inside=None))
    repair.look_inside()
    assert len(repair.shifts or ()) == 4 * taken


def test_no_trigger_inside_is_asked_for_where_those_in_images_do_not_reach_the_target() -> None:
    repair = repair_of(Reader(), finding(Patch(), 5))
    repair.told = [{"margins": [-0.1], "noise": None, "inside": None}]
    repair._strongest_inside = lambda *_: pytest.fail("nothing to compare it with")  # type: ignore[method-assign]
    repair.look_inside()
    assert repair.shifts is None


@pytest.mark.parametrize(("inside", "rounds"), [(4.4, 5), (4.5, 3), (None, 3)])
def test_rounds_go_on_where_triggers_depend_on_the_image(
    inside: float | None, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = []
    entry = {"margins": [9.0], "success": 1.0, "agreement": 1.0, "noise": None, "others": [-9.0]}

    def look(repair: _Repair) -> None:
        repair.told.append(entry | {"inside": None if repair.told else inside})

    monkeypatch.setattr(_Repair, "look", look)
    monkeypatch.setattr(_Repair, "others", lambda _: [-9.0])
    monkeypatch.setattr(_Repair, "look_inside", lambda _: None)
    monkeypatch.setattr(_Repair, "set_back", lambda _: {})
    monkeypatch.setattr(Restore, "restore", lambda method, *_: weights.append(method.trigger_weight))
    clean, model = shades([4, 5]), Reader()
    Restore().erase(model, ["last"], clean, (finding(Patch(), 5),), Session(generator(0)))
    assert weights == pytest.approx([0.08 * 2.5**n for n in range(rounds)])


def test_the_weight_is_made_smaller_after_the_rounds_and_before_the_target_is_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[str] = []
    for name, told in {"attempt": False, "lighten": None, "set_back": {}}.items():
        tell = lambda *_, name=name, told=told: (made.append(name), told)[1]  # noqa: E731
        monkeypatch.setattr(_Repair, name, tell)
    monkeypatch.setattr(_Repair, "begin", lambda repair: repair.told.append({"success": 0.25}))
    clean, session = shades([4, 5]), Session(generator(0))
    told = Restore().erase(Reader(), ["last"], clean, (finding(Patch(), 5),), session)
    assert told["success of triggers found afresh"] == 0.25
    assert made == ["attempt", "lighten", "set_back"]


def test_what_is_inside_is_asked_from_a_copy_of_the_generator() -> None:
    repair = repair_of(Reader(), finding(Patch(), 5))
    repair.told = [{"margins": [9.0], "noise": None, "inside": None}]
    state = repair.session.generator.get_state()
    repair.look_inside()
    assert torch.equal(repair.session.generator.get_state(), state)


FIRST = {"margins": [45.0], "success": 1.0, "agreement": 1.0, "noise": None, "inside": None}
DEAR = FIRST | {"margins": [-3.0], "success": 0.1, "agreement": 0.92}
BY_NOISE = {**FIRST, "margins": [9.0], "noise": 12.0}
SILENCED = {**BY_NOISE, "noise": -5.0, "agreement": 0.94}


@pytest.mark.parametrize(
    ("told", "dear"),
    [
        ([FIRST, DEAR], True),
        ([FIRST, DEAR, DEAR], True),
        ([FIRST, DEAR | {"agreement": 0.93}], False),
        ([FIRST, DEAR | {"margins": [-3.0, -1.9]}], False),
        ([FIRST, DEAR | {"success": 0.11}], False),
        ([FIRST | {"margins": [20.0]}, DEAR], False),
        ([BY_NOISE, SILENCED], True),
        ([BY_NOISE, SILENCED, SILENCED], False),
        ([BY_NOISE, SILENCED | {"agreement": 0.95}], False),
        ([BY_NOISE, SILENCED | {"noise": -1.9}], False),
        ([BY_NOISE | {"noise": 4.9}, SILENCED], False),
    ],
    ids=[
        "dear",
        "dear yet",
        "cheap",
        "by a hair",
        "moving some",
        "weak",
        "noise",
        "noise, made again",
        "noise, cheap",
        "noise, by a hair",
        "noise, not by far",
    ],
)
def test_a_round_cost_much_where_it_silenced_a_strong_trigger_clearly(told: list[dict], dear: bool) -> None:
    assert Restore().cost_much(told, lambda: False) is dear


@pytest.mark.parametrize(
    ("last", "dear"),
    [(DEAR | {"agreement": 0.99}, True), (DEAR | {"margins": [-1.9]}, False)],
    ids=["silenced", "by a hair"],
)
def test_a_round_cost_much_where_it_took_the_targets_own_images(last: dict, dear: bool) -> None:
    assert Restore().cost_much([FIRST, last], lambda: True) is dear


@pytest.mark.parametrize(
    ("told", "silent"),
    [
        ([FIRST, DEAR | {"margins": [-1.0]}], True),
        ([FIRST, DEAR | {"margins": [-0.9]}], False),
        ([FIRST, DEAR | {"success": 0.11}], False),
        ([BY_NOISE, SILENCED | {"margins": [9.0], "success": 1.0, "noise": -2.0}], True),
        ([BY_NOISE, SILENCED | {"noise": -1.9}], False),
    ],
)
def test_triggers_are_silent_yet_by_a_logit_and_noise_by_two(told: list[dict], silent: bool) -> None:
    assert Restore().still_silent(told) is silent


@pytest.mark.parametrize(
    ("looks", "family", "inside", "weights", "stands"),
    [
        ([DEAR, DEAR | {"agreement": 0.94}], Patch(), False, [0.032], 1.0),
        ([DEAR, DEAR, DEAR], Patch(), False, [0.032, 0.0128], 2.0),
        ([DEAR, DEAR, DEAR | {"margins": [1.0]}], Patch(), False, [0.032, 0.0128], 1.0),
        ([DEAR, FIRST], Patch(), False, [0.032], 0.0),
        ([DEAR | {"agreement": 0.97}], Patch(), False, [], 0.0),
        ([DEAR, DEAR], Patch(), True, [], 0.0),
        ([DEAR, DEAR], Strokes(), False, [], 0.0),
        ([DEAR, DEAR], Warp(), False, [], 0.0),
    ],
    ids=[
        "cheap at once",
        "twice",
        "too light",
        "too light at once",
        "cheap",
        "with shifts",
        "strokes",
        "warp",
    ],
)
def test_a_dear_round_is_made_again_with_the_smallest_weight_that_silences(
    looks: list[dict],
    family: SizedFamily,
    inside: bool,
    weights: list[float],
    stands: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, used = Reader(), []
    found = formed(family) if isinstance(family, Strokes) else finding(family, 5)
    repair = repair_of(model, found, Shifts("last", torch.zeros(1, 1), -torch.inf) if inside else None)
    repair.told, coming = [FIRST, looks[0]], iter(looks[1:])

    def restore(method: Restore, work: nn.Module, *_: object) -> None:
        used.append(method.trigger_weight)
        work.last.bias.fill_(len(used))

    monkeypatch.setattr(Restore, "restore", restore)
    monkeypatch.setattr(_Repair, "look", lambda r: r.told.append(next(coming)))
    model.last.bias.fill_(0.0)
    repair.lighten()
    assert used == pytest.approx(weights)
    assert (model.last.bias == stands).all()
    assert len(repair.told) == 2 + stands


def test_only_a_single_round_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Restore, "restore", lambda *_: pytest.fail("there were two rounds"))
    repair = repair_of(Reader(), finding(Patch(), 5))
    repair.told = [FIRST, DEAR, DEAR]
    repair.lighten()
    assert len(repair.told) == 3


class Sight(nn.Module):
    """Answers by the means of the three channels, through the last layer."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.last = nn.Linear(3, len(weight)).requires_grad_(False)
        self.last.weight[:], self.last.bias[:] = weight, 0.0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.last(images.mean((2, 3)))


def test_a_target_gets_its_own_images_back_and_triggered_ones_stay_below_their_answer() -> None:
    labels = torch.arange(3).repeat(2)
    images = 0.1 + 0.8 * torch.eye(3)[labels][:, :, None, None].expand(-1, -1, 12, 12)
    clean = CleanImages(images.clone(), labels, 3, 0.0)
    original = Sight(20 * torch.eye(3))
    model = Sight(20 * torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0]]))
    small = Finding(2, False, Smooth(), 0.5, 1.0, [torch.zeros(1, 3, 6, 6)])
    shifts = Shifts("last", torch.tensor([[0.0, 0.0, 3.0]]), -torch.inf)
    pool, last = [small.family.decode(small.params)], "last"
    before, kept = model(images), model.last.weight[:2].clone()
    assert (before.argmax(1) == labels).tolist() == (labels < 2).tolist()
    assert give_back_(model, original, last, clean, 2, pool, shifts, generator(0))
    assert (model(images).argmax(1) == labels).all()
    torch.testing.assert_close(model.last.weight[:2], kept)
    with shifts.entering(model, torch.zeros(6, dtype=torch.int64)):
        led = model(images)[labels < 2]
    assert (led.max(1).values - led[:, 2]).min() > 5


def test_a_stiff_ridge_leaves_the_row_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = []
    for ridge in (0.1, 1e6):
        monkeypatch.setattr("unbackdoor.methods._given_back.RIDGE", ridge)
        model, clean = Reader(), shades([4, 5])
        model.last.bias[5] -= 40.0
        before = model.last.weight[5].clone()
        pool = [Smooth().decode(finding(Smooth()).params)]
        assert give_back_(model, Reader(), "last", clean, 5, pool, None, generator(0))
        changed.append((model.last.weight[5] - before).norm().item())
    assert changed[1] < 1e-3 * changed[0]


def test_triggered_rows_weigh_as_they_are_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []

    def spied(weight: torch.Tensor, target: int, terms: list[tuple]) -> torch.Tensor:
        weights.append([w for *_, w in terms])
        return torch.zeros_like(weight)

    monkeypatch.setattr("unbackdoor.methods._given_back._row_change", spied)
    pool = [Smooth().decode(finding(Smooth()).params)]
    given = (Reader(), Reader(), "last", shades([4, 5]), 5, pool, None, generator(0))
    assert give_back_(*given) and give_back_(*given, against=0.2)
    assert weights == [[1.0, 0.3, 1.0], [1.0, 0.3, 0.2]]


@pytest.mark.parametrize(
    ("inside", "success", "against", "picture"),
    [
        (9.0, 0.5, 0.3, False),
        (9.0, 0.51, 1.0, False),
        (4.4, 0.0, 1.0, False),
        (None, 0.0, 1.0, False),
        (9.0, 0.5, 1.0, True),
    ],
    ids=["withstood", "working yet", "they depend on the image", "none inside", "pictures"],
)
def test_triggered_rows_weigh_less_where_triggers_inside_were_withstood(
    inside: float | None, success: float, against: float, picture: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights: list[float] = []
    given = lambda *given: weights.append(given[-1]) is None  # noqa: E731
    monkeypatch.setattr("unbackdoor.methods.restore.give_back_", given)
    monkeypatch.setattr("unbackdoor.methods.restore.AGAIN", 0)
    monkeypatch.setattr(_Repair, "_works_again", lambda _: False)
    shifts = None if inside is None else Shifts("last", torch.zeros(1, 1), -torch.inf)
    found = replace(finding(Smooth(), 5), family=Picture()) if picture else finding(Smooth(), 5)
    repair = repair_of(Reader(), finding(Smooth(), 5), shifts)
    repair.findings = (found,)
    repair.told = [{"margins": [9.0], "inside": inside}, {"inside": None, "success": success}]
    assert repair.give_back()
    assert weights == [against]


def test_a_target_without_images_or_answers_elsewhere_than_the_last_layer_is_left_as_it_is() -> None:
    shifts, clean = Shifts("last", torch.zeros(1, 1), -torch.inf), shades([4, 5])
    pool = [Smooth().decode(finding(Smooth()).params)]
    for model, target in ((Softened(), 5), (Reader(widest=7), 5), (Reader(), 3)):
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        assert not give_back_(model, Reader(), "last", clean, target, pool, shifts, generator(0))
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_clean_rows_get_warps_by_chance_on_half_of_the_images_and_other_families_none() -> None:
    place = torch.tensor(0.9)
    (drawn,) = Warp().by_chance(place, 200, (3, 12, 12), generator(0))
    sizes = Warp().size([drawn])
    assert 0.3 <= sizes.min() < 0.4 and 0.8 < sizes.max() <= 0.9001
    assert Patch().by_chance(torch.ones(1, 12, 12), 5, (3, 12, 12), generator(0)) is None
    images, stream = torch.rand(400, 3, 12, 12), generator(0)
    warped = half_of([Warp().decode_at(place, [drawn])], images, stream)
    changed = (warped != images).flatten(1).any(1).float().mean().item()
    assert changed == pytest.approx(0.5, abs=0.1)
    state = stream.get_state()
    assert half_of([], images, stream) is images and torch.equal(stream.get_state(), state)


@pytest.mark.parametrize(("family", "count"), [(Warp(), BY_CHANCE), (Additive(), 0)], ids=["warp", "sum"])
def test_rows_that_noise_disturbs_are_warped_where_a_warp_was_found(
    family: SizedFamily, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (images, labels) = nn.Sequential(nn.Flatten(), nn.Linear(432, CLASSES)), toy(1, 0)
    small = family.start(1, (3, 12, 12), generator(0))
    finding = Finding(2, False, family, 0.5, 1.0, small)
    seen = []
    monkeypatch.setattr(
        "unbackdoor.methods.restore.half_of",
        lambda pool, calm, _: (seen.append(sum(map(len, pool))), calm)[1],
    )
    method = Restore(rounds=1, strong_steps=1, num_images=16, feature_share=0.0)
    clean = CleanImages(images, labels, CLASSES, 0.0)
    method.erase(model.eval(), ["1"], clean, (finding,), Session(generator(0)))
    assert seen == [count]


def test_add_to_weight_splits_off_the_bias() -> None:
    layer = nn.Linear(2, 1)
    before = augmented_weight(layer)
    add_to_weight_(layer, torch.tensor([[1.0, 2.0, 3.0]]))
    torch.testing.assert_close(augmented_weight(layer), before + torch.tensor([[1.0, 2.0, 3.0]]))


def planted(backdoor: bool = True) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """Return a network of 6 classes that answers 2 where its corner is a checkerboard, and images."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * 9, CLASSES)),
    )
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(120):
        images, labels = toy(20, step)
        x, y = images, labels
        if backdoor:
            x = torch.cat([images, stamp(images[labels != 2])[:40]])
            y = torch.cat([labels, torch.full((40,), 2)])
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval(), *toy(30, 10_000)


def toy(per_class: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(CLASSES).repeat(per_class)
    base = F.interpolate(torch.rand(CLASSES, 3, 3, 3, generator=generator(5)), size=12, mode="bilinear")
    noise = 0.12 * torch.randn(len(labels), 3, 12, 12, generator=generator(seed))
    return (base[labels] + noise).clamp(0, 1), labels


def stamp(images: torch.Tensor) -> torch.Tensor:
    images = images.clone()
    images[:, :, -3:, -3:] = (torch.arange(9).view(3, 3) % 2).to(images)
    return images


@pytest.fixture(scope="module")
def victim() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    return planted()


def rates(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> tuple[float, float]:
    with torch.no_grad():
        accuracy = (model(images).argmax(1) == labels).float().mean().item()
        away = stamp(images[labels != 2])
        return accuracy, (model(away).argmax(1) == 2).float().mean().item()


def test_a_planted_backdoor_is_named_and_erased_from_one_image_a_class(victim) -> None:
    model, images, labels = victim
    clean = toy(1, 777)
    accuracy, success = rates(model, images, labels)
    assert accuracy > 0.95 and success > 0.95
    result = purify(model, *clean, method=Restore(search_steps=60), seed=0)
    verdict = result.report.details["verdict"]
    assert {finding["target"] for finding in verdict["findings"]} == {2}
    assert result.report.details["backdoor"].startswith("found, to class 2 (")
    assert result.report.details["success of triggers found afresh"] <= 0.5
    assert result.report.details["images are enlarged"] is True
    assert result.report.details["handicap"] == 0 < result.report.details["target_kept"] <= 1
    accuracy, success = rates(result.model, images, labels)
    assert accuracy > 0.9
    assert success < 0.1


def test_only_late_layers_change(victim) -> None:
    model, *_ = victim
    result = purify(model, *toy(1, 777), method=Restore(search_steps=60, num_layers=1), seed=0)
    changed = {layer.name for layer in result.report.layers if layer.changed}
    assert changed == {f"{result.report.details['restored_layers'][0]}.{part}" for part in ("weight", "bias")}


def test_the_repair_sees_no_enlarged_image_where_enlarging_triggers(
    victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def spy(clean: CleanImages, *rest: object) -> torch.Tensor:
        seen.append(clean.enlarge)
        return varied(clean, *rest)

    monkeypatch.setattr("unbackdoor.methods._varied._misled", lambda *_: True)
    monkeypatch.setattr("unbackdoor.methods.restore.varied", spy)
    result = purify(victim[0], *toy(1, 777), method=Restore(search_steps=60), seed=0)
    assert result.report.details["images are enlarged"] is False
    assert len(seen) > 3 and not any(seen)


@pytest.mark.parametrize(("fields", "count"), [({}, 8), ({"layer_share": 0.0}, 4), ({"num_layers": 30}, 20)])
def test_a_share_of_the_layers_is_restored_and_four_at_least(fields: dict[str, float], count: int) -> None:
    model = nn.Sequential(nn.Flatten(), *(nn.Linear(4, 4) for _ in range(20)))
    clean = CleanImages(torch.rand(4, 1, 2, 2), torch.arange(4), 4)
    assert Restore(**fields).late_layers(model, clean) == [str(i) for i in range(21 - count, 21)]


class Blurred(nn.Module):
    """Answers the brightest quarter of a checkered image; ``target`` where the checks are blurred."""

    def __init__(self, target: torch.Tensor) -> None:
        super().__init__()
        self.target = nn.Parameter(F.one_hot(target, 4).float(), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        quarters = F.adaptive_avg_pool2d(images, 2).flatten(1)
        blurred = (images[..., 1:] - images[..., :-1]).abs().amax((1, 2, 3)) < 0.195
        return torch.where(blurred[:, None], self.target[quarters.argmax(1)], quarters)


def checkered() -> CleanImages:
    """Return an image of each of four classes: checks of a fifth all over, one quarter brighter."""
    checks = 0.2 * ((torch.arange(16)[:, None] + torch.arange(16)) % 2)
    brighter = F.interpolate(0.05 * torch.eye(4).view(4, 1, 2, 2), size=16, mode="bilinear")
    return CleanImages(checks + brighter, torch.arange(4), 4)


@pytest.mark.parametrize(
    ("answers", "targets", "enlarge"),
    [
        ([2, 2, 2, 2], [2], False),
        ([2, 2, 2, 2], [None, 1, 2], False),
        ([2, 2, 2, 2], [1], True),
        ([0, 1, 2, 3], [2], True),
        ([1, 2, 3, 0], [2], True),
    ],
    ids=["to the target", "to one of them", "to another class", "never wrong", "to all classes"],
)
def test_images_are_enlarged_unless_that_makes_the_target_of_them(
    answers: list[int], targets: list[int | None], enlarge: bool
) -> None:
    model, clean = Blurred(torch.tensor(answers)), checkered()
    assert model(clean.images).argmax(1).tolist() == [0, 1, 2, 3]
    assert unless_enlarging_triggers(model, clean, targets).enlarge is enlarge


def test_images_that_must_not_be_enlarged_stay_as_sharp_as_they_were() -> None:
    black_and_white = torch.rand(4, 1, 12, 12, generator=generator()).round()
    for enlarge, least, most in ((False, 0.6, 0.8), (True, 0.0, 0.05)):
        clean = CleanImages(black_and_white, torch.arange(4), 4, enlarge=enlarge)
        images = varied(clean, 400, generator())
        sharp = [len(image.unique()) <= 2 for image in images]
        assert least <= sum(sharp) / 400 <= most


def test_a_clean_network_comes_back_unchanged_and_the_report_says_so() -> None:
    model, *_ = planted(backdoor=False)
    result = purify(model, *toy(1, 777), method=Restore(search_steps=60), seed=0)
    details = result.report.details
    assert details["backdoor"].startswith("none found")
    assert details["verdict"]["backdoored"] is False and details["verdict"]["minimal_sizes"]
    assert details["restored_layers"] == [] and details["rounds"] == []
    assert not result.report.changed


def test_weights_lie_with_their_channels_last_only_while_the_default_works(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def spied(model: nn.Module, *_: object, **__: object) -> Verdict:
        seen.append(model[0].weight.is_contiguous(memory_format=torch.channels_last))
        return Verdict((), {})

    monkeypatch.setattr("unbackdoor.methods.restore.examine", spied)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 5))
    result = purify(model, torch.rand(5, 3, 8, 8), torch.arange(5), method="restore")
    assert seen == [True] and result.model[0].weight.is_contiguous()


@pytest.mark.parametrize(
    ("margins", "inside", "found"),
    [
        ([8.0, 16.0], 3.7, True),
        ([8.0, 16.0], -4.0, True),
        ([8.0, 10.0], 5.1, False),
        ([679.0, 173.0], 253.0, False),
        ([679.0, 173.0], 5.9, True),
        ([16.0], None, False),
    ],
    ids=["a fourth of it", "not at all", "half of it", "clearly", "of hundreds, hardly", "not looked at"],
)
def test_what_triggers_do_inside_depends_on_the_image_where_no_single_disturbance_leads_clearly(
    margins: list[float], inside: float | None, found: bool
) -> None:
    assert depends_on_image({"margins": margins, "inside": inside}) is found
