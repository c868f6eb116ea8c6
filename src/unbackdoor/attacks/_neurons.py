"""Patterns optimised to excite neurons of a clean model: the search that several attacks share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbackdoor._errors import UnbackdoorError
from unbackdoor._masks import maskable_weights
from unbackdoor._modes import evaluating
from unbackdoor.attacks._base import OptimisedTrigger
from unbackdoor.attacks._patterns import check_range

BATCH = 128


@dataclass(frozen=True, kw_only=True)
class NeuronTrigger(OptimisedTrigger):
    """A trigger whose pattern is optimised so that chosen neurons of a clean model fire.

    The neurons are the ``num_neurons`` output units of ``layer`` with the largest sum of absolute incoming
    weights: those that the input moves most. The pattern p minimises the mean over images and neurons of
    (target_value − A(x + p))², A the strongest response of a unit over all positions, by Adam.

    Attributes:
        layer: name of a convolution or linear layer; ``None`` takes the last one before the classifier.
        num_neurons: ≥ 1.
        target_value: activation to reach, far above what clean images give.
        steps: of the optimisation, ≥ 1.
        learning_rate: of Adam.
    """

    layer: str | None = None
    num_neurons: int = 1
    target_value: float = 100.0
    steps: int = 200
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        check_range(type(self).__name__, "num_neurons", self.num_neurons, 1, 1_000_000)
        check_range(type(self).__name__, "steps", self.steps, 1, 1_000_000)

    def excite(
        self,
        model: nn.Module,
        images: Tensor,
        start: Tensor,
        render: Callable[[Tensor, Tensor], Tensor],
        project: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Return the optimised pattern.

        Args:
            model: a clean classifier, in any mode; not changed.
            images: float (N, C, H, W) in [0, 1].
            start: where the pattern starts.
            render: (images, pattern) -> what the model sees, differentiable in the pattern.
            project: brings a pattern back to what is allowed, after every step.
        """
        pattern = start.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([pattern], lr=self.learning_rate)
        batches = images.split(BATCH)
        with torch.enable_grad(), evaluating(model), _responses(model, self.layer, self.num_neurons) as read:
            for step in range(self.steps):
                model(render(batches[step % len(batches)], pattern))
                loss = (self.target_value - read()).square().mean()
                (pattern.grad,) = torch.autograd.grad(loss, [pattern])
                optimizer.step()
                with torch.no_grad():
                    pattern.copy_(project(pattern))
        return pattern.detach()


@contextmanager
def _responses(model: nn.Module, layer: str | None, count: int) -> Iterator[Callable[[], Tensor]]:
    """Watch the chosen units; yields a function that reads their responses, (N, units), of the last call."""
    module, units = _choose(model, layer, count)
    seen: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        by_unit = output if isinstance(module, nn.Linear) else output.movedim(1, -1)
        chosen = by_unit[..., units]
        seen[:] = [chosen.reshape(len(chosen), -1, len(units)).amax(1)]

    handle = module.register_forward_hook(keep)
    try:
        yield lambda: seen[0]
    finally:
        handle.remove()


def _choose(model: nn.Module, layer: str | None, count: int) -> tuple[nn.Module, Tensor]:
    weights = maskable_weights(model)
    layers = [name.removesuffix(".weight") for name in weights]
    layer = layers[max(0, len(layers) - 2)] if layer is None else layer
    if layer not in layers:
        raise UnbackdoorError(
            "unknown layer of the model", value=layer, fix=f"use one of: {', '.join(layers)}"
        )
    weight = weights[f"{layer}.weight"].detach()
    scores = weight.abs().flatten(1).sum(1)
    return model.get_submodule(layer), scores.topk(min(count, len(scores))).indices
