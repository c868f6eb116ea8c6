"""ResNet-18 with the CIFAR stem, and ResNet-20.

References:
    He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv:1512.03385.
    State-dict keys of ``resnet_18`` as in kuangliu/pytorch-cifar, which ANP, AWM and BackdoorBench follow:
    ``conv1, bn1, layer1..4.<i>.{conv1, bn1, conv2, bn2, shortcut.0, shortcut.1}, linear``. Keys of
    ``resnet_20`` as in akamaster/pytorch_resnet_cifar10: the same, three layers, shortcuts without weights.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F


class PadShortcut(nn.Module):
    """The paper's option A: take every ``stride``-th pixel and pad with channels of zeros on both sides."""

    def __init__(self, extra_channels: int, stride: int):
        super().__init__()
        self.pad, self.stride = extra_channels // 2, stride

    def forward(self, features: Tensor) -> Tensor:
        """Return the thinned features with ``extra_channels`` more channels."""
        return F.pad(features[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))


def _shortcut(in_channels: int, width: int, stride: int, projection: bool) -> nn.Module:
    if stride == 1 and in_channels == width:
        return nn.Sequential()
    if not projection:
        return PadShortcut(width - in_channels, stride)
    return nn.Sequential(nn.Conv2d(in_channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))


class BasicBlock(nn.Module):
    """Convolution, BatchNorm, ReLU, convolution, BatchNorm, plus the shortcut, then ReLU."""

    def __init__(self, in_channels: int, width: int, stride: int, projection: bool):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut = _shortcut(in_channels, width, stride, projection)

    def forward(self, features: Tensor) -> Tensor:
        """Return the features of the block."""
        hidden = F.relu(self.bn1(self.conv1(features)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(features))


class ResNet(nn.Module):
    """A 3×3 stem and one layer of blocks a width; every layer but the first halves height and width."""

    def __init__(
        self, num_classes: int, in_channels: int, widths: Sequence[int], num_blocks: int, projection: bool
    ):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.num_layers, previous = len(widths), widths[0]
        for number, width in enumerate(widths, start=1):
            blocks = [BasicBlock(previous, width, 1 if number == 1 else 2, projection)]
            blocks += [BasicBlock(width, width, 1, projection) for _ in range(num_blocks - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            previous = width
        self.linear = nn.Linear(previous, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, C, H, W) -> (N, num_classes)."""
        features = F.relu(self.bn1(self.conv1(images)))
        for number in range(1, self.num_layers + 1):
            features = self.get_submodule(f"layer{number}")(features)
        return self.linear(features.mean((2, 3)))


def resnet_18(num_classes: int, in_channels: int = 3, input_size: int = 32) -> ResNet:
    """Build ResNet-18 (11.2 million parameters); pooling is global, so ``input_size`` changes no weight."""
    return ResNet(num_classes, in_channels, (64, 128, 256, 512), num_blocks=2, projection=True)


def resnet_20(num_classes: int, in_channels: int = 3, input_size: int = 32) -> ResNet:
    """Build ResNet-20 (0.27 million parameters); pooling is global, so ``input_size`` changes no weight."""
    return ResNet(num_classes, in_channels, (16, 32, 64), num_blocks=3, projection=False)
