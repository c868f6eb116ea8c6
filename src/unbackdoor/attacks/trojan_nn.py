"""TrojanNN: a trigger whose pixels are optimised on neurons of a clean model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from unbackdoor._errors import UnbackdoorError
from unbackdoor.attacks._base import tensor_field
from unbackdoor.attacks._neurons import NeuronTrigger
from unbackdoor.attacks._patterns import check_choice, check_range, check_same_size, corner_of, mix, noise
from unbackdoor.attacks.trojan import watermark_mask

MASKS = ("square", "watermark")


@dataclass(frozen=True, kw_only=True)
class TrojanNN(NeuronTrigger):
    """Paste a pattern that drives chosen neurons of a clean model far beyond their usual values.

    x' = (1 − a·M)·x + a·M·p; M is a square or a watermark, and p minimises (target_value − A(x'))² on the
    neurons that ``NeuronTrigger`` chooses. It has no pattern before ``optimise``.

    Attributes:
        mask: ``square`` or ``watermark``.
        size: side of the square in pixels; ``margin``: its distance from the right and the lower edge.
        opacity: a, in (0, 1].
        seed: of the start of the optimisation.
        pattern: (C, H, W), set by ``optimise``.

    References:
        Liu, Ma, Aafer, Lee, Zhai, Wang, Zhang, Trojaning Attack on Neural Networks, NDSS 2018.

    Differs from the paper: the trigger is optimised on given images and not on a blank one, and the victim
    is poisoned with images of the data set and not with images recovered from the model.
    """

    name: ClassVar[str] = "trojan_nn"
    mask: str = "square"
    size: int = 7
    margin: int = 2
    opacity: float = 1.0
    seed: int = 0
    pattern: Tensor | None = tensor_field()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("TrojanNN", "mask", self.mask, MASKS)
        check_range("TrojanNN", "opacity", self.opacity, 0, 1)

    def apply(self, images: Tensor) -> Tensor:
        if self.pattern is None:
            raise UnbackdoorError(
                "trojan_nn has no pattern before it is optimised on a clean model",
                value="TrojanNN(pattern=None)",
                fix="trigger = TrojanNN().optimise(clean_model, images)",
            )
        check_same_size("TrojanNN", self.pattern, images)
        return self._render(images, self.pattern)

    def optimise(self, model: nn.Module, images: Tensor) -> Self:
        start = noise(self.seed, *images.shape[-3:]).to(images)
        pattern = self.excite(model, images, start, self._render, lambda pattern: pattern.clamp(0, 1))
        return dataclasses.replace(self, pattern=pattern * (self._mask(images) > 0))

    def _render(self, images: Tensor, pattern: Tensor) -> Tensor:
        return mix(images, pattern, self.opacity * self._mask(images))

    def _mask(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if self.mask == "watermark":
            return watermark_mask(height, width).to(images)
        mask = torch.zeros(height, width).to(images)
        mask[corner_of(images, self.size, self.margin, "bottom-right")] = 1
        return mask
