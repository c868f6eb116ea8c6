"""The one fine-tuning loop: shuffled batches of the clean images, a loss, an optimiser, steps.

    for each of ``steps`` batches B of the clean images (a new shuffle each epoch):
        optimizer.step(∇ loss(augment(B)))

A method gives the holes: the loss (a closure over whatever it compares), the optimiser with its parameters,
the schedule, the augmentation. Everything random comes from ``session.generator``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from unbackdoor._augment import random_flip
from unbackdoor._clean import CleanImages
from unbackdoor.methods._base import Session

Loss = Callable[[Tensor, Tensor], Tensor]
"""(images, labels) of a batch -> scalar."""

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""(images, generator) -> images of the same shape, in [0, 1]."""


def fit(
    model: nn.Module,
    clean: CleanImages,
    session: Session,
    *,
    optimizer: Optimizer,
    steps: int,
    batch_size: int,
    loss: Loss | None = None,
    augment: Augment | None = None,
    schedule: LRScheduler | None = None,
    freeze_statistics: bool = False,
    clip_norm: float | None = None,
    after_step: Callable[[], None] | None = None,
    phase: str = "fit",
) -> float:
    """Train ``model`` in place for ``steps`` batches and return the mean loss of the last epoch.

    Args:
        model: put into train mode (see ``train_mode_``); its ``requires_grad`` flags are not touched, call
            ``trainable`` to get the parameters for the optimiser.
        clean: the defender's images.
        session: generator of the shuffles and the augmentation; hears ``phase`` at every step.
        optimizer: any; ``step(closure)`` is called, so that one which needs several gradients a step
            (sharpness-aware, L-BFGS) works.
        steps: number of batches in all; ``count_steps`` turns epochs into steps.
        batch_size: images a batch, at most ``len(clean)`` are used.
        loss: (images, labels) -> scalar; ``None`` is the cross-entropy of ``model``.
        augment: (images, generator) -> images; ``None`` for none.
        schedule: stepped after every batch.
        freeze_statistics: keep BatchNorm in eval mode, its running statistics untouched.
        clip_norm: gradients longer than this, all weights together, are scaled down to it.
        after_step: called after every step, for projections.
        phase: name in the progress reports.
    """
    loss = cross_entropy(model) if loss is None else loss
    train_mode_(model, freeze_statistics=freeze_statistics or min(batch_size, len(clean)) < 2)
    values = []
    for step, (images, labels) in enumerate(take(clean, steps, batch_size, session.generator), 1):
        images = images if augment is None else augment(images, session.generator)
        value = _step(optimizer, loss, images, labels, clip_norm)
        if schedule is not None:
            schedule.step()
        if after_step is not None:
            after_step()
        values.append(value)
        session.tell(phase, step, steps, loss=value)
    last = values[-_batches(len(clean), batch_size) :]
    return sum(last) / max(1, len(last))


def _step(optimizer: Optimizer, loss: Loss, images: Tensor, labels: Tensor, clip_norm: float | None) -> float:
    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        value = loss(images, labels)
        value.backward()
        if clip_norm is not None:
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            nn.utils.clip_grad_norm_(weights, clip_norm)
        return value

    return optimizer.step(closure).item()


def cross_entropy(model: nn.Module) -> Loss:
    """Return the loss L(f(x), y) of ``model``."""
    return lambda images, labels: functional.cross_entropy(model(images), labels)


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift each image by up to an eighth of its size, zeros coming in, and mirror half of them.

    The standard augmentation of small images: a random 32×32 crop after padding by 4, then a flip.

    >>> crop_and_flip(torch.rand(2, 3, 5, 9), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3, 5, 9])
    """
    count, _, height, width = images.shape
    rows, cols = (math.ceil(size / 8) for size in (height, width))
    padded = functional.pad(images, (cols, cols, rows, rows))
    top = torch.randint(2 * rows + 1, (count,), generator=generator).tolist()
    left = torch.randint(2 * cols + 1, (count,), generator=generator).tolist()
    cut = [x[:, i : i + height, j : j + width] for x, i, j in zip(padded, top, left, strict=True)]
    return random_flip(torch.stack(cut), generator)


@torch.no_grad()
def share_correct(model: nn.Module, clean: CleanImages) -> float:
    """Return the share of the clean images that get their label, in eval mode (the model stays in it)."""
    model.eval()
    batches = zip(clean.images.split(256), clean.labels.split(256), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / len(clean)


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Let every floating-point parameter take gradients, also frozen ones, and return them in order."""
    return [p.requires_grad_(True) for p in model.parameters() if p.is_floating_point()]


def train_mode_(model: nn.Module, *, freeze_statistics: bool = False) -> None:
    """Put ``model`` into train mode; BatchNorm into eval mode when its statistics are to stay.

    They must stay for batches of one image: one value a channel has no variance.
    """
    model.train()
    for module in model.modules():
        if freeze_statistics and isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.eval()


def count_steps(num_images: int, batch_size: int, *, epochs: int, least: int = 0) -> int:
    """Return the batches of ``epochs`` passes over ``num_images``, at least ``least``.

    ``least`` keeps a method alive on ten images, where twenty epochs are only twenty steps.

    >>> count_steps(500, 64, epochs=10), count_steps(10, 64, epochs=10, least=50)
    (80, 50)
    """
    return max(least, epochs * _batches(num_images, batch_size))


def _batches(num_images: int, batch_size: int) -> int:
    """Return the batches of an epoch: none holds a single image, unless all do."""
    pairs = num_images // 2 if batch_size > 1 else num_images
    return max(1, min(math.ceil(num_images / batch_size), pairs))


def take(
    clean: CleanImages, steps: int, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ``steps`` batches (images, labels), epoch after epoch, shuffled anew each time.

    An epoch is cut into equal batches (they differ by one image at most), so that no remainder of one
    image meets a BatchNorm layer; three images in batches of two are one batch of three.
    """
    return itertools.islice(_forever(clean, batch_size, generator), steps)


def _forever(
    clean: CleanImages, batch_size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    parts = _batches(len(clean), batch_size)
    while True:
        order = torch.randperm(len(clean), generator=generator).to(clean.labels.device)
        for index in order.tensor_split(parts):
            yield clean.images[index], clean.labels[index]
