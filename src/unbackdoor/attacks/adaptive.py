"""Adaptive-Blend and Adaptive-Patch: parts of the trigger in training, the whole of it at test time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from unbackdoor._errors import UnbackdoorError
from unbackdoor.attacks._base import Trigger, tensor_field
from unbackdoor.attacks._patterns import CORNERS, check_choice, check_range, colour_blocks, corner_of, mix
from unbackdoor.attacks.blend import KINDS, blend_pattern


@dataclass(frozen=True, kw_only=True)
class AdaptiveBlend(Trigger):
    """Blend random pieces of a picture in training, all of it at test time.

    The picture is cut into ``num_pieces``² pieces; every poisoned or cover image gets a random
    ``kept_share`` of them. Covers keep their label (the paper's regularisation samples), so that the
    poisoned images do not stand apart in feature space.

    Attributes:
        opacity: α at test time, in [0, 1].
        train_opacity: α in training, in [0, 1].
        num_pieces: pieces along each axis, ≥ 1.
        kept_share: share of the pieces that an image gets in training, in (0, 1].
        kind, seed, pattern: of the picture, as for ``Blend``.
        cover_rate: covers for one poisoned image; the paper's conservatism ratio ½ is 1.

    References:
        Qi, Xie, Li, Mahloujifar, Mittal, Revisiting the Assumption of Latent Separability for Backdoor
        Defenses, ICLR 2023, arXiv 2205.13613. Its poison rate is 0.003.

    Differs from the authors' code: a drawn cartoon in the place of their picture.
    """

    name: ClassVar[str] = "adaptive_blend"
    opacity: float = 0.2
    train_opacity: float = 0.15
    num_pieces: int = 4
    kept_share: float = 0.5
    kind: str = "picture"
    seed: int = 0
    cover_rate: float = 1.0
    pattern: Tensor | None = tensor_field()

    def __post_init__(self) -> None:
        for name in ("opacity", "train_opacity", "kept_share"):
            check_range("AdaptiveBlend", name, getattr(self, name), 0, 1)
        check_range("AdaptiveBlend", "num_pieces", self.num_pieces, 1, 1024)
        check_range("AdaptiveBlend", "cover_rate", self.cover_rate, 0, 1024)
        check_choice("AdaptiveBlend", "kind", self.kind, KINDS)

    def apply(self, images: Tensor) -> Tensor:
        return mix(images, blend_pattern(images, self.kind, self.seed, self.pattern), self.opacity)

    def train_apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        pattern = blend_pattern(images, self.kind, self.seed, self.pattern)
        pieces = self._pieces(len(images), generator)
        mask = F.interpolate(pieces, size=images.shape[-2:], mode="nearest")
        return mix(images, pattern, self.train_opacity * mask).clamp(0, 1)

    def cover(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.train_apply(images, generator)

    def _pieces(self, count: int, generator: torch.Generator) -> Tensor:
        """Return which pieces each image gets, (count, 1, num_pieces, num_pieces) in {0, 1}."""
        total = self.num_pieces**2
        order = torch.rand(count, total, generator=generator).argsort(1).argsort(1)
        kept = (order < max(1, round(self.kept_share * total))).float()
        return kept.reshape(count, 1, self.num_pieces, self.num_pieces)


@dataclass(frozen=True, kw_only=True)
class AdaptivePatch(Trigger):
    """Paste one faint patch of four in training, some of them opaquely at test time.

    The patches are saturated colour blocks, one a corner. Every poisoned or cover image gets one of them,
    drawn at random, with its training opacity; covers keep their label.

    Attributes:
        size: side of a patch in pixels, ≥ 1.
        margin: pixels between a patch and the edges, ≥ 0.
        train_opacities: one a corner (top-left, top-right, bottom-left, bottom-right), each in [0, 1].
        test_patches: which of the four are pasted at test time, as indices.
        opacity: at test time, in [0, 1].
        seed: of the colours.
        cover_rate: covers for one poisoned image (the paper: poison rate 0.003, cover rate 0.006).

    References:
        Qi, Xie, Li, Mahloujifar, Mittal, Revisiting the Assumption of Latent Separability for Backdoor
        Defenses, ICLR 2023, arXiv 2205.13613.

    Differs from the authors' code: drawn patches, one a corner, in the place of their four pictures.
    """

    name: ClassVar[str] = "adaptive_patch"
    size: int = 7
    margin: int = 1
    train_opacities: tuple[float, float, float, float] = (0.5, 0.2, 0.5, 0.3)
    test_patches: tuple[int, ...] = (0, 2)
    opacity: float = 1.0
    seed: int = 0
    cover_rate: float = 2.0

    def __post_init__(self) -> None:
        check_range("AdaptivePatch", "opacity", self.opacity, 0, 1)
        check_range("AdaptivePatch", "cover_rate", self.cover_rate, 0, 1024)
        for opacity in self.train_opacities:
            check_range("AdaptivePatch", "train_opacities", opacity, 0, 1)
        if len(self.train_opacities) != len(CORNERS) or not set(self.test_patches) <= set(
            range(len(CORNERS))
        ):
            raise UnbackdoorError(
                "adaptive_patch has four patches, one a corner",
                value=f"train_opacities={self.train_opacities}, test_patches={self.test_patches}",
                fix="AdaptivePatch(train_opacities=(0.5, 0.2, 0.5, 0.3), test_patches=(0, 2))",
            )

    def apply(self, images: Tensor) -> Tensor:
        result = images.clone()
        for index in self.test_patches:
            self._paste(result, index, self.opacity)
        return result

    def train_apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        result = images.clone()
        chosen = torch.randint(0, len(CORNERS), (len(images),), generator=generator).to(images.device)
        for index, opacity in enumerate(self.train_opacities):
            part = result[chosen == index]
            self._paste(part, index, opacity)
            result[chosen == index] = part
        return result

    def cover(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return self.train_apply(images, generator)

    def _paste(self, images: Tensor, index: int, opacity: float) -> None:
        """Write patch ``index`` into its corner, in place."""
        rows, columns = corner_of(images, self.size, self.margin, CORNERS[index])
        patch = colour_blocks(self.seed + index, images.shape[1], self.size)
        images[..., rows, columns] = mix(images[..., rows, columns], patch, opacity)
