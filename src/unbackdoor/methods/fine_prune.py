"""Fine-pruning: cut the channels that clean images leave asleep, then fine-tune.

a_c = mean activation of channel c of the last convolution over the clean images
prune the channels in increasing a_c while clean accuracy ≥ before − tolerance
fine-tune what is left
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from unbackdoor._clean import CleanImages
from unbackdoor.methods._activations import captured, last_hidden_layer
from unbackdoor.methods._base import Session
from unbackdoor.methods._training import share_correct
from unbackdoor.methods.fine_tune import Tuning


@dataclass(frozen=True, kw_only=True)
class FinePrune(Tuning):
    """Prune dormant channels of the last convolution, then fine-tune (FP).

    Backdoors hide in neurons that clean images leave dormant. The channels of the last convolution (of the
    last hidden linear layer in a network without convolutions) are silenced in the order of their mean
    activation on the clean images, as long as the clean accuracy is at most ``tolerance`` below its
    starting value; a silenced channel stays silent through the fine-tuning that follows.

    Attributes:
        tolerance: loss of clean accuracy at which pruning stops, in [0, 1].
        num_epochs and the others: of the fine-tuning, see ``Tuning``.

    References:
        Liu, Dolan-Gavitt, Garg, *Fine-Pruning: Defending Against Backdooring Attacks on Deep Neural
        Networks*, RAID 2018 (arXiv 1805.12185).

    Differs from the authors' code: the number of channels is found by bisection instead of one by one, and
        the accuracy is that on the defender's own images, there being no further validation set. Where a
        BatchNorm layer reads the pruned convolution, its scale and shift of the channel are zeroed too, or a
        constant would stay.

    >>> FinePrune(tolerance=0.1).fields()["tolerance"]
    0.1
    """

    name: ClassVar[str] = "fp"

    tolerance: float = 0.04

    def run(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        """Prune, then fine-tune ``model`` in place."""
        layer = last_hidden_layer(model, clean.images)
        if layer is None:
            return {"pruned": 0, "channels": 0, **self.tune(model, clean, session)}
        order, readers = rank_channels(model, layer, clean)
        tensors = _channel_tensors(model, [layer, *readers])
        pruned = order[: self._count(model, tensors, order, clean)]
        tuned = self.tune(model, clean, session, after_step=lambda: _silence(tensors, pruned))
        return {"layer": layer, "pruned": len(pruned), "channels": len(order), **tuned}

    def _count(self, model: nn.Module, tensors: list[Tensor], order: Tensor, clean: CleanImages) -> int:
        """Silence as many channels as the tolerance allows, at most all but one, and return how many."""
        floor = share_correct(model, clean) - self.tolerance
        saved = [tensor.detach().clone() for tensor in tensors]

        def keeps(count: int) -> bool:
            _restore(tensors, saved)
            _silence(tensors, order[:count])
            return share_correct(model, clean) >= floor

        count = largest(keeps, len(order) - 1)
        keeps(count)
        return count


@torch.no_grad()
def rank_channels(model: nn.Module, layer: str, clean: CleanImages) -> tuple[Tensor, list[str]]:
    """Return the channels of ``layer`` from the sleepiest on, and the BatchNorm layers that read it.

    The activation is taken behind the normalisation and activation modules that directly follow the layer,
    its negative part cut off, so that a ReLU called as a function counts as well.
    """
    chain = _followers(model, layer, clean)
    total = 0.0
    for images in clean.images.split(256):
        with captured(model, chain[-1:]) as outputs:
            model(images)
        axis = -1 if isinstance(model.get_submodule(layer), nn.Linear) else 1
        total = total + outputs[chain[-1]].clamp(min=0).movedim(axis, 0).flatten(1).sum(1)
    norms = [name for name in chain[1:] if isinstance(model.get_submodule(name), _BatchNorm)]
    return total.argsort(stable=True), norms


def _followers(model: nn.Module, layer: str, clean: CleanImages) -> list[str]:
    """Return ``layer`` and the leaf modules that run right behind it without changing the output's shape."""
    leaves = [name for name, module in model.named_modules() if not list(module.children())]
    model.eval()
    with captured(model, leaves) as outputs:
        model(clean.images[:1])
    names = list(outputs)
    chain = [layer]
    for name in names[names.index(layer) + 1 :]:
        if outputs[name].shape != outputs[layer].shape or hasattr(model.get_submodule(name), "in_channels"):
            break
        chain.append(name)
    return chain


def _channel_tensors(model: nn.Module, names: list[str]) -> list[Tensor]:
    """Return the weights and biases of the named modules, channel first."""
    modules = [model.get_submodule(name) for name in names]
    return [t for module in modules for t in (module.weight, module.bias) if t is not None]


@torch.no_grad()
def _silence(tensors: list[Tensor], channels: Tensor) -> None:
    for tensor in tensors:
        tensor[channels] = 0


@torch.no_grad()
def _restore(tensors: list[Tensor], saved: list[Tensor]) -> None:
    for tensor, old in zip(tensors, saved, strict=True):
        tensor.copy_(old)


def largest(keeps: Callable[[int], bool], most: int) -> int:
    """Return a count up to ``most`` that ``keeps`` holds for and the next one breaks, by bisection.

    >>> largest(lambda count: count <= 5, 100), largest(lambda count: True, 7)
    (5, 7)
    """
    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low
