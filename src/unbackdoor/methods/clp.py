"""CLP: prune the channels whose Lipschitz bound sticks out of their layer. Needs no data.

σ_k = ‖reshape(γ_k/√(v_k + ε) · W_k, (c_in, h·w))‖₂        the bound of channel k, BatchNorm folded in
prune k where σ_k > μ + u·s                                μ, s: mean and deviation over the layer
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unbackdoor._clean import CleanImages
from unbackdoor._masks import is_conv
from unbackdoor.methods._base import Method, Session
from unbackdoor.methods._channels import Layer, trace_layers


@dataclass(frozen=True, kw_only=True)
class CLP(Method):
    """Prune channels by their Lipschitz constant.

    A backdoor needs channels that answer a small trigger strongly, so their upper bound of the channel
    Lipschitz constant (UCLC) is an outlier of the layer. The images serve only to see which layer runs
    before which BatchNorm; their values and labels are never used.

    Attributes:
        outlier_deviations: u, deviations above the layer's mean at which a channel is pruned; the paper
            takes 3 on CIFAR-10 and 5 on Tiny-ImageNet.

    References:
        Zheng, Tang, Li, Liu, *Data-free Backdoor Removal based on Channel Lipschitzness*, ECCV 2022,
        arXiv 2208.03111.

    Differs from the authors' code: it pairs each BatchNorm with the convolution registered before it, which
    is wrong for pre-activation networks; here the pair is seen in a forward pass. It leaves ε out. A
    convolution without a BatchNorm of its own, which it skips, is judged and pruned on its own weight and
    bias; a network without convolutions is judged on its linear layers except the head.
    """

    name: ClassVar[str] = "clp"
    outlier_deviations: float = 3.0

    def run(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        """Prune in place; see ``Method.run``."""
        layers = trace_layers(model, clean.images)
        layers = [
            layer for layer in layers if is_conv(layer.module) and not layer.module.transposed
        ] or layers[:-1]
        pruned = {}
        for step, layer in enumerate(layers, 1):
            outliers = find_outliers(channel_bounds(layer), self.outlier_deviations)
            silence_(layer, outliers)
            pruned[layer.weight_name] = outliers.nonzero().flatten().tolist()
            session.tell("prune", step, len(layers), channels=len(pruned[layer.weight_name]))
        return {"pruned": {name: channels for name, channels in pruned.items() if channels}}


@torch.no_grad()
def channel_bounds(layer: Layer) -> Tensor:
    """Return σ_k of every channel: (channels,), non-negative.

    >>> conv = nn.Conv2d(1, 2, 1, bias=False)
    >>> _ = conv.weight.data.copy_(torch.tensor([3.0, -4.0]).view(2, 1, 1, 1))
    >>> channel_bounds(Layer("conv", conv, torch.empty(0))).tolist()
    [3.0, 4.0]
    """
    weight = layer.module.weight
    matrices = weight.reshape(len(weight), weight.shape[1], -1).float()
    return torch.linalg.matrix_norm(matrices, ord=2) * _norm_gain(layer)


def _norm_gain(layer: Layer) -> Tensor:
    norm = layer.norm
    gain = torch.ones(len(layer.module.weight), device=layer.module.weight.device)
    if norm is not None and norm.weight is not None:
        gain = gain * norm.weight.abs()
    if norm is not None and norm.running_var is not None:
        gain = gain / (norm.running_var + norm.eps).sqrt()
    return gain


def find_outliers(bounds: Tensor, deviations: float) -> Tensor:
    """Return which bounds lie more than ``deviations`` above the mean: bool (channels,).

    >>> find_outliers(torch.tensor([1.0] * 20 + [9.0]), 3.0).nonzero().tolist()
    [[20]]
    """
    if len(bounds) < 2:
        return torch.zeros_like(bounds, dtype=torch.bool)
    return bounds > bounds.mean() + deviations * bounds.std()


@torch.no_grad()
def silence_(layer: Layer, channels: Tensor) -> None:
    """Make ``channels`` (bool) constant zero, at the BatchNorm where it can be done there."""
    norm = layer.norm
    owner = norm if norm is not None and norm.weight is not None else layer.module
    owner.weight[channels] = 0
    if owner.bias is not None:
        owner.bias[channels] = 0
    if owner is layer.module and norm is not None and norm.running_mean is not None:
        norm.running_mean[channels] = 0
