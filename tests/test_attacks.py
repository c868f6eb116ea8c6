"""One contract for every trigger, and what makes each of them what its paper says."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from unbackdoor import UnbackdoorError, attacks
from unbackdoor._dct import dct_basis
from unbackdoor.attacks import ATTACKS, OptimisedTrigger, get_trigger
from unbackdoor.attacks._pictures import GAP, TILE, TITLE, drawn_triggers, triggers_sheet

SHAPES = [(3, 32, 32), (1, 28, 28), (3, 28, 32)]
FIXED = {"patch", "additive", "mask"}
BOUNDS = {
    # name: (largest change of a pixel, largest root mean square of the change)
    "blend": (0.2, 0.2),
    "adaptive_blend": (0.2, 0.2),
    "sig": (20 / 255, 20 / 255),
    "low_frequency": (0.1, 0.1),
    "l2_inv": (1.0, 10 / 255),
    "ftrojan": (10 / 255, 4 / 255),
    "bpp": (0.2, 0.1),
}


def small_net(channels: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 4),
    )


def some_images(shape: tuple[int, int, int], count: int = 5) -> torch.Tensor:
    """Smooth images that reach 0 and 1, so that clipping is met."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, shape[0], 4, 4, generator=generator) * 1.2 - 0.1
    return nn.functional.interpolate(coarse, size=shape[1:], mode="bilinear").clamp(0, 1)


def ready_trigger(name: str, shape: tuple[int, int, int], folder) -> attacks.Trigger:
    """Return the trigger as a victim meets it: files written, networks prepared, pattern optimised."""
    if name in FIXED:
        return fixed_trigger(name, shape, folder)
    if name == "trojan_nn":
        return get_trigger(name, steps=3).optimise(small_net(shape[0]), some_images(shape))
    if name == "input_aware":
        images = some_images(shape, 8)
        trigger = get_trigger(name, mask_epochs=3, width=4, batch_size=4)
        return trigger.prepare(images, torch.zeros(8, dtype=torch.long), torch.Generator().manual_seed(0))
    return get_trigger(name)


def fixed_trigger(name: str, shape: tuple[int, int, int], folder) -> attacks.Trigger:
    np.save(folder / "pattern.npy", np.full((1, *shape[1:]), 0.3, dtype=np.float32))
    np.save(folder / "mask.npy", np.eye(*shape[1:], dtype=np.float32))
    pattern, mask = str(folder / "pattern.npy"), str(folder / "mask.npy")
    if name == "mask":
        return get_trigger("mask", mask=mask, pattern=pattern)
    return get_trigger(name, file=pattern)


@pytest.fixture(params=SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def shape(request):
    return request.param


@pytest.fixture(params=sorted(ATTACKS))
def trigger(request, shape, tmp_path):
    return ready_trigger(request.param, shape, tmp_path)


def test_contract_of_apply(trigger, shape):
    images = some_images(shape)
    kept = images.clone()
    result = trigger(images)
    assert torch.equal(images, kept), "the input was changed"
    assert result.shape == images.shape and result.dtype == images.dtype
    assert not result.requires_grad
    assert result.min() >= 0 and result.max() <= 1
    assert torch.equal(trigger.apply(images), result), "apply leaves [0, 1] or is not deterministic"
    assert all((result[i] - images[i]).abs().max() > 1 / 255 for i in range(len(images))), (
        "nothing is changed"
    )
    assert torch.allclose(trigger(images[:1]), result[:1], atol=1e-6), "the batch matters"
    assert trigger(images.double()).dtype == torch.float64


def test_contract_of_training(trigger, shape):
    images = some_images(shape)
    for change in (trigger.train_apply, trigger.cover):
        first = change(images, torch.Generator().manual_seed(3)).detach()
        again = change(images, torch.Generator().manual_seed(3)).detach()
        assert first.shape == images.shape and first.min() >= 0 and first.max() <= 1
        assert torch.equal(first, again)
        assert change(images[:1], torch.Generator().manual_seed(3)).shape == images[:1].shape
    assert torch.equal(images, some_images(shape)), "the input was changed"
    differs = not torch.equal(trigger.cover(images, torch.Generator().manual_seed(3)), images)
    assert differs == (trigger.cover_rate > 0)


def test_fields_and_state_restore_the_trigger(trigger, shape):
    fields = json.loads(json.dumps(trigger.fields()))
    again = get_trigger(trigger.name, **fields).with_state(trigger.state())
    assert again == trigger and again.fields() == trigger.fields()
    assert all(isinstance(value, torch.Tensor) for value in trigger.state().values())
    assert torch.equal(again(some_images(shape)), trigger(some_images(shape)))


@pytest.mark.parametrize("name", sorted(BOUNDS))
def test_faint_triggers_stay_within_their_bound(name, shape):
    images = some_images(shape)
    change = get_trigger(name)(images) - images
    largest, root_mean_square = BOUNDS[name]
    assert change.abs().max() <= largest + 1e-6
    assert change.flatten(1).square().mean(1).sqrt().max() <= root_mean_square + 1e-6


def test_names_are_those_of_the_registry():
    assert all(name == kind.name for name, kind in ATTACKS.items())
    assert all(kind.__name__ in attacks.__all__ for kind in ATTACKS.values())


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        ("badnet", {}, "badnets"),
        ("sig", {"frequencies": 3}, "frequency"),
        ("sig", {"amplitude": 2.0}, "amplitude"),
        ("blend", {"opacity": float("nan")}, "opacity"),
        ("badnets", {"corner": "middle"}, "bottom-left"),
        ("adaptive_patch", {"test_patches": (4,)}, "test_patches"),
        ("patch", {}, "file"),
    ],
)
def test_bad_names_and_values_are_told(name, fields, says):
    with pytest.raises(UnbackdoorError, match=says):
        get_trigger(name, **fields)


@pytest.mark.parametrize("name", ["trojan_nn", "input_aware"])
def test_a_trigger_that_is_not_ready_says_what_to_call(name):
    with pytest.raises(UnbackdoorError, match="optimise|prepare"):
        get_trigger(name)(some_images((3, 32, 32)))


def test_a_patch_larger_than_the_image_is_refused():
    with pytest.raises(UnbackdoorError, match="does not fit"):
        get_trigger("badnets", size=9)(torch.zeros(1, 3, 8, 8))


def test_badnets_changes_its_corners_only():
    images = torch.full((1, 3, 8, 8), 0.5)
    changed = (get_trigger("badnets", size=3)(images) != images).any(1)[0]
    assert changed[5:, 5:].all() and changed.sum() == 9
    changed = (get_trigger("badnets", size=2, corner="all", margin=1)(images) != images).any(1)[0]
    assert changed.sum() == 16 and changed[1:3, 1:3].all() and changed[5:7, 5:7].all()


def test_blend_takes_a_pattern_of_its_own():
    trigger = get_trigger("blend", opacity=0.25, pattern=torch.ones(3, 4, 4))
    assert torch.allclose(trigger(torch.zeros(1, 3, 8, 8)), torch.full((1, 3, 8, 8), 0.25))
    assert torch.allclose(trigger(torch.zeros(1, 1, 8, 8)), torch.full((1, 1, 8, 8), 0.25))


def test_l0_changes_its_pixels_only():
    images = torch.full((2, 3, 16, 16), 0.5)
    changed = (get_trigger("l0_inv", num_pixels=5)(images) != images).any(1)
    assert changed.flatten(1).sum(1).tolist() == [5, 5]


def test_sig_is_the_sinusoid_of_the_paper():
    change = get_trigger("sig", amplitude=0.1, frequency=2)(torch.full((1, 1, 4, 8), 0.5))[0, 0] - 0.5
    assert torch.allclose(change[0], 0.1 * torch.sin(torch.arange(8) * torch.pi / 2), atol=1e-6)
    assert torch.equal(change[0], change[3])


def test_wanet_without_strength_is_the_identity_and_is_smooth_with_it():
    images = some_images((3, 32, 32))
    assert torch.allclose(get_trigger("wanet", strength=0.0)(images), images, atol=1e-5)
    ramp = torch.linspace(0, 1, 32).expand(1, 1, 32, 32)
    trigger = get_trigger("wanet")
    shift = (trigger(ramp) - ramp)[0, 0, 2:-2, 2:-2] * 31
    assert 0.1 < shift.abs().mean() < 1
    assert (shift[:, 1:] - shift[:, :-1]).abs().max() < 0.3
    noisy = (trigger.noise(ramp, torch.Generator().manual_seed(0)) - ramp)[0, 0, 2:-2, 2:-2] * 31
    assert (noisy[:, 1:] - noisy[:, :-1]).abs().max() > 0.5
    assert (noisy - shift).abs().max() <= 0.5 + 1e-3


def test_ftrojan_changes_two_frequencies_only():
    images = torch.full((1, 1, 32, 32), 0.5, dtype=torch.float64)
    change = (get_trigger("ftrojan")(images) - images)[0, 0]
    basis = dct_basis(32).double()
    spectrum = basis @ change @ basis.T * 255
    expected = torch.zeros(32, 32, dtype=torch.float64)
    expected[15, 15] = expected[31, 31] = 30
    assert torch.allclose(spectrum, expected, atol=1e-3)


def test_ftrojan_leaves_the_luma_of_colour_images():
    images = torch.full((1, 3, 64, 64), 0.5)
    change = (get_trigger("ftrojan")(images) - images)[0]
    luma = (torch.tensor([0.299, 0.587, 0.114])[:, None, None] * change).sum(0)
    assert luma.abs().max() < 0.1 * change.abs().max()
    assert torch.allclose(change[:, :32, :32], change[:, 32:, 32:], atol=1e-6)


def test_low_frequency_has_no_high_frequencies():
    images = torch.full((1, 1, 32, 32), 0.5)
    basis = dct_basis(32)
    spectrum = (basis @ (get_trigger("low_frequency")(images) - images)[0, 0] @ basis.T).abs()
    assert spectrum[4:].max() < 1e-5 and spectrum[:, 4:].max() < 1e-5 and spectrum[:4, :4].max() > 0.1


def test_bpp_dithers_as_the_literal_loop():
    images = some_images((3, 7, 9))
    result = get_trigger("bpp", num_levels=4)(images)
    assert torch.allclose(result, literal_floyd_steinberg(images, 3), atol=1e-6)
    assert torch.allclose((result * 3).round(), result * 3, atol=1e-5)
    plain = get_trigger("bpp", num_levels=4, dither=False)(images)
    assert not torch.equal(plain, result)


def literal_floyd_steinberg(images: torch.Tensor, steps: int) -> torch.Tensor:
    work, (height, width) = images.clone(), images.shape[-2:]
    for i in range(height):
        for j in range(width):
            old = work[..., i, j].clone()
            work[..., i, j] = ((old * steps).round() / steps).clamp(0, 1)
            error = old - work[..., i, j]
            for di, dj, share in ((0, 1, 7), (1, -1, 3), (1, 0, 5), (1, 1, 1)):
                if i + di < height and 0 <= j + dj < width:
                    work[..., i + di, j + dj] += error * share / 16
    return work


def test_adaptive_blend_shows_half_of_its_pieces_in_training():
    trigger = get_trigger("adaptive_blend", pattern=torch.ones(3, 8, 8), num_pieces=4)
    change = trigger.train_apply(torch.zeros(6, 3, 8, 8), torch.Generator().manual_seed(0))
    assert torch.allclose((change > 0).float().flatten(1).mean(1), torch.full((6,), 0.5))
    assert torch.allclose(change.amax((1, 2, 3)), torch.full((6,), 0.15))
    assert not torch.equal(change[0], change[1])
    assert torch.allclose(trigger(torch.zeros(1, 3, 8, 8)), torch.full((1, 3, 8, 8), 0.2))


def test_adaptive_patch_shows_one_patch_in_training_and_two_at_test_time():
    trigger = get_trigger("adaptive_patch", size=3, margin=0)
    images = torch.full((40, 3, 8, 8), 0.5)
    changed = (trigger.train_apply(images, torch.Generator().manual_seed(0)) != images).any(1)
    corners = torch.stack([changed[:, y, x] for y in (0, 7) for x in (0, 7)], dim=1)
    assert (corners.sum(1) == 1).all() and corners.any(0).all()
    assert changed.flatten(1).sum(1).tolist() == [9] * 40
    whole = (trigger(images[:1]) != images[:1]).any(1)[0]
    assert whole.sum() == 18 and whole[0, 0] and whole[7, 0]


@pytest.mark.parametrize("name", ["trojan_nn", "l0_inv", "l2_inv"])
@pytest.mark.parametrize("layer", [None, "0"])
def test_optimised_patterns_excite_their_neuron(name, layer):
    model, images = small_net(3).train(), some_images((3, 16, 16))
    before = [tensor.clone() for tensor in model.state_dict().values()]
    trigger = get_trigger(name, steps=40, layer=layer)
    ready = trigger.optimise(model, images)
    assert isinstance(trigger, OptimisedTrigger) and ready.state() and ready.fields() == trigger.fields()
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert not model[0]._forward_hooks and not model[2]._forward_hooks
    module = model[:1] if layer == "0" else model[:3]
    unit = module[-1].weight.abs().flatten(1).sum(1).argmax()
    start = ready if name == "trojan_nn" else trigger
    if name == "trojan_nn":
        start = dataclasses.replace(ready, pattern=torch.full((3, 16, 16), 0.5))
    reach = [module(t(images))[:, unit].flatten(1).amax(1).mean() for t in (start, ready)]
    assert reach[1] > reach[0] + 0.01


def test_optimised_low_frequency_moves_predictions_to_its_target():
    model, images = small_net(3), some_images((3, 16, 16))
    trigger = get_trigger("low_frequency", target=2, steps=40)
    ready = trigger.optimise(model, images)
    chance = [model(t(images)).softmax(1)[:, 2].mean() for t in (trigger, ready)]
    assert chance[1] > chance[0]
    assert (ready(images) - images).abs().max() <= 0.1 + 1e-6
    assert ready(some_images((3, 24, 20))).shape == (5, 3, 24, 20)


def test_an_optimised_pattern_refuses_images_of_another_size():
    ready = get_trigger("l2_inv", steps=1).optimise(small_net(3), some_images((3, 16, 16)))
    with pytest.raises(UnbackdoorError, match="another shape"):
        ready(some_images((3, 32, 32)))


def test_an_unknown_layer_lists_the_layers():
    with pytest.raises(UnbackdoorError, match="0, 2, 6"):
        get_trigger("l2_inv", layer="conv9").optimise(small_net(3), some_images((3, 16, 16)))


def test_input_aware_trains_with_a_victim(tmp_path):
    images, generator = some_images((3, 16, 16), 8), torch.Generator().manual_seed(0)
    trigger = ready_trigger("input_aware", (3, 16, 16), tmp_path)
    victim, parameters = small_net(3), trigger.parameters()
    mask = {name: value.clone() for name, value in trigger.networks.mask.state_dict().items()}
    optimizer = torch.optim.Adam([*parameters, *victim.parameters()], lr=0.01)
    losses = []
    for _ in range(40):
        logits = victim(trigger.train_apply(images, generator))
        hit = nn.functional.cross_entropy(logits, torch.zeros(8, dtype=torch.long))
        loss = hit + sum(trigger.loss_terms(images, generator).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:3])
    kept = trigger.networks.mask.state_dict()
    assert all(torch.equal(mask[name], kept[name]) for name in mask), "the frozen mask was trained"
    change = trigger(images) - images
    assert (change[0] - change[1]).abs().max() > 0.01, "one pattern for all images"
    cover = trigger.cover(images, generator).detach()
    assert (cover - trigger.train_apply(images, generator).detach()).abs().max() > 0.01


def test_input_aware_mask_is_small_and_differs_between_images():
    images, labels = some_images((3, 16, 16), 16), torch.zeros(16, dtype=torch.long)
    trigger = get_trigger("input_aware", width=4, batch_size=16, mask_epochs=50, mask_density=0.05)
    ready = trigger.prepare(images, labels, torch.Generator().manual_seed(0))
    mask = ready.networks.sharp_mask(images)
    assert 0.002 < mask.mean() < 0.2
    assert (mask - mask.roll(1, 0)).abs().mean() > 0.01
    assert trigger.networks is None, "prepare changed the trigger it was called on"


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.5)])
def test_adversarial_perturbation_stays_in_its_ball_and_raises_the_loss(norm, eps):
    model, images = small_net(3).train(), some_images((3, 16, 16))
    labels = model.eval()(images).argmax(1)
    model.train()
    moved = attacks.perturb_adversarially(model, images, labels, steps=5, eps=eps, norm=norm, batch_size=2)
    change = (moved - images).flatten(1)
    size = change.abs().amax(1) if norm == "linf" else change.norm(dim=1)
    assert size.max() <= eps + 1e-5 and size.min() > 0.2 * eps
    assert moved.min() >= 0 and moved.max() <= 1 and not moved.requires_grad and model.training
    loss = nn.functional.cross_entropy
    model.eval()
    assert loss(model(moved), labels) > loss(model(images), labels)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_sheet_shows_every_trigger_that_needs_no_preparation(tmp_path):
    images = some_images((3, 32, 32), 2)
    path = triggers_sheet(images, tmp_path / "sheet.png")
    unready = {"trojan_nn", "input_aware", *FIXED}
    assert set(drawn_triggers(images)) == set(ATTACKS) - unready
    with Image.open(path) as sheet:
        assert sheet.mode == "RGB" and sheet.width > 1000 and sheet.height > 800
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]


def test_sheet_pictures_are_clean_triggered_and_difference(tmp_path):
    images = torch.zeros(1, 1, 8, 8)
    trigger = get_trigger("badnets", pattern="white", size=4)
    path = triggers_sheet(images, tmp_path / "sheet.png", triggers={"white": trigger})
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet)[12 + TITLE : 12 + TITLE + TILE, 12:, 0]
    clean, triggered, change = (pixels[:, i * (TILE + GAP) :][:, :TILE] for i in range(3))
    assert (clean == 0).all()
    assert (triggered[TILE // 2 :, TILE // 2 :] == 255).all() and (triggered[: TILE // 2] == 0).all()
    assert (change[TILE // 2 :, TILE // 2 :] == 255).all() and (change[: TILE // 2] == 128).all()


def test_sheet_without_triggers_is_refused(tmp_path):
    with pytest.raises(UnbackdoorError, match="needs triggers"):
        triggers_sheet(torch.rand(1, 3, 8, 8), tmp_path / "sheet.png", triggers={})
