"""Tiny networks and images that every test can use; nothing here takes longer than a blink."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

NUM_CLASSES = 4
TINY_NETS = ("conv_bn", "plain_cnn", "mlp", "grey", "odd")
SHAPES = {"mlp": (2, 6, 6), "grey": (1, 8, 8), "odd": (3, 9, 7)}


@dataclass(frozen=True)
class Tiny:
    """A small trained classifier with clean images of its own."""

    name: str
    model: nn.Module
    images: Tensor
    labels: Tensor


def build_tiny(name: str) -> nn.Module:
    """Return an untrained network: with BatchNorm unless it is plain, an MLP where its name says so."""
    channels, height, width = SHAPES.get(name, (3, 8, 8))
    if name == "mlp":
        layers = [nn.Flatten(), nn.Linear(channels * height * width, 12), nn.ReLU(), nn.Dropout(0.2)]
        return nn.Sequential(*layers, nn.Linear(12, NUM_CLASSES))
    norm = nn.Identity if name == "plain_cnn" else nn.BatchNorm2d
    first = [nn.Conv2d(channels, 6, 3, padding=1), norm(6), nn.ReLU()]
    second = [nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False), norm(8), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, NUM_CLASSES)]
    return nn.Sequential(*first, *second, *head)


def draw_images(
    shape: tuple[int, ...], per_class: int, seed: int, num_classes: int = NUM_CLASSES
) -> tuple[Tensor, Tensor]:
    """Return noisy images of one fixed smooth pattern a class: (N, C, H, W) in [0, 1] and labels (N,)."""
    patterns = torch.rand(num_classes, shape[0], 2, 2, generator=torch.Generator().manual_seed(7))
    patterns = nn.functional.interpolate(patterns, size=shape[1:], mode="bilinear")
    labels = torch.arange(num_classes).repeat(per_class)
    noise = torch.randn(len(labels), *shape, generator=torch.Generator().manual_seed(seed))
    return (patterns[labels] + 0.15 * noise).clamp(0, 1), labels


def fit(model: nn.Module, images: Tensor, labels: Tensor, steps: int = 40) -> nn.Module:
    """Train ``model`` in place on one batch; returned in eval mode."""
    optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return model.eval()


_TRAINED: dict[str, nn.Module] = {}


def make_tiny(name: str, per_class: int = 2, seed: int = 0) -> Tiny:
    """Return a private copy of the trained network ``name`` with fresh clean images."""
    shape = SHAPES.get(name, (3, 8, 8))
    if name not in _TRAINED:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            _TRAINED[name] = fit(build_tiny(name), *draw_images(shape, 16, seed=100))
    images, labels = draw_images(shape, per_class, seed)
    return Tiny(name, copy.deepcopy(_TRAINED[name]), images, labels)


@pytest.fixture(params=TINY_NETS)
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """Each tiny network in turn."""
    return make_tiny(request.param)


@pytest.fixture
def conv_bn() -> Tiny:
    """The convolutional one with BatchNorm."""
    return make_tiny("conv_bn")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny tensors run fastest, and reproducibly, on one thread."""
    torch.set_num_threads(1)
