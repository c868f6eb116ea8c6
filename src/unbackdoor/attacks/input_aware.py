"""Input-aware dynamic backdoor: a trigger of its own for every image, made by trained networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unbackdoor._errors import UnbackdoorError
from unbackdoor.attacks._base import TrainableTrigger
from unbackdoor.attacks._generators import TriggerNetworks
from unbackdoor.attacks._patterns import check_range

TINY = 1e-7


@dataclass(frozen=True, kw_only=True)
class InputAware(TrainableTrigger):
    """Paint a generated pattern through a generated mask: x' = (1 − M(x))·x + M(x)·P(x).

    M is trained first (``prepare``), to be small and to differ between images, and then frozen. P is trained
    with the victim: the poisoned images must reach the target, and patterns of different images must differ:

        λ_div · E[ ‖x₁ − x₂‖ / ‖P(x₁) − P(x₂)‖ ]

    Covers are the paper's cross triggers: an image with the trigger of another one keeps its label, so a
    trigger works only on the image it was made for.

    Attributes:
        diversity_weight: λ_div, ≥ 0.
        density_weight: λ_norm, ≥ 0, of the mask's density loss E[max(0, M − mask_density)].
        mask_density: share of the image that the mask may cover, in [0, 1].
        mask_epochs: passes over the images in ``prepare``, ≥ 0 (the paper: 25).
        mask_learning_rate: of Adam in ``prepare``.
        batch_size: in ``prepare``.
        width: channels of the pattern generator's first block, ≥ 1; the mask generator has half of it.
        seed: of the networks' first weights.
        cover_rate: cross-trigger covers for one poisoned image (the paper: 0.1 of each).
        networks: set by ``prepare``; their weights are the trigger's ``state``.

    References:
        Nguyen, Tran, Input-Aware Dynamic Backdoor Attack, NeurIPS 2020, arXiv 2010.08138.

    Differs from the authors' code: the other image of a cross trigger is another one of the same batch, and
    not of a second loader.
    """

    name: ClassVar[str] = "input_aware"
    diversity_weight: float = 1.0
    density_weight: float = 100.0
    mask_density: float = 0.032
    mask_epochs: int = 25
    mask_learning_rate: float = 0.01
    batch_size: int = 128
    width: int = 32
    seed: int = 0
    cover_rate: float = 1.0
    networks: TriggerNetworks | None = field(
        default=None, repr=False, compare=False, metadata={"tensor": True}
    )

    def __post_init__(self) -> None:
        check_range("InputAware", "mask_density", self.mask_density, 0, 1)
        check_range("InputAware", "mask_epochs", self.mask_epochs, 0, 1_000_000)
        check_range("InputAware", "width", self.width, 1, 4096)
        check_range("InputAware", "cover_rate", self.cover_rate, 0, 1024)

    @torch.no_grad()
    def apply(self, images: Tensor) -> Tensor:
        networks = self._ready()
        networks.pattern.eval()
        return networks(images, images)

    def train_apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        networks = self._ready()
        networks.pattern.train()
        return networks(images, images)

    def cover(self, images: Tensor, generator: torch.Generator) -> Tensor:
        networks = self._ready()
        networks.pattern.train()
        return networks(images, _others(images, generator))

    def prepare(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> Self:
        networks = TriggerNetworks.seeded(images.shape[1], self.width, self.seed).to(images)
        optimizer = torch.optim.Adam(networks.mask.parameters(), self.mask_learning_rate, betas=(0.5, 0.9))
        networks.mask.train()
        with torch.enable_grad():
            for _ in range(self.mask_epochs):
                for index in torch.randperm(len(images), generator=generator).split(self.batch_size):
                    loss = self._mask_loss(networks, images[index.to(images.device)], generator)
                    optimizer.zero_grad()
                    loss.backward()
                    optimizer.step()
        networks.mask.eval().requires_grad_(False)
        return dataclasses.replace(self, networks=networks)

    def parameters(self) -> list[nn.Parameter]:
        return list(self._ready().pattern.parameters())

    def loss_terms(self, images: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        networks, others = self._ready(), _others(images, generator)
        networks.pattern.train()
        ratio = _distance(images, others) / (
            _distance(networks.pattern(images), networks.pattern(others)) + TINY
        )
        return {"diversity": self.diversity_weight * ratio.mean()}

    def state(self) -> dict[str, Tensor]:
        return {} if self.networks is None else dict(self.networks.state_dict())

    def with_state(self, state: Mapping[str, Tensor]) -> Self:
        if not state:
            return dataclasses.replace(self, networks=None)
        networks = TriggerNetworks.seeded(TriggerNetworks.channels_of(state), self.width, self.seed)
        networks.load_state_dict(dict(state))
        networks.mask.eval().requires_grad_(False)
        return dataclasses.replace(self, networks=networks.to(next(iter(state.values())).device))

    def _mask_loss(self, networks: TriggerNetworks, images: Tensor, generator: torch.Generator) -> Tensor:
        others = _others(images, generator)
        mask = networks.sharp_mask(images)
        ratio = _distance(images, others) / (_distance(mask, networks.sharp_mask(others)) + TINY)
        density = F.relu(mask - self.mask_density).mean()
        return self.diversity_weight * ratio.mean() + self.density_weight * density

    def _ready(self) -> TriggerNetworks:
        if self.networks is None:
            raise UnbackdoorError(
                "input_aware has no networks before it is prepared on training images",
                value="InputAware(networks=None)",
                fix="trigger = InputAware().prepare(images, labels, torch.Generator())",
            )
        return self.networks


def _others(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return another image of the batch for every one; a single image gets its mirror image."""
    if len(images) == 1:
        return images.flip(-1)
    return images.roll(int(torch.randint(1, len(images), (), generator=generator)), 0)


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the root mean square difference of each pair, (N,)."""
    return ((first - second).square().flatten(1).mean(1) + TINY**2).sqrt()
