"""Watching what named modules put out, with no hook left behind, whatever happens."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from unbackdoor._masks import is_conv


@contextmanager
def captured(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Fill a dict with the outputs of the named modules at every forward pass inside the ``with`` block.

    Args:
        model: its hooks are removed on leaving the block, also by an exception.
        names: as in ``model.named_modules()``; modules that put out a tensor.

    Yields:
        {name: output of the latest forward pass, with its graph}. A module that runs twice keeps the last.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> with captured(net, ["0"]) as seen:
    ...     _ = net(torch.zeros(1, 2))
    >>> seen["0"].shape, len(net[0]._forward_hooks)
    (torch.Size([1, 3]), 0)
    """
    outputs: dict[str, Tensor] = {}

    def keep(name: str):
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
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
def forward_order(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """Return the outputs of the model's convolutions for ``image``, by name, in the order they ran."""
    names = [name for name, module in model.named_modules() if is_conv(module)]
    with captured(model, names) as outputs:
        model(image)
    return dict(outputs)


def last_of_each_size(outputs: dict[str, Tensor]) -> list[str]:
    """Return the last name before each change of the spatial size, and the last of all.

    These are the ends of a network's stages ("blocks", "groups") on any architecture.

    >>> sizes = {"a": 8, "b": 8, "c": 4, "d": 2, "e": 2}
    >>> last_of_each_size({name: torch.empty(1, 1, n, n) for name, n in sizes.items()})
    ['b', 'c', 'e']
    """
    runs = itertools.groupby(outputs.items(), key=lambda item: item[1].shape[2:])
    return [list(run)[-1][0] for _, run in runs]
