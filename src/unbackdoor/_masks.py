"""Soft masks on weights, m ∈ [0, 1], beside the model and never inside it.

A mask is an entry of a plain dict ``{weight name: tensor}``; the masked network f(x; m⊙θ) is computed with
``torch.func.functional_call``. Nothing is registered on the model: no hook, no parametrization, no renamed
key, so there is nothing to remove when a run is interrupted. ``bake_`` writes m⊙θ into the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.conv import _ConvNd

from unbackdoor._errors import UnbackdoorError

Masks = dict[str, Tensor]


def is_conv(module: nn.Module) -> bool:
    """Tell whether ``module`` is a convolution of any dimension."""
    return isinstance(module, _ConvNd)


def is_conv_or_linear(module: nn.Module) -> bool:
    """Tell whether ``module`` is a convolution or a linear layer."""
    return isinstance(module, _ConvNd | nn.Linear)


def maskable_weights(
    model: nn.Module, select: Callable[[nn.Module], bool] = is_conv_or_linear
) -> dict[str, nn.Parameter]:
    """Return the weights of the selected modules by state-dict name, in the model's order.

    Raises:
        UnbackdoorError: two selected modules share one weight (it would be masked twice), or there is none.
    """
    weights: dict[str, nn.Parameter] = {}
    owners: dict[tuple[int, torch.device], str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        weight = getattr(module, "weight", None)
        if not select(module) or not isinstance(weight, nn.Parameter):
            continue
        name = f"{path}.weight" if path else "weight"
        # By memory, not by object: two parameters can be views of one tensor.
        place = (weight.data_ptr(), weight.device)
        if weight.numel() and place in owners:
            raise UnbackdoorError(
                "two layers share one weight (tied weights); a mask on it would act on both",
                value=f"{owners[place]} and {name}",
                fix=f"untie {name}: layer.weight = nn.Parameter(layer.weight.detach().clone())",
            )
        owners[place] = name
        weights[name] = weight
    if not weights:
        raise UnbackdoorError(
            "the model has no convolution or linear weight to mask",
            value=type(model).__name__,
            fix="give an nn.Module with Conv or Linear layers (for a ScriptModule, its eager original)",
        )
    return weights


def ones_for(weights: Mapping[str, Tensor]) -> Masks:
    """Return fresh masks m = 1, one a weight."""
    return {name: torch.ones_like(weight) for name, weight in weights.items()}


def masked_call(model: nn.Module, masks: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Return f(images; m⊙θ), differentiable in masks and images: (N, C, H, W) -> (N, classes)."""
    weights = {name: model.get_parameter(name) * mask for name, mask in masks.items()}
    return functional_call(model, weights, (images,))


@torch.no_grad()
def bake_(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Write m⊙θ into the weights of ``model``, in place; zero masks give +0."""
    for name, mask in masks.items():
        weight = model.get_parameter(name)
        weight.copy_(torch.where(mask == 0, torch.zeros_like(weight), weight * mask))


@torch.no_grad()
def clip_(masks: Mapping[str, Tensor], low: float = 0.0, high: float = 1.0) -> None:
    """Clip every mask to [low, high], in place."""
    for mask in masks.values():
        mask.clamp_(low, high)
