"""ShuffleNetV2 at widths 0.5 and 1, with the CIFAR stem.

References:
    Ma, Zhang, Zheng, Sun, "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV
    2018, arXiv:1807.11164. State-dict keys as in kuangliu/pytorch-cifar, which AWM follows: ``conv1, bn1,
    layer1..3.<i>.{conv1..5, bn1..5}, conv2, bn2, linear``.
    Those, and so this, differ from the paper: a stem of stride 1 without pooling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_BLOCKS = (3, 7, 3)
STEM_WIDTH, HEAD_WIDTH = 24, 1024


def _pointwise(in_channels: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, width, 1, bias=False)


def _depthwise(width: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(width, width, 3, stride, padding=1, groups=width, bias=False)


def _shuffle(first: Tensor, second: Tensor) -> Tensor:
    """Return the channels of two halves taken in turn: (N, C/2, H, W) twice -> (N, C, H, W)."""
    return torch.stack((first, second), dim=2).flatten(1, 2)


class KeepBlock(nn.Module):
    """Half of the channels pass, the other half is convolved."""

    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = _pointwise(half, half), nn.BatchNorm2d(half)
        self.conv2, self.bn2 = _depthwise(half, 1), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = _pointwise(half, half), nn.BatchNorm2d(half)

    def forward(self, features: Tensor) -> Tensor:
        """Return the features of the block, channels shuffled."""
        passed, hidden = features.chunk(2, dim=1)
        hidden = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(hidden)))))
        return _shuffle(passed, F.relu(self.bn3(self.conv3(hidden))))


class DownBlock(nn.Module):
    """Two convolved branches, both of stride 2; each gives half of the channels."""

    def __init__(self, in_channels: int, width: int):
        super().__init__()
        half = width // 2
        self.conv1, self.bn1 = _depthwise(in_channels, 2), nn.BatchNorm2d(in_channels)
        self.conv2, self.bn2 = _pointwise(in_channels, half), nn.BatchNorm2d(half)
        self.conv3, self.bn3 = _pointwise(in_channels, half), nn.BatchNorm2d(half)
        self.conv4, self.bn4 = _depthwise(half, 2), nn.BatchNorm2d(half)
        self.conv5, self.bn5 = _pointwise(half, half), nn.BatchNorm2d(half)

    def forward(self, features: Tensor) -> Tensor:
        """Return the features of the block, channels shuffled."""
        left = F.relu(self.bn2(self.conv2(self.bn1(self.conv1(features)))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(features)))))
        return _shuffle(left, F.relu(self.bn5(self.conv5(right))))


class ShuffleNetV2(nn.Module):
    """Three stages of one down block and several keep blocks."""

    def __init__(self, num_classes: int, in_channels: int, widths: tuple[int, int, int]):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, STEM_WIDTH, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        previous = (STEM_WIDTH, *widths)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(DownBlock(before, width), *(KeepBlock(width) for _ in range(count)))
            for before, width, count in zip(previous, widths, NUM_BLOCKS, strict=False)
        )
        self.conv2 = _pointwise(widths[-1], HEAD_WIDTH)
        self.bn2 = nn.BatchNorm2d(HEAD_WIDTH)
        self.linear = nn.Linear(HEAD_WIDTH, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, C, H, W) -> (N, num_classes)."""
        features = self.layer1(F.relu(self.bn1(self.conv1(images))))
        features = self.layer3(self.layer2(features))
        return self.linear(F.relu(self.bn2(self.conv2(features))).mean((2, 3)))


def shufflenet_v2_x0_5(num_classes: int, in_channels: int = 3, input_size: int = 32) -> ShuffleNetV2:
    """Build ShuffleNetV2 0.5× (0.35 million parameters); ``input_size`` changes no weight."""
    return ShuffleNetV2(num_classes, in_channels, (48, 96, 192))


def shufflenet_v2_x1_0(num_classes: int, in_channels: int = 3, input_size: int = 32) -> ShuffleNetV2:
    """Build ShuffleNetV2 1× (1.3 million parameters); ``input_size`` changes no weight."""
    return ShuffleNetV2(num_classes, in_channels, (116, 232, 464))
