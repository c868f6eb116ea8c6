"""WideResNet-16-1, the network of NAD and ARGD.

References:
    Zagoruyko, Komodakis, "Wide Residual Networks", BMVC 2016, arXiv:1605.07146. State-dict keys as in the
    checkpoints of ARGD (Xia et al., "Eliminating Backdoor Triggers for Deep Neural Networks Using Attention
    Relation Graph Distillation", IJCAI 2022, arXiv:2204.09975): ``conv1``, ``block1..3.layer.<i>``, ``bn1``,
    ``fc``.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class PreActBlock(nn.Module):
    """BatchNorm, ReLU, convolution, twice; a 1×1 shortcut on the activated input where the width changes."""

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        changes = in_channels != width
        self.convShortcut = nn.Conv2d(in_channels, width, 1, stride, bias=False) if changes else None

    def forward(self, images: Tensor) -> Tensor:
        """Return the features, with the shortcut added."""
        active = F.relu(self.bn1(images))
        shortcut = images if self.convShortcut is None else self.convShortcut(active)
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + shortcut


class Stage(nn.Module):
    """Blocks of one width; the first carries the stride. They lie in ``layer``, as the checkpoints say."""

    def __init__(self, num_blocks: int, in_channels: int, width: int, stride: int):
        super().__init__()
        first = PreActBlock(in_channels, width, stride)
        self.layer = nn.Sequential(first, *(PreActBlock(width, width, 1) for _ in range(num_blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of the last block."""
        return self.layer(images)


class WideResNet(nn.Module):
    """Pre-activation network of three stages, 16k, 32k and 64k channels wide for a factor k."""

    def __init__(self, num_classes: int, in_channels: int = 3, *, depth: int = 16, factor: int = 1):
        super().__init__()
        num_blocks = (depth - 4) // 6
        widths = (16 * factor, 32 * factor, 64 * factor)
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = Stage(num_blocks, 16, widths[0], 1)
        self.block2 = Stage(num_blocks, widths[0], widths[1], 2)
        self.block3 = Stage(num_blocks, widths[1], widths[2], 2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, C, H, W) -> (N, num_classes)."""
        features = self.block3(self.block2(self.block1(self.conv1(images))))
        return self.fc(F.relu(self.bn1(features)).mean((2, 3)))


def wrn_16_1(num_classes: int, in_channels: int = 3, input_size: int = 32) -> WideResNet:
    """Build WideResNet-16-1; pooling is global, so ``input_size`` changes no weight."""
    return WideResNet(num_classes, in_channels, depth=16, factor=1)
