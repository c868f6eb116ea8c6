"""How a victim is trained: the recipe, its schedule and its augmentation."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from unbackdoor._augment import random_flip
from unbackdoor._errors import UnbackdoorError


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """SGD with Nesterov momentum, a one-cycle schedule and the standard augmentation.

    Attributes:
        epochs: passes over the training set.
        batch_size: images a step.
        learning_rate: peak of the one-cycle schedule.
        momentum: of SGD, Nesterov's kind.
        weight_decay: on every parameter.
        warm_up: share of the steps over which the learning rate rises from 0, in [0, 1).
        augment: random shifts and flips on. Off, plain fine-tuning cleans most victims and every
            comparison of defences on them says little.
        shift: largest shift as a share of the image's height and width (1/8: 4 pixels of 32).
        flip: mirror half of the images; False for data where that changes the class (traffic signs, digits).
        dropout: rate of every dropout layer while training, in [0, 1); ``None`` keeps the network's own. In
            a schedule of few epochs there is no overfitting for it to prevent: 0.0.
        label_smoothing: in [0, 1); used for clean models only, it would blur the backdoor of a poisoned one.
        mixed_precision: bfloat16 autocast; ``None`` uses it where it is fast (CUDA with bfloat16, CPU with
            AMX, where it was measured at 1.8 to 2.3 times the speed of float32, or AVX-512 BF16, at 1.7).
    """

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up: float = 0.25
    augment: bool = True
    shift: float = 0.125
    flip: bool = True
    dropout: float | None = None
    label_smoothing: float = 0.0
    mixed_precision: bool | None = None

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise UnbackdoorError(
                "training needs one or more epochs and batches of two or more images",
                value=f"epochs={self.epochs}, batch_size={self.batch_size}",
                fix="epochs=10, batch_size=128",
            )
        if not (self.learning_rate > 0 and 0 <= self.warm_up < 1 and 0 <= self.label_smoothing < 1):
            raise UnbackdoorError(
                "learning_rate must be above 0, warm_up and label_smoothing in [0, 1)",
                value=f"{self.learning_rate}, {self.warm_up}, {self.label_smoothing}",
                fix="learning_rate=0.1, warm_up=0.25, label_smoothing=0.0",
            )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise UnbackdoorError("dropout must lie in [0, 1)", value=self.dropout, fix="dropout=0.0")

    def fields(self) -> dict[str, Any]:
        """Return the recipe as plain values, for records."""
        return dataclasses.asdict(self)

    def rate_at(self, step: int, total: int) -> float:
        """Return the learning rate of ``step`` of ``total``: linear up to the peak, linear down to nearly 0.

        >>> [round(Recipe(warm_up=0.5).rate_at(step, 4), 3) for step in range(4)]
        [0.05, 0.1, 0.067, 0.033]
        """
        rise = max(1, round(self.warm_up * total))
        if step < rise:
            return self.learning_rate * (step + 1) / rise
        return self.learning_rate * (total - step) / (total - rise + 1)

    def augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Return shifted and mirrored ``images``, float (N, C, H, W), each image with its own draw."""
        if not self.augment:
            return images
        images = random_shift(images, generator, self.shift)
        return random_flip(images, generator) if self.flip else images


def random_shift(images: Tensor, generator: torch.Generator, share: float = 0.125) -> Tensor:
    """Shift each image by up to ``share`` of its size in both directions; black comes in.

    The usual random crop of the padded image, for the whole batch at once.

    >>> random_shift(torch.ones(2, 3, 8, 16), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 8, 16])
    """
    count, _, height, width = images.shape
    rows, columns = round(share * height), round(share * width)
    padded = F.pad(images, (columns, columns, rows, rows))
    top = torch.randint(2 * rows + 1, (count, 1), generator=generator) + torch.arange(height)
    left = torch.randint(2 * columns + 1, (count, 1), generator=generator) + torch.arange(width)
    top, left = top.to(images.device), left.to(images.device)
    image = torch.arange(count, device=images.device)
    return padded[image[:, None, None], :, top[:, :, None], left[:, None, :]].permute(0, 3, 1, 2)


@contextmanager
def dropout_set(model: nn.Module, rate: float | None) -> Iterator[None]:
    """Give every dropout layer of ``model`` the ``rate``; the layers' own come back at the end.

    >>> layer = nn.Dropout(0.4)
    >>> with dropout_set(layer, 0.0):
    ...     layer.p
    0.0
    >>> layer.p
    0.4
    """
    layers = [] if rate is None else [m for m in model.modules() if isinstance(m, _DropoutNd)]
    own = [layer.p for layer in layers]
    try:
        for layer in layers:
            layer.p = rate
        yield
    finally:
        for layer, p in zip(layers, own, strict=True):
            layer.p = p


def fast_precision(device: torch.device) -> bool:
    """Tell whether bfloat16 autocast speeds up training on ``device``."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16"))
