"""The paper's own baselines: FT, FP, NAD, MCR, ANP, I-BAU, and what they are built of."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from reference import anp_reference, ibau_reference
from unbackdoor import UnbackdoorError
from unbackdoor._clean import CleanImages
from unbackdoor.methods import Session
from unbackdoor.methods._activations import captured, last_hidden_layer, stage_ends
from unbackdoor.methods._training import (
    count_steps,
    crop_and_flip,
    fit,
    share_correct,
    take,
    train_mode_,
    trainable,
)
from unbackdoor.methods.anp import ANP, above
from unbackdoor.methods.fine_prune import FinePrune, largest, rank_channels
from unbackdoor.methods.fine_tune import FineTune
from unbackdoor.methods.ibau import IBAU, hypergradient
from unbackdoor.methods.mcr import MCR
from unbackdoor.methods.nad import NAD, attention


def session(seed: int = 0) -> Session:
    return Session(torch.Generator().manual_seed(seed))


def network(classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, classes),
    )


def bright_and_dark(count: int = 24, classes: int = 3) -> CleanImages:
    """Return images whose class is their brightness: a task that a tiny network learns in a few steps."""
    labels = torch.arange(count) % classes
    noise = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    return CleanImages((labels / classes).view(-1, 1, 1, 1) + noise / 10, labels, classes)


# --- the loop


@pytest.mark.parametrize(("count", "size"), [(7, 3), (3, 2), (10, 64), (9, 4), (2, 2), (1, 8)])
def test_an_epoch_shows_every_image_once_and_no_image_alone(count: int, size: int) -> None:
    clean = CleanImages(torch.arange(float(count)).view(-1, 1, 1, 1), torch.arange(count), count)
    steps = count_steps(count, size, epochs=2)
    batches = [labels for _, labels in take(clean, steps, size, torch.Generator())]
    assert sorted(torch.cat(batches).tolist()) == sorted([*range(count), *range(count)])
    assert min(map(len, batches)) >= min(2, count)
    assert all(torch.equal(x.flatten().long(), y) for x, y in take(clean, 3, size, torch.Generator()))


def test_fit_learns_tells_and_returns_the_loss() -> None:
    model, clean, ticks = network(), bright_and_dark(), []
    told = Session(torch.Generator().manual_seed(0), ticks.append)
    optimizer = torch.optim.Adam(trainable(model), lr=0.02)
    first = fit(model, clean, told, optimizer=optimizer, steps=2, batch_size=12)
    final = fit(model, clean, told, optimizer=optimizer, steps=60, batch_size=12)
    assert final < first / 2 and share_correct(model, clean) > 0.9
    assert [tick.step for tick in ticks][-60:] == list(range(1, 61))
    assert ticks[-1].values["loss"] + ticks[-2].values["loss"] == pytest.approx(2 * final)


def test_statistics_follow_the_images_or_stay() -> None:
    for freeze in (False, True):
        model, clean = network(), bright_and_dark()
        old = model[1].running_mean.clone()
        optimizer = torch.optim.SGD(trainable(model), lr=0.1)
        fit(model, clean, session(), optimizer=optimizer, steps=2, batch_size=8, freeze_statistics=freeze)
        assert torch.equal(model[1].running_mean, old) == freeze
        assert model.training and model[1].training != freeze


def test_the_loop_takes_optimisers_that_want_several_gradients() -> None:
    model, clean = network(), bright_and_dark()
    optimizer = torch.optim.LBFGS(trainable(model), max_iter=4)
    calls = []

    def loss(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return nn.functional.cross_entropy(model(images), labels)

    fit(model, clean, session(), optimizer=optimizer, steps=1, batch_size=24, loss=loss)
    assert len(calls) > 1


def test_gradients_are_clipped_on_demand() -> None:
    moves = []
    for limit in (None, 1e-3):
        model, clean = network(), bright_and_dark()
        optimizer, old = torch.optim.SGD(trainable(model), lr=1.0), model[0].weight.detach().clone()
        fit(model, clean, session(), optimizer=optimizer, steps=1, batch_size=24, clip_norm=limit)
        moves.append((model[0].weight - old).norm().item())
    assert moves[1] <= 1.001e-3 < moves[0]


def test_trainable_thaws_frozen_weights() -> None:
    model = network().requires_grad_(False)
    assert all(parameter.requires_grad for parameter in trainable(model))


def test_train_mode_keeps_statistics_on_demand() -> None:
    model = network().eval()
    train_mode_(model, freeze_statistics=True)
    assert model.training and not model[1].training


def test_crops_shift_by_an_eighth_at_most() -> None:
    images = torch.zeros(200, 1, 16, 16)
    images[:, :, 8, 8] = 1
    moved = crop_and_flip(images, torch.Generator().manual_seed(0))
    rows, columns = moved.nonzero()[:, 2], moved.nonzero()[:, 3]
    assert set(rows.tolist()) == set(range(6, 11))
    assert set(columns.tolist()) == set(range(5, 11))
    assert moved.sum() == 200


# --- watching activations


def test_hooks_are_gone_after_success_bad_name_and_crash() -> None:
    model = network()
    with captured(model, ["0", "2"]) as seen:
        model(torch.rand(2, 1, 8, 8))
    assert list(seen) == ["0", "2"] and seen["2"].shape == (2, 4, 8, 8)
    with pytest.raises(AttributeError), captured(model, ["0", "no_such"]):
        pass
    with pytest.raises(RuntimeError), captured(model, ["0"]):
        model(torch.rand(2, 3, 8, 8))
    assert not any(module._forward_hooks for module in model.modules())


def test_stages_end_where_the_size_changes() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 2, 1))
    assert stage_ends(model, torch.rand(1, 1, 8, 8)) == ["1", "3"]
    assert stage_ends(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), torch.rand(1, 1, 8, 8)) == []


def test_last_hidden_layer() -> None:
    image = torch.rand(1, 1, 8, 8)
    assert last_hidden_layer(network(), image) == "3"
    assert last_hidden_layer(nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Linear(4, 2)), image) == "1"
    assert last_hidden_layer(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), image) is None


# --- FT


@pytest.mark.parametrize("augment", [False, True])
def test_fine_tuning_learns_the_clean_images(augment: bool) -> None:
    model, clean = network(), bright_and_dark()
    details = FineTune(least_steps=60, num_epochs=1, learning_rate=0.1, augment=augment).run(
        model, clean, session()
    )
    assert details["steps"] == 60
    assert share_correct(model, clean) > 0.9


# --- FP


def sleeper() -> nn.Sequential:
    """Return a network whose second channel fires only on a white pixel (1.0) and then shouts class 2."""
    model = nn.Sequential(
        nn.Conv2d(1, 3, 1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 3),
    )
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 10.0, -1.0]).view(3, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([0.0, -9.0, 1.0]))
        model[5].weight.copy_(torch.tensor([[-3.0, 0.0, 3.0], [3.0, 0.0, -3.0], [0.0, 50.0, 0.0]]))
        model[5].bias.zero_()
    return model.eval()


def test_fine_pruning_cuts_the_sleeping_channel_for_good() -> None:
    model = sleeper()
    labels = torch.arange(8) % 2
    images = 0.1 + 0.7 * labels.float().view(-1, 1, 1, 1).expand(8, 1, 4, 4).contiguous()
    clean = CleanImages(images, labels, 3)
    stamped = images.clone()
    stamped[..., 0, 0] = 1
    assert share_correct(model, clean) == 1 and (model(stamped).argmax(1) == 2).all()
    order, readers = rank_channels(model, "0", clean)
    assert order[0] == 1 and readers == ["1"]
    method = FinePrune(num_epochs=1, least_steps=3, tolerance=0.0, learning_rate=1e-3, freeze_statistics=True)
    details = method.run(model, clean, session())
    assert details["pruned"] >= 1
    assert not model[0].weight[1].any() and not model[1].weight[1].any() and not model[1].bias[1].any()
    assert not (model.eval()(stamped).argmax(1) == 2).any()


def test_fine_pruning_stops_at_the_tolerance() -> None:
    clean = bright_and_dark()
    model = network()
    FineTune(least_steps=60, num_epochs=1, learning_rate=0.1, augment=False).run(model, clean, session())
    before = share_correct(model, clean)
    counts = []
    for tolerance in (0.0, 1.0):
        pruned = copy.deepcopy(model)
        counts.append(
            FinePrune(num_epochs=0, least_steps=0, tolerance=tolerance).run(pruned, clean, session())
        )
        assert share_correct(pruned, clean) >= before - tolerance
    assert counts[0]["pruned"] < counts[1]["pruned"] == 4


@pytest.mark.parametrize("limit", range(9))
def test_bisection(limit: int) -> None:
    assert largest(lambda count: count <= limit, 8) == limit


# --- NAD


def test_attention_maps_have_norm_one_and_ignore_scale() -> None:
    features = torch.rand(3, 4, 5, 6)
    maps = attention(features, 2.0)
    assert maps.shape == (3, 5, 6)
    assert torch.allclose(maps.flatten(1).norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(maps, attention(7 * features, 2.0), atol=1e-5)


def test_distillation_loss_is_cross_entropy_plus_weighted_distances() -> None:
    student, clean = network().eval(), bright_and_dark()
    torch.manual_seed(1)
    teacher = copy.deepcopy(student)
    plain = nn.functional.cross_entropy(student(clean.images), clean.labels)
    same = NAD().distillation(student, teacher, ["2", "5"])(clean.images, clean.labels)
    assert torch.isclose(same, plain)
    nn.init.normal_(teacher[0].weight)
    one, ten = (
        NAD(attention_weight=w).distillation(student, teacher, ["2"])(clean.images, clean.labels)
        for w in (1.0, 10.0)
    )
    maps = [attention(net[:3](clean.images), 2.0) for net in (student, teacher)]
    distance = (maps[0] - maps[1]).square().mean()
    assert distance > 0 and torch.isclose(one - plain, distance) and torch.isclose(ten - plain, 10 * distance)


def test_nad_teaches_a_student() -> None:
    model, clean = network(), bright_and_dark()
    method = NAD(least_steps=60, num_epochs=1, num_teacher_epochs=1, attention_weight=1.0, augment=False)
    details = method.run(model, clean, session())
    assert details["stages"] == ["5"] and share_correct(model, clean) > 0.9


# --- MCR


def test_the_ends_of_the_curve_are_the_model_and_its_fine_tuned_copy() -> None:
    clean, model = bright_and_dark(), nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    fields = {"num_epochs": 1, "least_steps": 3, "num_curve_epochs": 1}
    start, end, tuned = (copy.deepcopy(model) for _ in range(3))
    MCR(position=0.0, **fields).run(start, clean, session(4))
    MCR(position=1.0, **fields).run(end, clean, session(4))
    FineTune(num_epochs=1, least_steps=3).run(tuned, clean, session(4))
    assert torch.equal(start[1].weight, model[1].weight)
    assert torch.equal(end[1].weight, tuned[1].weight) and not torch.equal(end[1].weight, model[1].weight)


def test_statistics_of_the_point_are_those_of_the_clean_images() -> None:
    clean, model = bright_and_dark(), network()
    MCR(num_epochs=1, least_steps=2, num_curve_epochs=1, batch_size=24).run(model, clean, session())
    first = model[0](clean.images).transpose(0, 1).flatten(1)
    assert torch.allclose(model[1].running_mean, first.mean(1), atol=1e-5)
    assert torch.allclose(model[1].running_var, first.var(1), atol=1e-5)
    assert model[1].momentum == 0.1


def test_the_bend_is_trained() -> None:
    clean, model = bright_and_dark(), network()
    MCR(least_steps=100, curve_learning_rate=0.1, learning_rate=0.1, augment=False).run(
        model, clean, session()
    )
    assert share_correct(model, clean) > 0.9


def test_mcr_refuses_a_point_off_the_curve() -> None:
    with pytest.raises(UnbackdoorError, match="position"):
        MCR(position=1.5)


# --- ANP


def test_anp_agrees_with_its_slow_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unbackdoor.methods.anp.crop_and_flip", lambda images, generator: images)
    model, clean = network().double(), bright_and_dark()
    clean = CleanImages(clean.images.double(), clean.labels, clean.num_classes)
    before = copy.deepcopy(model.state_dict())
    method = ANP(num_iterations=6, batch_size=7, num_perturbation_steps=2)
    masks = method.find_masks(model, clean, session(9))
    drawn, batches, starts = torch.Generator().manual_seed(9), [], []
    for _ in range(6):
        batches.append(clean.batch(7, drawn))
        rows = [(torch.rand(n, generator=drawn) * 2 - 1).double() for n in (4, 5, 4, 5)]
        starts.append((rows[:2], rows[2:]))
    slow = anp_reference.find_masks(
        before, batches, starts, trade_off=0.2, budget=0.4, num_steps=2, learning_rate=0.2, momentum=0.9
    )
    assert list(masks) == ["1.weight", "4.weight"]
    assert all(torch.allclose(f, s, rtol=1e-9) for f, s in zip(masks.values(), slow, strict=True))
    assert min(mask.min() for mask in slow) < 1
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_anp_prunes_as_far_as_the_clean_accuracy_allows() -> None:
    clean, model = bright_and_dark(), network()
    FineTune(least_steps=60, num_epochs=1, learning_rate=0.1, augment=False).run(model, clean, session())
    biases = model[4].bias.detach().clone()
    before = share_correct(model, clean)
    method = ANP(num_iterations=30, tolerance=0.2)
    masks = method.find_masks(model, clean, session())
    threshold = method.choose_threshold(model, masks, clean)
    details = method.run(model, clean, session())
    assert details["threshold"] == threshold
    assert share_correct(model, clean) >= before - 0.2
    for name, hard in above(masks, threshold).items():
        assert torch.equal(model.get_parameter(name) == 0, hard == 0)
    assert torch.equal(model[4].bias, biases)
    assert details["pruned"] == sum(int((hard == 0).sum()) for hard in above(masks, threshold).values())


def test_anp_tolerance_decides() -> None:
    clean, model = bright_and_dark(), network()
    FineTune(least_steps=60, num_epochs=1, learning_rate=0.1, augment=False).run(model, clean, session())
    masks = {"1.weight": torch.tensor([0.0, 0.3, 0.6, 1.0]), "4.weight": torch.linspace(0.1, 1, 5)}
    chosen = [ANP(tolerance=t).choose_threshold(model, masks, clean) for t in (-1.0, 0.0, 1.0)]
    assert chosen[0] == -1.0 and chosen[0] <= chosen[1] <= chosen[2] and chosen[2] == pytest.approx(0.9)


def test_anp_refuses_an_endless_grid() -> None:
    with pytest.raises(UnbackdoorError, match="threshold_step"):
        ANP(threshold_step=0.0)


# --- I-BAU


def test_hypergradient_of_a_quadratic_is_known() -> None:
    """δ*(w) = w and H = ½‖δ‖², so dH/dw = w once the series has converged, and 0 without it."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    gradients = [
        hypergradient(
            lambda d: d.square().sum() / 2,
            lambda d: (d - weight).square().sum() / 2,
            weight.detach().clone(),
            [weight],
            step_size=0.5,
            num_steps=steps,
        )[0]
        for steps in (0, 1, 60)
    ]
    assert torch.equal(gradients[0], torch.zeros_like(weight))
    assert torch.allclose(gradients[1], weight / 2)
    assert torch.allclose(gradients[2], weight.detach())


def test_ibau_agrees_with_its_slow_reference() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ELU(), nn.Flatten(), nn.Linear(8, 3))
    model = model.double().eval()
    images = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    clean = CleanImages(images, torch.arange(9) % 3, 3)
    slow = copy.deepcopy(model)
    method = IBAU(
        num_rounds=2,
        batch_size=5,
        least_steps=3,
        portion=0.4,
        inner_learning_rate=1.0,
        perturbation_bound=0.5,
    )
    method.run(model, clean, session(6))
    drawn, rounds = torch.Generator().manual_seed(6), []
    for _ in range(2):
        inner, outer = list(take(clean, 3, 5, drawn)), []
        for x, y in take(clean, 3, 5, drawn):
            chosen = torch.zeros(len(x), 1, 1, 1, dtype=torch.float64)
            chosen[torch.randperm(len(x), generator=drawn)[: max(1, int(len(x) * 0.4))]] = 1
            outer.append((x, y, chosen))
        rounds.append((inner, outer))
    ibau_reference.unlearn(
        slow, rounds, inner_rate=1.0, fixed_point_step=0.1, penalty=1e-3, bound=0.5, rate=1e-3, num_steps=5
    )
    for fast, reference in zip(model.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(fast, reference, rtol=1e-8, atol=1e-12)


def test_perturbation_climbs_the_loss() -> None:
    clean, model = bright_and_dark(), network()
    FineTune(least_steps=60, num_epochs=1, learning_rate=0.1, augment=False).run(model, clean, session())
    model.eval()
    delta = IBAU(inner_learning_rate=50.0, inner_penalty=1e-4).perturbation(model, clean, session(), 20)
    assert delta.shape == (1, 1, 8, 8) and delta.norm() <= 10.001
    turned = CleanImages(clean.images + delta, clean.labels, 3)
    assert share_correct(model, turned) < share_correct(model, clean) - 0.2
