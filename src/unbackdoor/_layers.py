"""What goes into convolution and linear layers, as rows of a linear map: out = row · Wᵀ (+ bias).

A convolution is a linear map on image patches. ``LayerRows`` cuts the same random patches out of the input
of each watched layer, so that inputs for clean and for triggered images, in two versions of a network, can be
compared row by row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbackdoor._in_step import in_step

BATCH = 64


def restorable_layers(model: nn.Module, images: Tensor) -> dict[str, nn.Module]:
    """Return the layers that are linear maps on rows, by name, in the order the network runs them.

    These are ``nn.Linear`` and ``nn.Conv2d`` without groups, with zero padding, called exactly once a
    forward pass. Others (grouped and depthwise convolutions, 1-D and 3-D ones, attention's packed
    projections) are left alone.
    """
    calls = calls_of(model, images, _is_row_map)
    return {name: model.get_submodule(name) for name in calls if calls.count(name) == 1}


def calls_of(model: nn.Module, images: Tensor, watched: Callable[[nn.Module], bool]) -> list[str]:
    """Return the names of ``watched`` modules as a forward pass begins them, once a call; on one image."""
    calls: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
        for name, module in model.named_modules()
        if watched(module)
    ]
    try:
        with torch.no_grad():
            model(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    return calls


def augmented_weight(layer: nn.Module) -> Tensor:
    """Return [W | bias] as a matrix (out, in) or (out, in + 1), a copy."""
    weight = layer.weight.detach().flatten(1)
    return weight.clone() if layer.bias is None else torch.cat([weight, layer.bias.detach()[:, None]], dim=1)


@torch.no_grad()
def add_to_weight_(layer: nn.Module, change: Tensor) -> None:
    """Add a matrix shaped like ``augmented_weight`` to the layer, in place."""
    if layer.bias is not None:
        layer.bias.add_(change[:, -1])
        change = change[:, :-1]
    layer.weight.add_(change.reshape(layer.weight.shape))


class LayerRows:
    """Cuts rows out of layer inputs, at positions fixed once for each layer.

    Args:
        per_image: rows an image, at most as many as the layer has positions.
        generator: draws the positions.
    """

    def __init__(self, per_image: int, generator: torch.Generator):
        self.per_image, self.generator = per_image, generator
        self.positions: dict[str, Tensor] = {}

    def walk(
        self,
        model: nn.Module,
        layers: Sequence[str],
        sets: Sequence[Tensor],
        within: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext,
    ) -> Iterator[list[Tensor]]:
        """Yield, layer after layer, the rows (N·r, in (+1 for a bias)) of each set of images (N, C, H, W).

        A layer's weights may be changed when its rows were yielded: those of the next are what images send on
        through the changed one. All sets have as many images, and the same positions. For the other
        arguments, for closing and errors see ``in_step``.
        """
        images = torch.cat(list(sets))
        inputs = in_step(model, layers, images.split(BATCH), within)
        with closing(inputs):
            for name, seen in zip(layers, inputs, strict=True):
                layer = model.get_submodule(name)
                at = self._positions(name, layer, seen[0], len(sets[0])).repeat(len(sets), 1)
                yield _cut_sets(layer, seen, at, len(sets))

    def of(
        self,
        model: nn.Module,
        layer: str,
        images: Tensor,
        within: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext,
    ) -> Tensor:
        """Return the rows of one layer for one set of images, as many as the first time or fewer."""
        with closing(self.walk(model, [layer], [images], within)) as walk:
            return next(walk)[0]

    def _positions(self, name: str, layer: nn.Module, seen: Tensor, total: int) -> Tensor:
        if name not in self.positions:
            count = _num_positions(layer, seen)
            draws = torch.rand(total, count, generator=self.generator)
            self.positions[name] = draws.topk(min(self.per_image, count), dim=1).indices
        return self.positions[name][:total]


def _is_row_map(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros"
    return type(module) is nn.Linear


def _num_positions(layer: nn.Module, seen: Tensor) -> int:
    return math.prod(_out_size(layer, seen)) if isinstance(layer, nn.Conv2d) else seen[0, ..., 0].numel()


def _out_size(layer: nn.Conv2d, seen: Tensor) -> tuple[int, int]:
    """Return the height and width of a convolution's output, of its input (N, C, H, W)."""
    left, right, top, bottom = _padding(layer)
    sides = (seen.shape[2] + top + bottom, seen.shape[3] + left + right)
    spans = zip(sides, layer.kernel_size, layer.dilation, layer.stride, strict=True)
    return tuple((side - d * (k - 1) - 1) // stride + 1 for side, k, d, stride in spans)


def _cut_sets(layer: nn.Module, seen: list[Tensor], at: Tensor, num_sets: int) -> list[Tensor]:
    """Return each set's rows, of what ``in_step`` has seen of all, in batches."""
    parts = at.to(seen[0].device).split([len(part) for part in seen])
    rows = [_cut(layer, x, part) for x, part in zip(seen, parts, strict=True)]
    return list(torch.cat(rows).chunk(num_sets))


def _cut(layer: nn.Module, seen: Tensor, at: Tensor) -> Tensor:
    """Return the rows at flat output positions ``at`` (n, r), with a column of ones where there is a bias."""
    if isinstance(layer, nn.Conv2d):
        rows = _patches(layer, seen, at)
    else:
        flat = seen.reshape(len(seen), -1, seen.shape[-1])
        rows = flat.gather(1, at[..., None].expand(-1, -1, flat.shape[-1])).flatten(0, 1)
    return rows if layer.bias is None else F.pad(rows, (0, 1), value=1.0)


def _patches(layer: nn.Conv2d, seen: Tensor, at: Tensor) -> Tensor:
    padded, (_, width) = F.pad(seen, _padding(layer)), _out_size(layer, seen)
    image = torch.arange(len(seen), device=at.device)[:, None].expand_as(at)
    steps = [
        torch.arange(k, device=at.device) * d for k, d in zip(layer.kernel_size, layer.dilation, strict=True)
    ]
    down = (at // width * layer.stride[0])[..., None] + steps[0]
    right = (at % width * layer.stride[1])[..., None] + steps[1]
    cut = padded[image[..., None, None], :, down[..., :, None], right[..., None, :]]
    return cut.permute(0, 1, 4, 2, 3).flatten(0, 1).flatten(1)


def _padding(layer: nn.Conv2d) -> tuple[int, int, int, int]:
    if layer.padding == "valid":
        return (0, 0, 0, 0)
    if layer.padding == "same":
        total = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        return (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2)
    return (layer.padding[1], layer.padding[1], layer.padding[0], layer.padding[0])


def ridge_change(terms: list[tuple[Tensor, Tensor, float]], ridge: Tensor) -> Tensor:
    """Return the change Δ (out, in) of a weight that minimises Σ w·mean‖Δx − y‖² + ridge·‖Δ‖².

    Args:
        terms: inputs x (n, in), what their outputs lack y (n, out), weight w, at least 0; n may differ.
        ridge: a scalar, at least 0.
    """
    gram = sum(w / len(x) * (x.T @ x) for x, _, w in terms)
    wanted = sum(w / len(x) * (x.T @ y) for x, y, w in terms)
    # In double precision: rows can lie in few dimensions, and the ridge is small beside the largest.
    system = gram.double() + (ridge + 1e-12) * torch.eye(len(gram)).to(gram.device)
    return torch.cholesky_solve(wanted.double(), torch.linalg.cholesky(system)).T.to(gram)
