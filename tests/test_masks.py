"""Masks stand beside the model; baking them gives the same function and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from conftest import Tiny
from unbackdoor import UnbackdoorError
from unbackdoor._masks import (
    bake_,
    clip_,
    is_conv,
    is_conv_or_linear,
    maskable_weights,
    masked_call,
    ones_for,
)


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Linear(4, 4, bias=False)
        self.early = nn.Linear(4, 4, bias=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.late(self.early(images.flatten(1)))


def test_names_are_state_dict_keys_in_order(tiny: Tiny) -> None:
    weights = maskable_weights(tiny.model)
    keys = [key for key in tiny.model.state_dict() if key in weights]
    assert list(weights) == keys
    assert all(weights[key] is tiny.model.get_parameter(key) for key in keys)


def test_a_lone_layer_is_a_model() -> None:
    assert list(maskable_weights(nn.Linear(2, 2))) == ["weight"]


@pytest.mark.parametrize("layer", [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d])
def test_every_convolution_counts(layer: type[nn.Module]) -> None:
    assert is_conv(layer(2, 2, 3)) and is_conv_or_linear(layer(2, 2, 3))
    assert not is_conv(nn.Linear(2, 2)) and is_conv_or_linear(nn.Linear(2, 2))
    assert not is_conv_or_linear(nn.BatchNorm2d(2))


def test_masks_of_one_change_nothing(tiny: Tiny) -> None:
    masks = ones_for(maskable_weights(tiny.model))
    assert torch.equal(masked_call(tiny.model, masks, tiny.images), tiny.model(tiny.images))


def test_baking_gives_the_masked_function(tiny: Tiny) -> None:
    masks = {name: torch.rand_like(w) for name, w in maskable_weights(tiny.model).items()}
    masked = masked_call(tiny.model, masks, tiny.images)
    keys = list(tiny.model.state_dict())
    assert not torch.allclose(masked, tiny.model(tiny.images))
    bake_(tiny.model, masks)
    assert torch.equal(tiny.model(tiny.images), masked)
    assert list(tiny.model.state_dict()) == keys
    assert all(type(p) is nn.Parameter for p in tiny.model.parameters())


def test_gradients_reach_masks_and_images(tiny: Tiny) -> None:
    masks = {name: m.requires_grad_() for name, m in ones_for(maskable_weights(tiny.model)).items()}
    images = tiny.images.requires_grad_()
    masked_call(tiny.model, masks, images).square().sum().backward()
    assert images.grad.abs().sum() > 0
    assert all(mask.grad.abs().sum() > 0 for mask in masks.values())


def test_zero_masks_give_positive_zeros() -> None:
    layer = nn.Linear(3, 3)
    layer.weight.data.fill_(-1.0)
    bake_(layer, {"weight": torch.zeros(3, 3)})
    assert not torch.signbit(layer.weight).any()


def test_clipping_is_in_place() -> None:
    masks = {"weight": torch.tensor([-1.0, 0.5, 2.0])}
    clip_(masks)
    assert masks["weight"].tolist() == [0.0, 0.5, 1.0]


def tied_by_parameter() -> nn.Module:
    model = TwoHeads()
    model.early.weight = model.late.weight
    return model


def tied_by_module() -> nn.Module:
    model = TwoHeads()
    model.early = model.late
    return model


def tied_by_memory() -> nn.Module:
    model = TwoHeads()
    model.early.weight = nn.Parameter(model.late.weight.detach())
    return model


@pytest.mark.parametrize("make", [tied_by_parameter, tied_by_module, tied_by_memory])
def test_tied_weights_are_refused(make) -> None:
    with pytest.raises(UnbackdoorError, match="tied") as caught:
        maskable_weights(make())
    assert "late.weight and early.weight" in str(caught.value) and "clone()" in caught.value.fix


def test_untying_as_told_helps() -> None:
    model = tied_by_parameter()
    layer = model.early
    layer.weight = nn.Parameter(layer.weight.detach().clone())
    assert list(maskable_weights(model)) == ["late.weight", "early.weight"]


def test_no_maskable_weight_is_refused() -> None:
    with pytest.raises(UnbackdoorError, match="no convolution or linear weight"):
        maskable_weights(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)))
