"""The state of one training run, epoch by epoch, and its file."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor._errors import UnbackdoorError
from unbackdoor._files import writing
from unbackdoor.attacks._feed import Feed, TrainedFeed
from unbackdoor.attacks._poison import Poisoning
from unbackdoor.attacks._recipe import Recipe, fast_precision
from unbackdoor.methods import Progress

EPOCH_STRIDE = 100_003
"""Distance of the seeds of two runs' epochs, so that no two epochs of near seeds share one."""


class Run:
    """The state of one training run; everything random in an epoch follows from the seed and its number."""

    def __init__(
        self,
        model: nn.Module,
        feed: Feed,
        poisoning: Poisoning | None,
        recipe: Recipe,
        seed: int,
        progress: Callable[[Progress], None] | None,
    ):
        self.model, self.feed, self.recipe, self.seed, self.progress = model, feed, recipe, seed, progress
        self.device = next(model.parameters()).device
        self.mixed = fast_precision(self.device) if recipe.mixed_precision is None else recipe.mixed_precision
        # Channels-last was faster for every network and type measured (by 1.2 on an AMX CPU).
        model.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            model.parameters(),
            lr=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.momentum > 0,
        )
        self.trigger_optimizer = _trigger_optimizer(feed)
        self.smoothing = recipe.label_smoothing if poisoning is None else 0.0
        self.epoch, self.seconds, self.losses = 0, 0.0, []
        self.fingerprint = _fingerprint(model, feed, poisoning, recipe, seed)

    def train_epoch(self) -> None:
        """Train one epoch and count it."""
        start = time.perf_counter()
        generator = self.generator(self.epoch)
        torch.manual_seed(generator.initial_seed())
        self.model.train()
        self.feed.start_epoch(generator)
        batches = self.feed.num_batches(self.recipe.batch_size)
        total = torch.zeros((), device=self.device)
        for number, index in enumerate(self.feed.indices(self.recipe.batch_size, generator)):
            step = self.epoch * batches + number
            loss = self.step(index, generator, self.recipe.rate_at(step, self.recipe.epochs * batches))
            total += loss * len(index)
            self.tell(step + 1, self.recipe.epochs * batches, loss)
        mean = float(total) / len(self.feed.labels)
        if not torch.isfinite(torch.tensor(mean)):
            raise UnbackdoorError(
                "training diverged: the loss is infinite or NaN",
                value=f"epoch {self.epoch + 1}, learning_rate={self.recipe.learning_rate}",
                fix="lower the learning rate of the recipe, for example learning_rate=0.02",
            )
        self.epoch += 1
        self.losses.append(mean)
        self.seconds += time.perf_counter() - start

    def generator(self, epoch: int) -> torch.Generator:
        """Return the generator at the start of ``epoch``."""
        return torch.Generator().manual_seed(self.seed * EPOCH_STRIDE + epoch)

    def step(self, index: Tensor, generator: torch.Generator, rate: float) -> Tensor:
        """Make one step of the victim, and of the trigger when it learns; return the victim's loss."""
        self.optimizer.param_groups[0]["lr"] = rate
        images, labels = self.feed.batch(index, generator)
        images = self.recipe.augmented(images, generator).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)
        extra = self.feed.trigger_loss(index, generator)
        self.optimizer.zero_grad(set_to_none=True)
        if self.trigger_optimizer is not None:
            self.trigger_optimizer.zero_grad(set_to_none=True)
        (loss if extra is None else loss + extra.to(loss)).backward()
        self.optimizer.step()
        if self.trigger_optimizer is not None:
            self.trigger_optimizer.step()
        return loss.detach()

    def tell(self, step: int, total: int, loss: Tensor) -> None:
        """Report progress, if anybody listens."""
        if self.progress is not None:
            self.progress(Progress("train", step, total, {"loss": float(loss), "epoch": self.epoch + 1}))

    def save(self, path: Path) -> None:
        """Write everything that the next epoch depends on."""
        state: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "losses": self.losses,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        if self.trigger_optimizer is not None and isinstance(self.feed, TrainedFeed):
            state["trigger"] = self.feed.trigger.state()
            state["trigger_optimizer"] = self.trigger_optimizer.state_dict()
        with writing(path) as part:
            torch.save(state, part)

    def restore(self, path: Path) -> None:
        """Continue from the state at ``path``, if there is one."""
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["fingerprint"] != self.fingerprint:
            raise UnbackdoorError(
                "the training state there belongs to another run (network, data, poisoning, recipe or seed)",
                value=path,
                fix="delete the file to start again, or give another one",
            )
        self.epoch, self.seconds, self.losses = state["epoch"], state["seconds"], state["losses"]
        self.feed.start_epoch(self.generator(max(0, self.epoch - 1)))
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.trigger_optimizer is not None and isinstance(self.feed, TrainedFeed):
            with torch.no_grad():
                for name, tensor in self.feed.trigger.state().items():
                    tensor.copy_(state["trigger"][name])
            self.trigger_optimizer.load_state_dict(state["trigger_optimizer"])


def _trigger_optimizer(feed: Feed) -> torch.optim.Optimizer | None:
    if not isinstance(feed, TrainedFeed):
        return None
    return torch.optim.Adam(feed.trigger.parameters(), lr=0.01, betas=(0.5, 0.9))


def _fingerprint(model: nn.Module, feed: Feed, poisoning: Poisoning | None, recipe: Recipe, seed: int) -> str:
    """Return a hash of what decides the result, the network's first weights and the fed images included."""
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    shapes = {name: list(tensor.shape) for name, tensor in state.items()}
    spec = None if poisoning is None else poisoning.spec()
    digest = hashlib.sha256(json.dumps([shapes, spec, recipe.fields(), seed], default=str).encode())
    for tensor in state.values():
        digest.update(tensor.numpy().tobytes())
    digest.update(feed.images.cpu().numpy().tobytes())
    digest.update(feed.labels.cpu().numpy().tobytes())
    return digest.hexdigest()
