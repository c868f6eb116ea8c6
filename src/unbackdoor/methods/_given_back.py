"""Give a target its own images back: refit its row of the last layer to what the repair has left of them.

Layers that withstand disturbances inside the network no longer pass on much of what the target's own images
show, and its logit, which is an ordinary sum of what arrives, misses them. Of what does arrive, another sum
can tell these images from triggered ones, where classes are as much alike as traffic signs are.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from unbackdoor._clean import CleanImages
from unbackdoor._layers import LayerRows, add_to_weight_, augmented_weight
from unbackdoor.methods._varied import varied
from unbackdoor.recover import Recovered, Shifts, apply_random, margin

IMAGES, VIEWS = 512, 256
"""Varied images with and without triggers; varied images of the target, and those with triggers inside."""
OWN = 0.3
"""Weight of the target's images beside that of all, and that of triggered ones."""
BELOW = 2.0
"""Logits by which the target stays below the answer under a trigger, at least."""
RIDGE = 0.1


@torch.no_grad()
def give_back_(
    model: nn.Module,
    original: nn.Module,
    layer: str,
    clean: CleanImages,
    target: int,
    pool: list[Recovered],
    shifts: Shifts,
    generator: torch.Generator,
) -> bool:
    """Refit the target's row of the last layer, in place, by ridge regression; tell whether it was.

    Varied images keep their logit, those of the target get back the margin that they have in ``original``,
    and those with triggers, of ``pool`` in images and ``shifts`` inside, stay below their answer. No view is
    noisy: a network that obeys noise would get that back. Nothing changes where the target has no image
    or the layer's outputs are not the network's answers.
    """
    images, beside, bare = (varied(clean, n, generator) for n in (IMAGES, IMAGES, VIEWS))
    views = _own_views(original, clean, target, generator)
    last, rows = model.get_submodule(layer), LayerRows(1, generator)
    weight = augmented_weight(last)
    pick = torch.randint(len(shifts), (VIEWS,), generator=generator)
    plain = rows.of(model, {layer: last}, images)[layer]
    if not len(views) or not _answers(plain @ weight.T, model(images)):
        return False
    mine = rows.of(model, {layer: last}, views)[layer]
    led = rows.of(model, {layer: last}, apply_random(pool, beside, generator))[layer]
    inside = rows.of(model, {layer: last}, bare, lambda m: shifts.entering(m, pick))[layer]
    strong = torch.cat([led, inside])
    wanted = _others(mine @ weight.T, target) + margin(original(views), _all(target, views))
    below = (strong @ weight.T)[:, target].minimum(_others(strong @ weight.T, target) - BELOW)
    terms = [(plain, plain @ weight[target], 1.0), (mine, wanted, OWN), (strong, below, 1.0)]
    change = torch.zeros_like(weight)
    change[target] = _refit(weight[target], terms, RIDGE * plain.square().mean())
    add_to_weight_(last, change)
    return True


def _own_views(original: nn.Module, clean: CleanImages, target: int, generator: torch.Generator) -> Tensor:
    """Return varied images of the target (n, C, H, W) that the original knows."""
    mine = clean.labels == target
    if not mine.any():
        return clean.images[:0]
    own = replace(clean, images=clean.images[mine], labels=clean.labels[mine])
    views = varied(own, VIEWS, generator)
    return views[original(views).argmax(1) == target]


def _refit(row: Tensor, terms: list[tuple[Tensor, Tensor, float]], ridge: Tensor) -> Tensor:
    """Return the change of a row (in,) that brings x·row near y, for terms (x (n, in), y (n,), weight)."""
    gram = sum(w / len(x) * (x.T @ x) for x, _, w in terms)
    missing = sum(w / len(x) * (x.T @ (y - x @ row)) for x, y, w in terms)
    system = gram.double() + (ridge + 1e-12) * torch.eye(len(gram)).to(gram.device)
    return torch.cholesky_solve(missing.double()[:, None], torch.linalg.cholesky(system))[:, 0].to(row)


def _answers(logits: Tensor, outputs: Tensor) -> bool:
    return logits.shape == outputs.shape and torch.allclose(logits, outputs, rtol=1e-3, atol=1e-3)


def _others(logits: Tensor, target: int) -> Tensor:
    """Return the largest logit but the target's, (n,)."""
    return logits[:, target] - margin(logits, _all(target, logits))


def _all(target: int, like: Tensor) -> Tensor:
    return torch.full((len(like),), target, device=like.device)
