"""Mode connectivity repair: a point of a curve of low clean loss between the model and a fine-tuned copy.

φ(t) = (1−t)² θ₀ + 2t(1−t) θ + t² θ₁        θ₀ the model, θ₁ its fine-tuned copy, θ the bend
min over θ of  E over t ~ U(0, 1), (x, y) of  L(f(x; φ(t)), y)
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from unbackdoor._clean import CleanImages
from unbackdoor._errors import UnbackdoorError
from unbackdoor.methods._base import Session
from unbackdoor.methods._training import Loss, count_steps, fit, take, train_mode_
from unbackdoor.methods.fine_tune import Tuning

Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class MCR(Tuning):
    """Take a point of a Bézier curve, trained on clean images, between the model and a fine-tuned copy (MCR).

    Along such a curve the clean loss stays low while the backdoor, which the clean images do not hold in
    place, fades away from the ends. The bend starts at the middle of the straight line; BatchNorm statistics
    of the point taken are estimated anew from the clean images.

    Attributes:
        position: t in [0, 1]; 0 is the model, 1 the fine-tuned copy.
        num_curve_epochs: passes over the clean images to train the bend.
        curve_learning_rate: of its SGD; constant for the first half, then down to a hundredth.
        curve_weight_decay: ½ times it times ‖φ(t)‖² is added to the loss.
        num_epochs and the others: of the fine-tuned end, see ``Tuning``.

    References:
        Zhao, Chen, Das, Ramamurthy, Lin, *Bridging Mode Connectivity in Loss Landscapes and Adversarial
        Robustness*, ICLR 2020 (arXiv 2005.00060).

    Differs from the authors' code: it joins two models with the same backdoor; a defender has one, so the
        other end is a fine-tuned copy, as in the later comparisons of the field. It reports the whole curve;
        the default here is its middle, the point furthest from both ends.

    >>> MCR(position=0.3).position
    0.3
    """

    name: ClassVar[str] = "mcr"

    position: float = 0.5
    num_curve_epochs: int = 30
    curve_learning_rate: float = 0.01
    curve_weight_decay: float = 1e-4
    num_epochs: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.position <= 1:
            raise UnbackdoorError("position must lie in [0, 1]", value=self.position, fix="MCR(position=0.5)")

    def run(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        """Replace the weights of ``model`` in place by those of the point at ``position``."""
        end = copy.deepcopy(model)
        self.tune(end, clean, session)
        ends = [_weights(network) for network in (model, end)]
        bend = {name: (old + ends[1][name]).div(2).requires_grad_() for name, old in ends[0].items()}
        final = self._train_bend(model, bend, ends, clean, session)
        _write(model, bezier(ends[0], bend, ends[1], self.position))
        estimate_statistics_(model, clean, session, self.batch_size)
        return {"loss": final}

    def _train_bend(
        self, model: nn.Module, bend: Weights, ends: list[Weights], clean: CleanImages, session: Session
    ) -> float:
        optimizer = torch.optim.SGD(bend.values(), lr=self.curve_learning_rate, momentum=self.momentum)
        steps = count_steps(len(clean), self.batch_size, epochs=self.num_curve_epochs, least=self.least_steps)
        return fit(
            model,
            clean,
            session,
            optimizer=optimizer,
            schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: slope(step / steps)),
            steps=steps,
            batch_size=self.batch_size,
            loss=self._loss(model, bend, ends, session.generator),
            augment=self.augmentation,
            phase="curve",
        )

    def _loss(self, model: nn.Module, bend: Weights, ends: list[Weights], generator: torch.Generator) -> Loss:
        def loss(images: Tensor, labels: Tensor) -> Tensor:
            position = torch.rand((), generator=generator).item()
            point = bezier(ends[0], bend, ends[1], position)
            decay = sum(weight.square().sum() for weight in point.values())
            value = functional.cross_entropy(functional_call(model, point, (images,)), labels)
            return value + self.curve_weight_decay / 2 * decay

        return loss


def bezier(start: Weights, bend: Weights, end: Weights, position: float) -> Weights:
    """Return the point φ(t) of the quadratic Bézier curve, weight by weight.

    >>> one = {"w": torch.tensor(0.0)}, {"w": torch.tensor(1.0)}, {"w": torch.tensor(4.0)}
    >>> bezier(*one, 0.5)["w"].item()
    1.5
    """
    parts = (1 - position) ** 2, 2 * position * (1 - position), position**2
    return {n: parts[0] * start[n] + parts[1] * bend[n] + parts[2] * end[n] for n in start}


def slope(share: float) -> float:
    """Return the factor of the learning rate after a ``share`` of the steps, in [0.01, 1].

    >>> slope(0.2), round(slope(0.7), 3), slope(1.0)
    (1.0, 0.505, 0.01)
    """
    return min(1.0, max(0.01, 1 - 0.99 * (share - 0.5) / 0.4))


@torch.no_grad()
def estimate_statistics_(model: nn.Module, clean: CleanImages, session: Session, batch_size: int) -> None:
    """Estimate BatchNorm's running statistics anew: the plain mean over one pass of the clean images.

    A single image has no variance of its own; then the statistics stay as they are.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms or min(batch_size, len(clean)) < 2:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    train_mode_(model)
    batches = count_steps(len(clean), batch_size, epochs=1)
    for images, _ in take(clean, batches, batch_size, session.generator):
        model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _weights(model: nn.Module) -> Weights:
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.is_floating_point()}


@torch.no_grad()
def _write(model: nn.Module, weights: Weights) -> None:
    for name, weight in weights.items():
        model.get_parameter(name).copy_(weight)
