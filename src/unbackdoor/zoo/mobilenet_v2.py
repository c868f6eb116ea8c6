"""MobileNetV2 with the CIFAR strides.

References:
    Sandler, Howard, Zhu, Zhmoginov, Chen, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR
    2018, arXiv:1801.04381. State-dict keys as in kuangliu/pytorch-cifar, which ANP and AWM follow: ``conv1,
    bn1, layers.<i>.{conv1..3, bn1..3, shortcut.0, shortcut.1}, conv2, bn2, linear``.
    Those, and so this, differ from the paper: stem and second stage keep the resolution, ReLU in place of
    ReLU6, and a 1×1 shortcut where a block of stride 1 changes the width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Expansion, width, number of blocks and stride of the first block, a row a stage."""


class InvertedResidual(nn.Module):
    """Expand by 1×1, filter each channel by 3×3, project by 1×1; a shortcut where the stride is 1."""

    def __init__(self, in_channels: int, width: int, expansion: int, stride: int):
        super().__init__()
        hidden = expansion * in_channels
        self.conv1 = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, stride, padding=1, groups=hidden, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.shortcut = nn.Sequential()
        if stride == 1 and in_channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.residual = stride == 1

    def forward(self, features: Tensor) -> Tensor:
        """Return the features of the block."""
        hidden = F.relu(self.bn1(self.conv1(features)))
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(hidden)))))
        return out + self.shortcut(features) if self.residual else out


class MobileNetV2(nn.Module):
    """Seventeen inverted residuals; 2.3 million parameters."""

    def __init__(self, num_classes: int, in_channels: int = 3, input_size: int = 32):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        blocks, previous = [], 32
        for expansion, width, count, stride in STAGES:
            for index in range(count):
                blocks.append(InvertedResidual(previous, width, expansion, stride if index == 0 else 1))
                previous = width
        self.layers = nn.Sequential(*blocks)
        self.conv2 = nn.Conv2d(previous, 1280, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(1280)
        self.linear = nn.Linear(1280, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, C, H, W) -> (N, num_classes)."""
        features = self.layers(F.relu(self.bn1(self.conv1(images))))
        return self.linear(F.relu(self.bn2(self.conv2(features))).mean((2, 3)))
