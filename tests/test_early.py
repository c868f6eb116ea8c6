"""Early layers that are taught to withstand triggers: when, against what, how far, and what stays."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from test_restore import TOLD, Reader, finding, planted, rates, repair_of, stamp, toy
from unbackdoor._clean import CleanImages
from unbackdoor.methods import _early
from unbackdoor.methods._early import MOST, STEPS, TIMES, run_before, teach_early_
from unbackdoor.methods.restore import MOST_PICTURED, Restore, _Repair, made_early
from unbackdoor.recover import Additive, Family, Finding, Overlay, Patch, Picture, Recovered, Smooth, Warp
from unbackdoor.recover._pictures import SPOTS


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def few() -> CleanImages:
    return CleanImages(*toy(1, 777), 6, 0.0)


def stamped() -> list[Recovered]:
    keep = torch.ones(1, 1, 12, 12)
    keep[..., -3:, -3:] = 0
    return [Overlay(keep, stamp(torch.zeros(1, 3, 12, 12)))]


@pytest.fixture(scope="module")
def victim() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    model, *test = planted()
    return model.requires_grad_(False), *test


def test_early_layers_learn_to_withstand_a_trigger_and_late_ones_stay(victim) -> None:
    model, images, labels = victim
    taught = copy.deepcopy(model)
    before = rates(model, images, labels)
    assert min(before) > 0.95
    names = teach_early_(taught, model, "9", few(), lambda: (stamped(), False), generator())
    assert names == ["0", "1", "4", "5"]
    accuracy, success = rates(taught, images, labels)
    assert accuracy > 0.95 and success < 0.2
    assert rates(model, images, labels) == before
    changed = {
        name for name, value in taught.state_dict().items() if not value.equal(model.state_dict()[name])
    }
    assert changed == {f"{name}.{part}" for name in names for part in ("weight", "bias")}
    assert not any(p.requires_grad or p.grad is not None for p in taught.parameters())


def test_the_same_generator_teaches_the_same(victim) -> None:
    model = victim[0]
    twice = [copy.deepcopy(model) for _ in range(2)]
    for taught in twice:
        teach_early_(taught, model, "4", few(), lambda: (stamped(), False), generator(3))
    first, second = (taught.state_dict().values() for taught in twice)
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("fails", "searches"),
    [([False, False, True], 3), ([True, True], 2), ([False] * TIMES, TIMES)],
    ids=["once they fail", "not before the first steps", "no more than so often"],
)
def test_teaching_ends_when_triggers_fail(
    fails: list[bool], searches: int, victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, steps = iter(fails), []
    monkeypatch.setattr(_early._Taught, "step", lambda *_: steps.append(1))
    monkeypatch.setattr(_early._Taught, "settle_", lambda _: None)
    model = copy.deepcopy(victim[0])
    asked: list[bool] = []

    def search() -> tuple[list[Recovered], bool]:
        asked.append(next(told))
        return stamped(), asked[-1]

    teach_early_(model, victim[0], "4", few(), search, generator())
    ended = searches if not any(fails[1:]) else searches - 1
    assert len(asked) == searches and len(steps) == ended * STEPS


@pytest.mark.parametrize(("most", "weights"), [(MOST, [1, 2, 4, 8, 16]), (2.0, [1, 2, 2, 2, 2])])
def test_triggered_images_weigh_more_from_search_to_search_and_steps_become_small(
    most: float, weights: list[float], victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float]] = []
    monkeypatch.setattr(_early._Taught, "step", lambda *given: seen.append(given[3:]))
    monkeypatch.setattr(_early._Taught, "settle_", lambda _: None)
    model = copy.deepcopy(victim[0])
    teach_early_(model, victim[0], "4", few(), lambda: (stamped(), False), generator(), most)
    assert [against for against, _ in seen[::STEPS]] == weights
    rates_ = [rate for _, rate in seen]
    assert rates_[0] == _early.RATE and rates_ == sorted(rates_, reverse=True) and 0 < rates_[-1] < 2e-5


def test_all_triggers_found_so_far_are_withstood_and_weights_settle_after_each_search(
    victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    pools, settled = [], []
    monkeypatch.setattr(_early, "apply_random", lambda pool, images, _: (pools.append(len(pool)), images)[1])
    monkeypatch.setattr(_early._Taught, "step", lambda *_: None)
    monkeypatch.setattr(_early._Taught, "settle_", lambda _: settled.append(len(pools)))
    teach_early_(copy.deepcopy(victim[0]), victim[0], "4", few(), lambda: (stamped(), False), generator())
    assert pools[::STEPS] == list(range(1, TIMES + 1))
    assert settled == [STEPS * (number + 1) for number in range(TIMES)]


def test_weights_move_less_the_more_they_are_held(victim, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    for near in (0.0, 5.0):
        monkeypatch.setattr(_early, "NEAR", near)
        model = copy.deepcopy(victim[0])
        teach_early_(model, victim[0], "4", few(), lambda: (stamped(), False), generator())
        moved.append((model[0].weight - victim[0][0].weight).square().sum().item())
    assert 0 < moved[1] < 0.5 * moved[0]


def test_the_mean_of_what_steps_passed_through_is_taken() -> None:
    model = Reader()
    taught = _early._Taught(model, Reader(), [model.last.weight])
    for mean, values in ((3.0, (1.0, 2.0, 6.0)), (4.0, (5.0, 3.0))):
        for value in values:
            model.last.weight.fill_(value)
            taught._pass()
        taught.settle_()
        assert model.last.weight.unique().tolist() == [mean]


def test_weights_are_held_near_their_values_by_the_size_of_their_tensor() -> None:
    weights = [nn.Parameter(torch.tensor([3.0, -3.0])), nn.Parameter(torch.zeros(2))]
    taught = _early._Taught(nn.Identity(), nn.Identity(), weights)
    with torch.no_grad():
        weights[0][0] += 1.5
        weights[1][1] += 0.1
    assert taught._moved().item() == pytest.approx(1.5**2 / 9 + 0.1**2 / _early.LEAST)


class Backwards(nn.Module):
    """Runs what it holds in another order than it holds it in, its norm twice."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.norm, self.unused = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Linear(1, 1)
        self.first, self.plain = nn.Conv2d(3, 3, 1), nn.ReLU()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.last(self.plain(self.norm(self.first(images)))))


def test_what_runs_before_a_layer_comes_in_the_order_it_runs() -> None:
    model = Backwards().eval()
    images = torch.rand(1, 3, 4, 4)
    assert run_before(model, "last", images) == ["first", "norm"]
    assert run_before(model, "first", images) == []
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_nothing_is_searched_where_nothing_runs_before() -> None:
    search = lambda: pytest.fail("there is nothing to teach")  # noqa: E731
    assert teach_early_(Reader(), Reader(), "last", few(), search, generator()) == []


SUMS, WARPS = (Additive(),), (Smooth(), Warp())


@pytest.mark.parametrize(
    ("families", "inside", "left", "early"),
    [
        (WARPS, 13.5, [8.0, 11.2], True),
        (WARPS, 18.5, [8.0, 11.2], False),
        (WARPS, None, [8.0, 11.2], False),
        (WARPS, 13.5, [5.0, -1.0], False),
        (WARPS, 2.0, [8.0, 11.2], False),
        ((Patch(),), 13.5, [8.0], False),
        (SUMS, 2.0, [8.0], True),
        (SUMS, 2.0, [2.0], False),
    ],
    ids=[
        "a warp stays",
        "one disturbance inside reaches as far",
        "nothing is known of that",
        "little is left",
        "it depends on the image",
        "a patch has a place",
        "so do sums alone",
        "a round takes these",
    ],
)
def test_early_layers_make_the_target_where_late_ones_leave_the_trigger(
    families: tuple[Family, ...], inside: float | None, left: list[float], early: bool
) -> None:
    first = {"margins": [15.3, 18.4][: len(left)], "inside": inside}
    told = [first, {"margins": left, "inside": None}]
    assert made_early(told, tuple(finding(family) for family in families)) is early


def test_rounds_go_on_where_nothing_runs_before_the_late_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    repair = repair_of(Reader(), finding(Smooth(), 5))
    monkeypatch.setattr(_Repair, "look_inside", lambda _: None)
    monkeypatch.setattr(_Repair, "_teach_early", lambda _: pytest.fail("there is nothing to teach"))
    entry = {**TOLD, "margins": [6.0], "success": 1.0, "others": [-9.0]}
    monkeypatch.setattr(repair, "_restore", lambda _: repair.told.append(entry))
    repair.told = [{**entry, "margins": [9.0], "inside": 6.0}]
    assert repair.attempt(0) is True and made_early(repair.told, repair.findings)


@pytest.mark.parametrize("family", [Additive(), Smooth()], ids=["sums", "smooth"])
def test_late_layers_stay_where_early_ones_are_taught(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    repair, given = repair_of(Reader(), finding(family, 5)), {}

    def teach(*args: object) -> list[str]:
        given.update(
            layer=args[2], search=args[4], most=args[6], model=copy.deepcopy(repair.model.state_dict())
        )
        return ["first"]

    def restore(number: int) -> None:
        repair.model.last.weight.add_(1)
        repair.told.append({**TOLD, "margins": [6.0], "success": 1.0})

    monkeypatch.setattr("unbackdoor.methods.restore.teach_early_", teach)
    monkeypatch.setattr("unbackdoor.methods.restore.run_before", lambda *_: ["first"])
    monkeypatch.setattr(_Repair, "others", lambda _: [-9.0])
    monkeypatch.setattr(_Repair, "look_inside", lambda _: None)
    monkeypatch.setattr(repair, "_restore", restore)
    repair.told = [{**TOLD, "margins": [9.0], "success": 1.0, "inside": 4.0 if family == Additive() else 6.0}]
    repair.shifts = None
    assert repair.attempt(0) is False
    assert given["layer"] == "last" and given["model"]["last.weight"].equal(Reader().last.weight)
    assert repair.taught == ["first"] and len(repair.told) == 3
    followed = repair.findings[0]
    if family == Additive():
        assert followed.family == Picture() and followed.goal == 5 and followed.strong_place[0] == SPOTS
        assert given["most"] == MOST_PICTURED
    else:
        assert followed.family == family and given["most"] == MOST
    assert [len(stack) for stack in repair.pool] == [8]


@pytest.mark.parametrize(
    ("others", "margin", "fails"),
    [(-9.0, -1.9, False), (-9.0, -2.0, True), (1.6, 1.6, True), (1.6, 1.7, False)],
    ids=["by a hair", "by two logits", "no further than to others", "further"],
)
def test_taught_layers_withstand_triggers_that_lead_no_further_than_to_other_classes(
    others: float, margin: float, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    repair, told = repair_of(Reader(), finding(Smooth(), 5)), []
    counts: list[int] = []

    def recover(method: Restore, *_: object) -> tuple[list[Recovered], list[float], float]:
        counts.append(method.strong_count)
        return [], [margin], 0.0

    monkeypatch.setattr(Restore, "recover", recover)
    monkeypatch.setattr(_Repair, "others", lambda _: [others])
    monkeypatch.setattr(
        "unbackdoor.methods.restore.teach_early_", lambda *given: (told.append(given[4]()), ["first"])[1]
    )
    repair._teach_early()
    assert told == [([], fails)] and counts == [4, 8]


def test_no_target_is_set_forward_by_what_stand_ins_of_taught_layers_fail_by() -> None:
    repair = repair_of(Reader(), finding(Smooth(), 5))
    repair.told = [{**TOLD, "margins": [-6.0]}]
    assert repair._failing() == 6.0
    assert replace(repair, taught=["first"], told=repair.told)._failing() == 0.0


def test_which_layers_were_taught_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def attempt(repair: _Repair, _: int) -> bool:
        repair.told, repair.taught = [dict(TOLD)], taught
        return False

    for name in ("begin", "lighten"):
        monkeypatch.setattr(_Repair, name, lambda _: None)
    monkeypatch.setattr(_Repair, "attempt", attempt)
    monkeypatch.setattr(_Repair, "set_back", lambda _: {})
    repair = repair_of(Reader(), finding(Patch(), 5))
    given: tuple[Finding, ...] = repair.findings
    for taught, restored in (([], ["last"]), (["first"], [])):
        told = Restore().erase(repair.model, ["last"], repair.clean, given, repair.session)
        assert told["taught_layers"] == taught and told["restored_layers"] == restored
