"""Neural Cleanse: the smallest patch that sends all images to a class; an oddly small one is a backdoor.

for each class t:  min over m, p of  E L(f((1 − m)⊙x + m⊙p), t) + λ‖m‖₁
A_t = (median − ‖m_t‖₁) / (1.4826 · MAD),  flagged where A_t > 2
unlearn: fine-tune with the flagged patches on a share of the images, under their true labels
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR

from unbackdoor._clean import CleanImages
from unbackdoor.methods._base import Method, Session
from unbackdoor.methods._training import Loss, count_steps, crop_and_flip, fit, take, trainable


@dataclass(frozen=True, kw_only=True)
class NeuralCleanse(Method):
    """Reverse a patch for every class, find the outlier, unlearn it.

    A network without an outlier is handed back as it came: that is the paper's verdict "clean".

    Attributes:
        num_steps: batches a class in the search.
        learning_rate: of the search's Adam (betas 0.5 and 0.9).
        first_cost, cost_factor, patience, success_rate: λ is 0 until ``patience`` batches in a row reached
            the ``success_rate``, then ``first_cost``; from there it is multiplied by ``cost_factor`` after as
            many successes, and divided by its 1.5th power after as many failures.
        anomaly_threshold: on A_t.
        stamped_share: share of each batch that gets the patch while unlearning.
        num_epochs, least_steps, tuning_rate: of the unlearning: passes over the images, batches at least, and
            the rate of SGD (momentum 0.9), falling to 0 along a cosine.
        batch_size: images a batch, of both.
        augment: shift and mirror the images before they are stamped.

    References:
        Wang, Yao, Shan, Li, Viswanath, Zheng, Zhao, *Neural Cleanse: Identifying and Mitigating Backdoor
        Attacks in Neural Networks*, IEEE S&P 2019.

    Differs from the authors' code: it runs up to 1,000 passes a class and adapts λ after each; here λ adapts
    after batches, since the search must end within a minute. It unlearns for one epoch of 10 % of the
    training data; 500 images take twenty epochs, and the rate is one at which the patch that was found, which
    the defender can test, stops working.
    """

    name: ClassVar[str] = "nc"
    num_steps: int = 100
    learning_rate: float = 0.1
    first_cost: float = 1e-3
    cost_factor: float = 2.0
    patience: int = 5
    success_rate: float = 0.99
    anomaly_threshold: float = 2.0
    stamped_share: float = 0.2
    num_epochs: int = 20
    least_steps: int = 80
    tuning_rate: float = 0.03
    batch_size: int = 32
    augment: bool = True

    def run(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        """Search, judge and unlearn in place; see ``Method.run``."""
        model.eval().requires_grad_(False)
        patches = []
        for target in range(clean.num_classes):
            patches.append(self.reverse(model, clean, target, session))
            session.tell("reverse", target + 1, clean.num_classes, norm=patches[-1].norm)
        norms = torch.tensor([patch.norm for patch in patches])
        scores = anomaly_scores(norms)
        flagged = (scores > self.anomaly_threshold).nonzero().flatten().tolist()
        if flagged:
            self.unlearn_(model, clean, [patches[target] for target in flagged], session)
        return {"flagged": flagged, "norms": norms.tolist(), "anomaly": scores.tolist()}

    def reverse(self, model: nn.Module, clean: CleanImages, target: int, session: Session) -> Patch:
        """Return the smallest patch found that sends a batch to ``target``, or the last if none did."""
        raw = random_patch(clean.images, session.generator)
        optimizer = torch.optim.Adam([raw.mask, raw.pattern], self.learning_rate, betas=(0.5, 0.9))
        cost = Cost(self)
        best: Patch | None = None
        for images, labels in take(clean, self.num_steps, self.batch_size, session.generator):
            patch = raw.squashed()
            logits = model(patch.stamp(images))
            loss = (
                functional.cross_entropy(logits, torch.full_like(labels, target)) + cost.value * patch.size()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate = (logits.argmax(1) == target).float().mean().item()
            if rate >= self.success_rate and (best is None or patch.norm < best.norm):
                best = patch.detached()
            cost.update(rate)
        return best or raw.squashed().detached()

    def unlearn_(self, model: nn.Module, clean: CleanImages, patches: list[Patch], session: Session) -> None:
        """Fine-tune with ``patches`` on a share of every batch, labels true, in place."""
        optimizer = torch.optim.SGD(trainable(model), self.tuning_rate, momentum=0.9)
        steps = count_steps(len(clean), self.batch_size, epochs=self.num_epochs, least=self.least_steps)
        fit(
            model,
            clean,
            session,
            optimizer=optimizer,
            schedule=CosineAnnealingLR(optimizer, T_max=max(1, steps)),
            steps=steps,
            batch_size=self.batch_size,
            loss=self._stamped_loss(model, patches, session),
            augment=crop_and_flip if self.augment else None,
            phase="unlearn",
        )

    def _stamped_loss(self, model: nn.Module, patches: list[Patch], session: Session) -> Loss:
        def loss(images: Tensor, labels: Tensor) -> Tensor:
            draws = torch.rand(len(images), 1, 1, 1, generator=session.generator).to(images.device)
            which = int(torch.randint(len(patches), (), generator=session.generator))
            stamped = torch.where(draws < self.stamped_share, patches[which].stamp(images), images)
            return functional.cross_entropy(model(stamped), labels)

        return loss


@dataclass(frozen=True)
class Patch:
    """A mask (1, 1, H, W) and a pattern (1, C, H, W), both in [0, 1] once squashed."""

    mask: Tensor
    pattern: Tensor

    def stamp(self, images: Tensor) -> Tensor:
        """Return (1 − m)⊙x + m⊙p."""
        return (1 - self.mask) * images + self.mask * self.pattern

    def squashed(self) -> Patch:
        """Return the patch whose free variables these are, through (tanh + 1)/2."""
        return Patch((self.mask.tanh() + 1) / 2, (self.pattern.tanh() + 1) / 2)

    def detached(self) -> Patch:
        """Return a constant copy."""
        return Patch(self.mask.detach(), self.pattern.detach())

    def size(self) -> Tensor:
        """Return ‖m‖₁, differentiable."""
        return self.mask.abs().sum()

    @property
    def norm(self) -> float:
        """‖m‖₁ as a number."""
        return self.size().item()


def random_patch(images: Tensor, generator: torch.Generator) -> Patch:
    """Return free variables of a patch for ``images``, uniform in [0, 1] once squashed."""
    shapes = ((1, 1, *images.shape[2:]), (1, *images.shape[1:]))
    draws = (torch.rand(shape, generator=generator).to(images) for shape in shapes)
    mask, pattern = (((draw - 0.5) * 1.999).atanh().requires_grad_() for draw in draws)
    return Patch(mask, pattern)


@dataclass
class Cost:
    """λ of the search, adapted to how well the patch works."""

    settings: NeuralCleanse
    value: float = 0.0
    streaks: dict[bool, int] = field(default_factory=lambda: {True: 0, False: 0})

    def update(self, rate: float) -> None:
        """Take in the success rate of one batch."""
        success = rate >= self.settings.success_rate
        self.streaks[success] += 1
        self.streaks[not success] = 0
        if self.streaks[success] < self.settings.patience:
            return
        self.streaks[success] = 0
        if success:
            self.value = self.value * self.settings.cost_factor or self.settings.first_cost
        else:
            self.value /= self.settings.cost_factor**1.5


def anomaly_scores(norms: Tensor) -> Tensor:
    """Return A_t = (median − norm)/(1.4826 · MAD) of each class: (classes,) -> (classes,), large if small.

    >>> anomaly_scores(torch.tensor([10.0, 50.0, 55.0, 60.0, 52.0])).argmax().item()
    0
    """
    median = norms.quantile(0.5)
    spread = 1.4826 * (norms - median).abs().quantile(0.5)
    return (median - norms) / spread.clamp_min(1e-12)
