"""Watching what named modules put out, with no hook left behind, whatever happens."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unbackdoor._masks import is_conv
from unbackdoor.methods._channels import trace_layers


@contextmanager
def captured(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Fill a dict with the outputs of the named modules at every forward pass inside the ``with`` block.

    Args:
        model: its hooks are removed on leaving the block, also by an exception.
        names: as in ``model.named_modules()``; modules that put out no tensor are passed over.

    Yields:
        {name: output of the latest forward pass, with its graph}, in the order they ended. A module
        that runs twice keeps the last.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with captured(net, ["0"]) as seen:
    ...     _ = net(torch.zeros(1, 2))
    >>> seen["0"].shape, len(net[0]._forward_hooks)
    (torch.Size([1, 3]), 0)
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            outputs.pop(name, None)
            if isinstance(output, Tensor):
                outputs[name] = output

        return hook

    handles = []
    try:
        for name in names:
            handles.append(model.get_submodule(name).register_forward_hook(keep(name)))
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def forward_order(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return the image-like outputs (4 dimensions) of all modules, by name, in the order they were finished.

    A module that runs twice stands where it ran last.
    """
    model.eval()
    with captured(model, [name for name, _ in model.named_modules() if name]) as outputs:
        model(images)
    return {name: output for name, output in outputs.items() if output.ndim == 4}


def stage_ends(model: nn.Module, images: Tensor) -> list[str]:
    """Return the modules whose output is the last of its spatial size: the ends of a network's stages.

    Outputs of one pixel are left out: they have no spatial pattern.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, stride=2))
    >>> stage_ends(net, torch.zeros(1, 1, 8, 8))
    ['1', '2']
    """
    outputs = forward_order(model, images)
    runs = itertools.groupby(outputs.items(), key=lambda item: item[1].shape[2:])
    return [list(run)[-1][0] for size, run in runs if size.numel() > 1]


def last_hidden_layer(model: nn.Module, images: Tensor) -> str | None:
    """Return the name of the last convolution that runs, or of the last linear layer but one, or None.

    One convolution among many linear layers is the patch embedding of a transformer: it counts as linear.

    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
    >>> last_hidden_layer(net, torch.zeros(1, 1, 4, 4))
    '0'
    """
    layers = trace_layers(model, images)
    convs = [layer.name for layer in layers if is_conv(layer.module) and not layer.module.transposed]
    hidden = [layer.name for layer in layers[:-1]]
    names = convs if len(convs) > 1 else hidden
    return names[-1] if names else None
