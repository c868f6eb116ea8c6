"""Recovered triggers, whatever family they came from: stacks that map images to triggered images."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor._dct import low_frequencies


class Recovered(abc.ABC):
    """A stack of P recovered triggers, ``len(stack) == P``, each of them for all images."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def on(self, images: Tensor, pick: Tensor) -> Tensor:
        """Put trigger ``pick[i]`` on image i: (N, C, H, W), int64 (N,) -> (N, C, H, W) in [0, 1]."""

    def apply(self, images: Tensor) -> Tensor:
        """Put every trigger on every image: (N, C, H, W) -> (P, N, C, H, W) in [0, 1]."""
        pick = torch.arange(len(self), device=images.device).repeat_interleave(len(images))
        triggered = self.on(images.repeat(len(self), 1, 1, 1), pick)
        return triggered.view(len(self), *images.shape)

    def entering(self, model: nn.Module, pick: Tensor) -> AbstractContextManager[None]:
        """Do to the model what trigger ``pick[i]``, none below zero, does to image i inside it.

        Images are counted over all forward passes within the context, batch after batch. Most triggers are in
        the images and do nothing here.
        """
        return nullcontext()

    def answers(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return the logits for every trigger on every image: (N, C, H, W) -> (P, N, classes)."""
        pick = torch.arange(len(self), device=images.device).repeat_interleave(len(images))
        with self.entering(model, pick):
            return model(self.apply(images).flatten(0, 1)).view(len(self), len(images), -1)


@dataclass(frozen=True)
class Overlay(Recovered):
    """Patches and additive triggers, x -> clip(keep ⊙ x + add).

    Attributes:
        keep: (P, 1, H, W) in [0, 1], the share of the image that stays; 1 everywhere for additive triggers.
        add: (P, C, H, W), what is added.

    >>> stack = Overlay(torch.zeros(2, 1, 4, 4), torch.ones(2, 3, 4, 4))
    >>> stack.apply(torch.rand(5, 3, 4, 4)).shape, len(stack)
    (torch.Size([2, 5, 3, 4, 4]), 2)
    """

    keep: Tensor
    add: Tensor

    def __len__(self) -> int:
        return len(self.add)

    def on(self, images: Tensor, pick: Tensor) -> Tensor:
        return (self.keep[pick] * images + self.add[pick]).clamp(0, 1)


@dataclass(frozen=True)
class Waves(Recovered):
    """Smooth additive triggers, x -> clip(x + δ), δ a sum of the lowest frequencies of the DCT.

    Attributes:
        coefficients: (P, C, k, l), of the k × l lowest frequencies; ‖δ‖₂ is their norm.

    >>> constant = torch.full((1, 1, 1, 1), 3.0)
    >>> Waves(constant).apply(torch.zeros(1, 1, 2, 2)).tolist()
    [[[[[1.0, 1.0], [1.0, 1.0]]]]]
    """

    coefficients: Tensor

    def __len__(self) -> int:
        return len(self.coefficients)

    def on(self, images: Tensor, pick: Tensor) -> Tensor:
        delta = low_frequencies(self.coefficients, *images.shape[2:])
        return (images + delta[pick]).clamp(0, 1)


@dataclass(frozen=True)
class Sinusoids(Recovered):
    """Stripes, x -> clip(x + a·cos 2π(u·i/H + v·j/W) + b·sin 2π(u·i/H + v·j/W)), i downwards, j to the right.

    Attributes:
        waves: (P, C, 2), a and b.
        frequency: (P, 2), u and v in waves an image, not only whole ones.

    >>> across = Sinusoids(torch.tensor([[[0.5, 0.0]]]), torch.tensor([[0.0, 2.0]]))
    >>> across.apply(torch.full((1, 1, 1, 4), 0.5)).tolist()
    [[[[[1.0, 0.0, 1.0, 0.0]]]]]
    """

    waves: Tensor
    frequency: Tensor

    def __len__(self) -> int:
        return len(self.waves)

    def on(self, images: Tensor, pick: Tensor) -> Tensor:
        height, width = (torch.arange(side).to(images) / side for side in images.shape[2:])
        down, right = self.frequency.view(-1, 2, 1, 1, 1).unbind(1)
        angle = 2 * torch.pi * (down * height[:, None] + right * width)
        cosine, sine = self.waves[..., None, None].unbind(2)
        return (images + (cosine * angle.cos() + sine * angle.sin())[pick]).clamp(0, 1)


@dataclass(frozen=True)
class Displacement(Recovered):
    """Warps: every pixel is read from a little beside, x -> x ∘ (identity + flow), bilinearly.

    Attributes:
        flow: (P, 2, h, w), displacement to the right and downwards in pixels, at h × w places spread evenly
            over the image, corner to corner; interpolated bicubically between them.

    >>> right = torch.zeros(1, 2, 1, 3)
    >>> right[:, 0] = 1.0
    >>> Displacement(right).apply(torch.tensor([[[[0.0, 0.5, 1.0]]]])).tolist()
    [[[[[0.5, 1.0, 1.0]]]]]
    """

    flow: Tensor

    def __len__(self) -> int:
        return len(self.flow)

    def on(self, images: Tensor, pick: Tensor) -> Tensor:
        height, width = images.shape[2:]
        theta = torch.eye(2, 3).to(images).expand(len(images), -1, -1)
        still = F.affine_grid(theta, list(images.shape), align_corners=False)
        flow = _spread(self.flow, height, width)[pick]
        shift = flow.permute(0, 2, 3, 1) * 2 / torch.tensor([width, height]).to(images)
        return F.grid_sample(images, still + shift, padding_mode="border", align_corners=False)


def _spread(flow: Tensor, height: int, width: int) -> Tensor:
    """Interpolate bicubically, corner to corner: (P, 2, h, w) -> (P, 2, height, width).

    On a GPU by two matrix products: the gradient of torch's own adds there in no fixed order, and a seed
    would not repeat itself.
    """
    if not flow.is_cuda:
        return F.interpolate(flow, size=(height, width), mode="bicubic", align_corners=True)
    down, right = (_cubic(*sides).to(flow) for sides in zip(flow.shape[2:], (height, width), strict=True))
    return down @ flow @ right.T


def _cubic(points: int, side: int) -> Tensor:
    """Return what each of ``points`` places adds to each of ``side`` pixels: (side, points)."""
    columns = torch.eye(points)[None, :, :, None]
    return F.interpolate(columns, size=(side, 1), mode="bicubic", align_corners=True)[0, :, :, 0].T


def apply_random(pool: Sequence[Recovered], images: Tensor, generator: torch.Generator) -> Tensor:
    """Put one random trigger of all that are in ``pool`` on each image: (N, C, H, W) -> (N, C, H, W)."""
    total = sum(len(stack) for stack in pool)
    pick = torch.randint(total, (len(images),), generator=generator).to(images.device)
    triggered = images.clone()
    for stack in pool:
        here = (pick >= 0) & (pick < len(stack))
        if here.any():  # Few images leave stacks without one, and a warp of no image is an error.
            triggered[here] = stack.on(images[here], pick[here])
        pick = pick - len(stack)
    return triggered
