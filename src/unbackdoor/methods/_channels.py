"""What methods that act on whole channels need to know of any network: its layers in the order they run.

Nothing is assumed of names, classes or the order of registration: one image is sent through the network in
eval mode and hooks (removed at once) note which layer runs when and which normalisation reads its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from unbackdoor._masks import Masks, is_conv_or_linear

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm)
"""Batch, instance, group and layer normalisation: where they have a weight, it scales the channel."""


@dataclass
class Layer:
    """A convolution or linear layer that ran.

    Attributes:
        name: of the module.
        module: the layer.
        norm: the BatchNorm that reads this layer's output and nothing else, if there is one.
        output: what it returned in the trace, (N, channels, …).
    """

    name: str
    module: nn.Module
    output: Tensor
    norm: _BatchNorm | None = None

    @property
    def weight_name(self) -> str:
        """Return the state-dict key of the weight."""
        return f"{self.name}.weight" if self.name else "weight"


@torch.no_grad()
def trace_layers(model: nn.Module, images: Tensor) -> list[Layer]:
    """Return the convolution and linear layers in the order in which they run on ``images[:1]``.

    A layer that runs more than once is listed at its last run, and one that does not run is not listed.
    The last entry is the head: the layer whose outputs are the logits.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 2))
    >>> [(layer.name, layer.norm) for layer in trace_layers(net, torch.rand(1, 1, 4, 4))][1]
    ('3', None)
    """
    layers: dict[str, Layer] = {}

    def ran(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            layers.pop(name, None)
            layers[name] = Layer(name, module, output)

        return hook

    def normalises(module: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
        for layer in layers.values():
            if layer.output is inputs[0]:
                layer.norm = module

    handles = [m.register_forward_hook(ran(n)) for n, m in model.named_modules() if is_conv_or_linear(m)]
    handles += [m.register_forward_pre_hook(normalises) for m in model.modules() if isinstance(m, _BatchNorm)]
    try:
        model.eval()(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return list(layers.values())


def channel_masks(model: nn.Module, images: Tensor) -> Masks:
    """Return masks m = 1, one value a channel, for ``masked_call`` and ``bake_``.

    They sit on the weights of the normalisation layers where the network has any (the reading of RNP and
    NFT: a filter is scaled there), else on the filters of every layer but the head, broadcast over each
    filter. A network that is nothing but a head gets one mask a class.
    """
    norms = {
        f"{name}.weight" if name else "weight": torch.ones_like(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, NORMS) and module.weight is not None
    }
    if norms:
        return norms
    layers = trace_layers(model, images)
    return {layer.weight_name: _filter_ones(layer.module.weight) for layer in layers[:-1] or layers}


def _filter_ones(weight: Tensor) -> Tensor:
    return weight.new_ones(len(weight), *(1,) * (weight.ndim - 1))


@contextmanager
def kept_statistics(model: nn.Module) -> Iterator[None]:
    """Normalise by the batch as ever, but leave the running statistics of BatchNorm alone."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
