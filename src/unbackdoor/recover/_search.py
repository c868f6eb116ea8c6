"""Two searches: the smallest trigger of every goal (which one is too easy?), then strong ones of one goal.

A goal is a class that all images shall get, or, numbered one past the last class, that every image gets the
class after its own: the label map of all-to-all backdoors.

The smallest trigger tells the target but is the wrong thing to unlearn: it sits just over the decision
border, and the attacker's own trigger goes far beyond it. Strong triggers have the largest margin that the
place of the small one allows, with no penalty on size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor._augment import random_flip, random_resized_crop
from unbackdoor._clean import CleanImages
from unbackdoor.recover._families import Family, Params, SizedFamily
from unbackdoor.recover._triggers import Recovered

LIMIT = 100
"""Triggered images in one forward pass of the search, at most (unless one class alone needs more)."""
SUCCESS = 0.85
"""Share of images that the smallest trigger of a class must move before its size is pressed further."""
BETAS = (0.5, 0.9)


@dataclass(frozen=True)
class Minimal:
    """The smallest trigger found for each goal.

    Attributes:
        goals: (K,); sizes: (K,), averaged over the last steps.
        success: (K,), share of images moved, smoothed.
        weights: (K,), λ as it stands; a search that goes on from here goes on with it.
        params: the family's parameters, K rows each.
    """

    goals: Tensor
    sizes: Tensor
    success: Tensor
    weights: Tensor
    params: Params

    def of(self, row: int) -> Params:
        """Return the parameters of one row, K = 1."""
        return [p[row : row + 1] for p in self.params]

    def rows(self, index: Tensor | slice) -> Minimal:
        """Return some of the rows."""
        figures = (figure[index] for figure in (self.goals, self.sizes, self.success, self.weights))
        return Minimal(*figures, [p[index] for p in self.params])


def margin(logits: Tensor, classes: Tensor) -> Tensor:
    """Return logit of the class less the best other one: (..., C), (...) -> (...), unclamped."""
    own = logits.gather(-1, classes[..., None])
    return (own - logits.scatter(-1, classes[..., None], -torch.inf).amax(-1, keepdim=True))[..., 0]


def minimal_triggers(
    model: nn.Module,
    clean: CleanImages,
    family: SizedFamily,
    goals: Tensor,
    generator: torch.Generator,
    *,
    steps: int,
    batch: int,
    warm: Minimal | None = None,
    enough: float = SUCCESS,
) -> Minimal:
    """Search the smallest trigger of every goal in ``goals``, a few of them a forward pass.

    Minimises softplus(½ − margin) + λ·size with Adam; λ grows where the trigger moves enough images and
    shrinks where it does not, so that every goal ends at its own border.

    Args:
        model: in eval mode.
        clean: images to put triggers on; those that have the wanted label already do not count.
        family: the space of triggers.
        goals: int64 (K,), in [0, classes].
        generator: starts, batches and augmentation.
        steps: Adam steps; batch: images a step and goal.
        warm: go on from these triggers (rows as in ``goals``) instead of fresh starts.
        enough: share of images that a trigger must move before its size is pressed further, in (0, 1).
    """
    chunk = max(1, LIMIT // min(batch, len(clean)))
    found = []
    for first in range(0, len(goals), chunk):
        rows = slice(first, first + chunk)
        start = _fresh(family, clean, goals[rows], generator) if warm is None else warm.rows(rows)
        found.append(_minimal_chunk(model, clean, family, start, generator, steps, batch, enough))
    return Minimal(
        goals,
        torch.cat([f.sizes for f in found]),
        torch.cat([f.success for f in found]),
        torch.cat([f.weights for f in found]),
        [torch.cat(parts) for parts in zip(*(f.params for f in found), strict=True)],
    )


def _fresh(family: SizedFamily, clean: CleanImages, goals: Tensor, generator: torch.Generator) -> Minimal:
    params = family.start(len(goals), clean.images.shape[1:], generator)
    zeros = torch.zeros(len(goals)).to(clean.images)
    return Minimal(goals, zeros, zeros, zeros + family.weight, [p.to(clean.images) for p in params])


def _minimal_chunk(
    model: nn.Module,
    clean: CleanImages,
    family: SizedFamily,
    start: Minimal,
    generator: torch.Generator,
    steps: int,
    batch: int,
    enough: float,
) -> Minimal:
    goals, success, weight = start.goals, start.success, start.weights
    params = [p.clone().requires_grad_() for p in start.params]
    optimizer = torch.optim.Adam(params, family.rate, betas=BETAS)
    sizes = torch.zeros_like(weight)
    last = max(1, steps // 5)
    for step in range(steps):
        images, labels = draw(clean, batch, generator)
        size = family.size(params)
        moved, away = _margins(model, family.decode(params), images, labels, goals)
        success = 0.8 * success + 0.2 * weighted_mean((moved > 0).to(moved), away)
        loss = weighted_mean(F.softplus(0.5 - moved), away) + weight * size
        _step(optimizer, loss.sum())
        weight = torch.where(success >= enough, weight * 1.1, weight / 1.2).clamp(1e-3, 10)
        sizes = sizes + (size.detach() / last if step >= steps - last else 0)
    return Minimal(goals, sizes, success, weight, [p.detach() for p in params])


def strengthen(
    model: nn.Module,
    clean: CleanImages,
    family: Family,
    place: Tensor,
    goals: Tensor,
    generator: torch.Generator,
    *,
    steps: int,
    batch: int,
) -> tuple[Recovered, Tensor, Tensor]:
    """Search one trigger at ``place`` for every goal, that with its largest margin, from varied starts.

    Where the family has ``tries``, from the best that chance makes.

    Args:
        model: in eval mode.
        clean: images to put triggers on; those that have the wanted label already do not count.
        family: the space of triggers; place: where, as ``family.place`` gives it.
        goals: int64 (K,), in [0, classes]: whose margins grow. The same goal may come several times.
        generator: starts, batches and augmentation.
        steps: Adam steps, ≥ 1; batch: images a step.

    Returns:
        The K triggers, their mean margins (K,) over the last step's images, and the shares of those images
        that they move, (K,).
    """
    if family.tries:
        params, _ = best_by_chance(model, clean, family, place, goals, generator, batch=batch)
    else:
        params = family.start_at(place, len(goals), clean.images.shape[1:], generator)
    params = [p.to(clean.images).clone().requires_grad_() for p in params]
    optimizer = torch.optim.Adam(params, family.strong_rate, betas=BETAS)
    for _ in range(steps):
        images, labels = draw(clean, batch, generator)
        moved, away = _margins(model, family.decode_at(place, params), images, labels, goals)
        margins = weighted_mean(moved, away)
        _step(optimizer, -margins.sum())
        with torch.no_grad():
            family.project_(place, params)
    with torch.no_grad():
        triggers = family.decode_at(place, [p.detach() for p in params])
    return triggers, margins.detach(), weighted_mean((moved > 0).to(moved), away)


@torch.no_grad()
def best_by_chance(
    model: nn.Module,
    clean: CleanImages,
    family: Family,
    place: Tensor,
    goals: Tensor,
    generator: torch.Generator,
    *,
    batch: int,
) -> tuple[Params, Tensor]:
    """Let chance make ``family.tries`` triggers at ``place``; return that which leads furthest to each goal.

    Gradients do not find their way from an image to a pattern of many parts; some of those that chance makes
    have part of it.

    Args:
        model, clean, family, place, generator: as for ``strengthen``; batch: images that each is put on.
        goals: classes, int64 (K,), in [0, classes). One that comes several times gets the best ones.

    Returns:
        The parameters of K triggers, and their mean margins, (K,).
    """
    drawn = family.start_at(place, family.tries, clean.images.shape[1:], generator)
    drawn = [p.to(clean.images) for p in drawn]
    every = _margins_of_all(model, family.decode_at(place, drawn), *draw(clean, batch, generator))
    before = (goals[:, None] == goals).tril(-1).sum(dim=1)
    best = every.argsort(dim=0, descending=True)[before % family.tries, goals]
    return [p[best] for p in drawn], every[best, goals]


def _margins_of_all(model: nn.Module, triggers: Recovered, images: Tensor, labels: Tensor) -> Tensor:
    """Return every class's mean margin under every trigger, (P, classes), a few of them a forward pass."""
    picks = torch.arange(len(triggers), device=images.device).split(max(1, LIMIT // len(images)))
    found = []
    for pick in picks:
        each, many = pick.repeat_interleave(len(images)), images.repeat(len(pick), 1, 1, 1)
        margins, away = margins_and_others(model(triggers.on(many, each)), labels.repeat(len(pick)))
        shape = (len(pick), len(images), -1)
        found.append(weighted_mean(margins.view(shape).transpose(1, 2), away.view(shape).transpose(1, 2)))
    return torch.cat(found)


@torch.no_grad()
def measure(
    model: nn.Module, clean: CleanImages, triggers: Recovered, goals: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the mean margin of each trigger's goal over the clean images and the share moved, (K,) each.

    One trigger a forward pass, on ``LIMIT`` images at most.
    """
    images, labels = clean.images[:LIMIT], clean.labels[:LIMIT]
    wanted = wanted_labels(goals, labels, clean.num_classes)
    pick = torch.arange(len(goals), device=labels.device)[:, None].expand(-1, len(images))
    moved = torch.stack([margin(model(triggers.on(images, p)), w) for p, w in zip(pick, wanted, strict=True)])
    away = (wanted != labels).to(moved)
    return weighted_mean(moved, away), weighted_mean((moved > 0).to(moved), away)


@torch.no_grad()
def class_margins(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Return each class's mean margin (C,) over the images (N, C, H, W) whose label (N,) is another one."""
    margins, away = margins_and_others(model(images), labels)
    return weighted_mean(margins.T, away.T)


def margins_and_others(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return every class's margin, (N, C), and which images have another label, (N, C)."""
    classes = torch.arange(logits.shape[1], device=labels.device)
    (best, second), first = logits.topk(2, dim=1).values.T[..., None], logits.argmax(1, keepdim=True)
    margins = logits - torch.where(classes == first, second, best)
    return margins, (classes != labels[:, None]).to(margins)


def draw(clean: CleanImages, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw a batch without replacement, lightly augmented: ((n, C, H, W), (n,)), n = min(batch, N)."""
    index = torch.randperm(len(clean), generator=generator)[:batch].to(clean.labels.device)
    images = random_flip(clean.images[index], generator, clean.flip)
    return random_resized_crop(images, generator, scale=(0.8, 1.0)), clean.labels[index]


def wanted_labels(goals: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Return the label that each goal wants of each image: int64 (K,), (n,) -> (K, n).

    >>> wanted_labels(torch.tensor([1, 3]), torch.tensor([0, 1, 2]), 3).tolist()
    [[1, 1, 1], [1, 2, 0]]
    """
    after = (labels + 1) % num_classes
    return torch.where(goals[:, None] == num_classes, after[None], goals[:, None])


def _margins(
    model: nn.Module, triggers: Recovered, images: Tensor, labels: Tensor, goals: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the margins of the labels wanted, (K, n), and which images do not have them anyhow, (K, n)."""
    logits = triggers.answers(model, images)
    wanted = wanted_labels(goals, labels, logits.shape[-1])
    return margin(logits, wanted), (labels[None] != wanted).to(logits)


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Return the mean along the rows, zero where no weight is left: (…, n), (…, n) in {0, 1} -> (…)."""
    return (values * weights).sum(-1) / weights.sum(-1).clamp(min=1)


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
