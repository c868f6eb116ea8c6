"""The metrics, in one place: ACC, ASR, RA and DER, always on a test split and never seen by a method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbackdoor._errors import UnbackdoorError
from unbackdoor._modes import evaluating

Apply = Callable[[Tensor], Tensor]
Labels = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Metrics:
    """How well a classifier classifies, and how well it obeys a trigger. All rates in [0, 1].

    Attributes:
        acc: share of the clean images that get their true label.
        asr: share of the triggered images that get the attacker's label; images whose label the attack
            does not change (the target class itself) are left out.
        ra: share of the same triggered images that get their true label.
        asr_with_target: share of *all* images that get the attacker's label once triggered, as much of the
            literature counts it; a clean ten-class model already has about 0.1.
        num_images: images behind ``acc`` and ``asr_with_target``.
        num_triggered: images behind ``asr``, ``ra`` and ``asr_untriggered``.
        asr_untriggered: share of the images behind ``asr`` that get the attacker's label *without* the
            trigger: ordinary errors, which no removal of a backdoor can take away. ``None`` in figures kept
            by an earlier version.
        acc_target: share of the clean images of the target class that get their label, where ``acc`` hardly
            shows what a repair costs: a class is a tenth of the images, or a two-hundredth. ``None`` for
            all-to-all, where there are no such images, and in figures kept by an earlier version.
    """

    acc: float
    asr: float
    ra: float
    asr_with_target: float
    num_images: int
    num_triggered: int
    asr_untriggered: float | None = None
    acc_target: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Return the figures as plain values, for records."""
        return dataclasses.asdict(self)


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 100) -> float:
    """Return the share of ``images`` that ``model`` gives their label, in eval mode.

    Args:
        model: (N, C, H, W) in [0, 1] -> logits (N, classes); its train/eval modes are put back.
        images: float (N, C, H, W) in [0, 1], or uint8 (N, C, H, W) in [0, 255]; on any device.
        labels: integer (N,).
        batch_size: images a forward pass.

    Raises:
        UnbackdoorError: no image, or another number of labels than of images.
    """
    _check(images, labels)
    predicted = _predict(model, images, batch_size)
    return _share(predicted == _plain(labels))


def evaluate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    trigger: Apply,
    label_map: Labels,
    batch_size: int = 100,
) -> Metrics:
    """Measure ACC on the clean images, and ASR and RA on the triggered ones.

    With true labels y, attacker's labels t = ``label_map(y)``, trigger T and the images E that the attack
    moves (``label_map.eligible(y)``; t ≠ y when the map has no such method):
    ACC = mean over all of [f(x) = y], ASR = mean over E of [f(T(x)) = t], RA = mean over E of [f(T(x)) = y],
    ASR without the trigger = mean over E of [f(x) = t].

    Args:
        model: (N, C, H, W) in [0, 1] -> logits (N, classes); its train/eval modes are put back.
        images: float (N, C, H, W) in [0, 1], or uint8 (N, C, H, W) in [0, 255]; the whole test split.
        labels: integer (N,), the true labels.
        trigger: images (N, C, H, W) in [0, 1] -> triggered images of the same shape.
        label_map: labels (N,) -> attacker's labels (N,).
        batch_size: images a forward pass.

    Raises:
        UnbackdoorError: no image, another number of labels than of images, or no image that the attack moves.

    >>> from unbackdoor.attacks._labels import AllToOne
    >>> bright = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    >>> _ = bright[1].weight.data.copy_(torch.tensor([[1.0], [0.5]]))
    >>> images, labels = torch.full((4, 1, 1, 1), 0.5), torch.tensor([0, 0, 1, 1])
    >>> evaluate(bright, images, labels, lambda x: x, AllToOne(target=0))  # doctest: +NORMALIZE_WHITESPACE
    Metrics(acc=0.5, asr=1.0, ra=0.0, asr_with_target=1.0, num_images=4, num_triggered=2, asr_untriggered=1.0,
            acc_target=1.0)
    """
    _check(images, labels)
    labels = _plain(labels)
    wanted = label_map(labels)
    eligible = label_map.eligible(labels) if hasattr(label_map, "eligible") else wanted != labels
    if not eligible.any():
        raise UnbackdoorError(
            "no image whose label the attack changes, so there is no ASR",
            value=f"labels {labels.unique().tolist()[:20]}",
            fix="give test images of other classes than the target",
        )
    clean = _predict(model, images, batch_size)
    triggered = _predict(model, images, batch_size, trigger)
    return Metrics(
        acc=_share(clean == labels),
        asr=_share((triggered == wanted)[eligible]),
        ra=_share((triggered == labels)[eligible]),
        asr_with_target=_share(triggered == wanted),
        num_images=len(labels),
        num_triggered=int(eligible.sum()),
        asr_untriggered=_share((clean == wanted)[eligible]),
        acc_target=_accuracy_of_target(clean, labels, wanted[eligible].unique()),
    )


def defence_effectiveness(before: Metrics, after: Metrics) -> float:
    """Return DER = [max(0, ΔASR) − max(0, ΔACC) + 1] / 2, in [0, 1]; 0.5 for a defence that does nothing.

    ΔASR and ΔACC are what ASR and ACC lost from ``before`` to ``after``.

    References:
        Zhu et al., *Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization*,
        ICCV 2023, https://arxiv.org/abs/2304.11823
    """
    return (max(0.0, before.asr - after.asr) - max(0.0, before.acc - after.acc) + 1) / 2


@torch.no_grad()
def _predict(model: nn.Module, images: Tensor, batch_size: int, apply: Apply | None = None) -> Tensor:
    """Return the predicted labels on the CPU: int64 (N,)."""
    weight = next(model.parameters())
    predicted = []
    with evaluating(model):
        for batch in images.split(batch_size):
            batch = batch.to(weight.device)
            batch = batch.to(weight.dtype) if batch.is_floating_point() else batch.to(weight.dtype) / 255
            batch = batch if apply is None else apply(batch)
            predicted.append(model(batch).argmax(1).cpu())
    return torch.cat(predicted)


def _accuracy_of_target(predicted: Tensor, labels: Tensor, targets: Tensor) -> float | None:
    """Return the share of the target's images that get their label; ``None`` of several targets or none."""
    own = labels == targets[0]
    return _share((predicted == labels)[own]) if len(targets) == 1 and own.any() else None


def _plain(labels: Tensor) -> Tensor:
    return torch.as_tensor(labels).cpu().to(torch.int64)


def _share(hits: Tensor) -> float:
    return int(hits.sum()) / len(hits)


def _check(images: Tensor, labels: Tensor) -> None:
    if len(images) == 0 or len(images) != len(labels):
        raise UnbackdoorError(
            "metrics need at least one image and one label an image",
            value=f"{len(images)} images, {len(labels)} labels",
            fix="give images (N, C, H, W) and labels (N,) of one test split",
        )
