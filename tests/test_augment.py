"""Augmentations: in range, drawn from the generator alone, and doing what their names say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from unbackdoor._augment import (
    enlarged,
    jitter,
    mixup,
    noise,
    random_flip,
    random_resized_crop,
    random_shift,
    turned,
)

EVERY: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "crop": random_resized_crop,
    "flip": random_flip,
    "shift": random_shift,
    "jitter": jitter,
    "noise": noise,
    "mixup": lambda images, generator: mixup(images, generator)[0],
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ramp(height: int = 16, width: int = 16, count: int = 64) -> Tensor:
    """Rows grow in the first channel, columns in the second: (count, 2, height, width)."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([rows, columns]).expand(count, 2, height, width)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 5, 9), (6, 3, 8, 8)], ids=str)
@pytest.mark.parametrize("name", EVERY)
def test_contract(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    images = torch.rand(shape, generator=seeded(1)).to(dtype)
    before, random = images.clone(), torch.get_rng_state()
    first, again = EVERY[name](images, seeded()), EVERY[name](images, seeded())
    assert first.shape == images.shape and first.dtype == dtype
    assert first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, again) and torch.equal(images, before)
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("name", EVERY)
def test_each_image_has_its_own_draw(name: str) -> None:
    images = torch.rand(32, 3, 8, 8, generator=seeded(1))
    first, other = EVERY[name](images, seeded(0)), EVERY[name](images, seeded(1))
    differs = (first != other).flatten(1).any(1)
    assert differs.sum() > 8


def test_the_whole_image_is_left_alone() -> None:
    images = torch.rand(3, 3, 8, 8, generator=seeded(1))
    whole = random_resized_crop(images, seeded(), scale=(1, 1), ratio=(1, 1))
    torch.testing.assert_close(whole, images, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(16, 16), (16, 32)], ids=str)
def test_crops_have_the_area_and_shape_asked_for(size: tuple[int, int]) -> None:
    cropped = random_resized_crop(ramp(*size), seeded(), scale=(0.25, 0.25), ratio=(1, 1))
    spans = cropped.amax((2, 3)) - cropped.amin((2, 3))
    height = 0.25**0.5 * (size[1] / size[0]) ** 0.5
    torch.testing.assert_close(spans[:, 0], torch.full((64,), height), rtol=0, atol=0.04)
    torch.testing.assert_close(spans[:, 1], torch.full((64,), 0.25 / height), rtol=0, atol=0.04)


def test_crops_fall_everywhere() -> None:
    middles = random_resized_crop(ramp(count=400), seeded()).mean((2, 3))
    assert middles.amin() < 0.25 and middles.amax() > 0.75
    torch.testing.assert_close(middles.mean(0), torch.full((2,), 0.5), rtol=0, atol=0.03)


def test_flips_are_mirrors_of_half_the_images() -> None:
    images = ramp(count=400)
    flipped = random_flip(images, seeded())
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert (mirrored | (flipped == images).flatten(1).all(1)).all()
    assert 150 < int(mirrored.sum()) < 250


def test_jitter_moves_brightness_within_bounds() -> None:
    images = torch.full((200, 1, 2, 2), 0.5)
    moved = jitter(images, seeded(), brightness=0.2, contrast=0.0).mean((1, 2, 3)) / 0.5
    assert 0.8 <= moved.min() < 0.85 and 1.15 < moved.max() <= 1.2


def test_jitter_moves_contrast_about_the_mean() -> None:
    images = 0.25 + ramp(count=200) / 2
    moved = jitter(images, seeded(), brightness=0.0, contrast=0.4)
    torch.testing.assert_close(moved.mean((1, 2, 3)), images.mean((1, 2, 3)))
    spans = (moved.amax((1, 2, 3)) - moved.amin((1, 2, 3))) / 0.5
    assert 0.6 <= spans.min() < 0.7 and 1.3 < spans.max() <= 1.4 + 1e-5


def test_mixup_is_the_mixture_it_tells() -> None:
    images = torch.rand(16, 1, 2, 2, generator=seeded(1))
    mixed, partner, lam = mixup(images, seeded(), alpha=0.5)
    assert sorted(partner.tolist()) == list(range(16))
    for i in range(16):
        torch.testing.assert_close(mixed[i], lam[i] * images[i] + (1 - lam[i]) * images[partner[i]])


def test_mixup_weights_follow_beta() -> None:
    images = torch.rand(4000, 1, 1, 1, generator=seeded(1))
    for alpha in (0.3, 1.0, 4.0):
        lam = mixup(images, seeded(), alpha)[2].double()
        assert abs(lam.mean().item() - 0.5) < 0.02
        assert abs(lam.var().item() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_a_shift_moves_whole_pixels_by_an_eighth_at_most_and_repeats_the_edge() -> None:
    images = torch.rand(200, 1, 16, 16, generator=seeded(1))
    shifted = random_shift(images, seeded())
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2), mode="replicate")
    seen = set()
    for image, around in zip(shifted, padded, strict=True):
        places = [(i, j) for i in range(5) for j in range(5)]
        fits = [(i, j) for i, j in places if torch.equal(image, around[:, i : i + 16, j : j + 16])]
        assert len(fits) == 1
        seen.update(fits)
    assert len(seen) == 25


def test_enlarged_images_show_the_middle_and_the_corners() -> None:
    quarters = torch.tensor([[0.1, 0.3], [0.5, 0.9]])
    image = torch.nn.functional.interpolate(quarters[None, None], size=16)
    middle, *corners = [cut.mean().item() for cut in enlarged(image, zooms=[0.5])]
    assert middle == pytest.approx(0.45)
    assert sorted(corners) == pytest.approx([0.1, 0.3, 0.5, 0.9], abs=0.03)
    whole = torch.cat(list(enlarged(image, zooms=[1.0])))
    torch.testing.assert_close(whole, image.expand(5, -1, -1, -1))


def test_turning_keeps_a_disc_and_moves_a_bar_by_thirty_degrees_at_most() -> None:
    at = torch.arange(32) - 15.5
    radius = (at[:, None].square() + at.square()).sqrt()
    disc = (1 - radius / 16).clamp(0, 1).expand(100, 1, -1, -1)
    torch.testing.assert_close(turned(disc, seeded()), disc, atol=0.05, rtol=0)
    bar = ((at[None].abs() < 2) & (radius > 10) & (at[:, None] < 0)).float().expand(100, 1, -1, -1)
    top = turned(bar, seeded())
    sideways = (top * at).sum((1, 2, 3)) / top.sum((1, 2, 3))
    upwards = -(top * at[:, None]).sum((1, 2, 3)) / top.sum((1, 2, 3))
    angles = torch.rad2deg(torch.atan2(sideways, upwards))
    assert angles.min() < -25 and angles.max() > 25 and angles.abs().max() < 31
