"""Networks by name, with the state-dict keys of the checkpoints that the literature publishes.

Inputs are images in [0, 1]; none of them normalises. ``NAMES`` lists what ``build`` knows.
"""

from __future__ import annotations

from torch import nn

from unbackdoor._errors import UnbackdoorError, unknown_name
from unbackdoor.zoo._registry import Architecture
from unbackdoor.zoo.mobilenet_v2 import MobileNetV2
from unbackdoor.zoo.plain_cnn import PlainCNN
from unbackdoor.zoo.preact_resnet import PreActResNet18
from unbackdoor.zoo.resnet import resnet_18, resnet_20
from unbackdoor.zoo.shufflenet_v2 import shufflenet_v2_x0_5, shufflenet_v2_x1_0
from unbackdoor.zoo.small_vgg import SmallVGG
from unbackdoor.zoo.vgg import VGG19BN
from unbackdoor.zoo.vit import SmallViT
from unbackdoor.zoo.wide_resnet import wrn_16_1

ARCHITECTURES: dict[str, Architecture] = {
    "small_vgg": Architecture(SmallVGG, smallest=8),
    "wrn_16_1": Architecture(wrn_16_1, smallest=8),
    "resnet_18": Architecture(resnet_18, smallest=8),
    "preact_resnet_18": Architecture(PreActResNet18, smallest=8),
    "vgg_19_bn": Architecture(VGG19BN, smallest=16),
    "mobilenet_v2": Architecture(MobileNetV2, smallest=8),
    "shufflenet_v2_x0_5": Architecture(shufflenet_v2_x0_5, smallest=8),
    "shufflenet_v2_x1_0": Architecture(shufflenet_v2_x1_0, smallest=8),
    "resnet_20": Architecture(resnet_20, smallest=8),
    "small_vit": Architecture(SmallViT, smallest=8, multiple=4),
    "plain_cnn": Architecture(PlainCNN, smallest=8),
}
NAMES: tuple[str, ...] = tuple(ARCHITECTURES)

__all__ = ["ARCHITECTURES", "NAMES", "Architecture", "build"]


def build(name: str, *, num_classes: int, in_channels: int = 3, input_size: int = 32) -> nn.Module:
    """Build the network called ``name`` with fresh weights from torch's global generator.

    Args:
        name: one of ``NAMES``.
        num_classes: width of the output, at least 2.
        in_channels: channels of the images, 1 for grey, 3 for colour.
        input_size: height and width of the images, in pixels.

    Returns:
        A network in train mode, float (N, in_channels, input_size, input_size) -> logits (N, num_classes).

    Raises:
        UnbackdoorError: unknown name, or an input that the network cannot take.

    >>> import torch
    >>> build("small_vgg", num_classes=10, input_size=8).eval()(torch.zeros(1, 3, 8, 8)).shape
    torch.Size([1, 10])
    """
    if name not in ARCHITECTURES:
        raise unknown_name("network", name, list(NAMES))
    if num_classes < 2:
        raise UnbackdoorError(
            "a classifier needs two or more classes", value=num_classes, fix="num_classes=10"
        )
    if in_channels < 1:
        raise UnbackdoorError("images have one or more channels", value=in_channels, fix="in_channels=3")
    architecture = ARCHITECTURES[name]
    architecture.check_size(name, input_size)
    return architecture.make(num_classes, in_channels, input_size)
