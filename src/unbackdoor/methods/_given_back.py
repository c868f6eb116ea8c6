"""Give a target its own images back: refit its row of the last layer to what the repair has left of them.

Layers that withstand disturbances inside the network no longer pass on much of what the target's own images
show, and its logit, which is an ordinary sum of what arrives, misses them. Of what does arrive, another sum
can tell these images from triggered ones, most where images of a class are alike, as traffic signs are, and
less is left of the trigger, too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor._clean import CleanImages
from unbackdoor._layers import LayerRows, add_to_weight_, augmented_weight, ridge_change
from unbackdoor.methods._handicap import lead
from unbackdoor.methods._varied import varied
from unbackdoor.recover import Recovered, Shifts, apply_random

IMAGES, VIEWS = 512, 256
"""Varied images with and without triggers; varied images of the target, and those with triggers inside."""
OWN = 0.3
"""Weight of the target's images beside that of all."""
BELOW = 2.0
"""Logits by which the target stays below the answer under a trigger, at least."""
RIDGE = 0.1
"""Relative to the mean square of what varied images send into the layer."""
Within = Callable[[nn.Module], AbstractContextManager[Any]]


@torch.no_grad()
def give_back_(
    model: nn.Module,
    original: nn.Module,
    layer: str,
    clean: CleanImages,
    target: int,
    pool: list[Recovered],
    shifts: Shifts | None,
    generator: torch.Generator,
    against: float = 1.0,
) -> bool:
    """Refit the target's row of the last layer, in place, by ridge regression; tell whether it was.

    Varied images keep their logit, those of the target get back the margin that they have in ``original``,
    and those with triggers, of ``pool`` in images and ``shifts`` inside, stay below their answer. No view is
    noisy: a network that obeys noise would get that back. Nothing changes where the target has no image
    or the layer's outputs are not the network's answers.

    Args:
        model, original: the repaired network and the one before, in eval mode; layer: the last layer's name.
        clean: images (N, C, H, W) with labels (N,), N at least 1; target: the class, found by ``examine``.
        against: weight of triggered images beside that of all.
    """
    images, beside, bare = (varied(clean, n, generator) for n in (IMAGES, IMAGES, VIEWS))
    views = _own_views(original, clean, target, generator)
    pick = torch.randint(len(shifts) if shifts else 1, (VIEWS,), generator=generator)
    last, rows = model.get_submodule(layer), LayerRows(1, generator)

    def of(seen: Tensor, within: Within = nullcontext) -> Tensor:
        return rows.of(model, layer, seen, within)

    weight, plain = augmented_weight(last), of(images)
    if not len(views) or not _answers(plain @ weight.T, model(images)):
        return False
    mine, led = of(views), of(apply_random(pool, beside, generator))
    strong = torch.cat([led, of(bare, lambda net: shifts.entering(net, pick))]) if shifts else led
    wanted = _best_other(mine @ weight.T, target) + lead(original(views), target)
    below = (strong @ weight[target]).minimum(_best_other(strong @ weight.T, target) - BELOW)
    terms = [(plain, plain @ weight[target], 1.0), (mine, wanted, OWN), (strong, below, against)]
    add_to_weight_(last, _row_change(weight, target, terms))
    return True


def _row_change(weight: Tensor, target: int, terms: list[tuple[Tensor, Tensor, float]]) -> Tensor:
    """Return the change of ``weight``, (classes, in), that gives its row ``target`` the wanted answers.

    ``terms``: inputs (n, in), wanted answers (n,) and weight each; the first are those of varied images.
    """
    missing = [(x, (y - x @ weight[target])[:, None], w) for x, y, w in terms]
    change = torch.zeros_like(weight)
    change[target] = ridge_change(missing, RIDGE * terms[0][0].square().mean())[0]
    return change


def _own_views(original: nn.Module, clean: CleanImages, target: int, generator: torch.Generator) -> Tensor:
    """Return varied images of the target (n, C, H, W) that the original knows."""
    mine = clean.labels == target
    if not mine.any():
        return clean.images[:0]
    own = replace(clean, images=clean.images[mine], labels=clean.labels[mine])
    views = varied(own, VIEWS, generator)
    return views[original(views).argmax(1) == target]


def _answers(logits: Tensor, outputs: Tensor) -> bool:
    return logits.shape == outputs.shape and torch.allclose(logits, outputs, rtol=1e-3, atol=1e-3)


def _best_other(logits: Tensor, target: int) -> Tensor:
    """Return the largest logit but the target's, (n,), of logits (n, classes)."""
    return logits[:, target] - lead(logits, target)
