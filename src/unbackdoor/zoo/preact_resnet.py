"""PreAct-ResNet-18, the network of WaNet and of the BackdoorBench leaderboard.

References:
    He, Zhang, Ren, Sun, "Identity Mappings in Deep Residual Networks", ECCV 2016, arXiv:1603.05027.
    State-dict keys as in the BackdoorBench and WaNet checkpoints (and kuangliu/pytorch-cifar): ``conv1,
    layer1..4.<i>.{bn1, conv1, bn2, conv2, shortcut.0}, linear``.
    Those, and so this, differ from the paper: no BatchNorm and no ReLU before the pooling.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (64, 128, 256, 512)
NUM_BLOCKS = 2


class PreActBlock(nn.Module):
    """BatchNorm, ReLU, convolution, twice; a 1×1 shortcut on the activated input where the shape changes."""

    def __init__(self, in_channels: int, width: int, stride: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or in_channels != width:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, width, 1, stride, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        """Return the features of the block."""
        active = F.relu(self.bn1(features))
        shortcut = features if self.shortcut is None else self.shortcut(active)
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + shortcut


def _layer(in_channels: int, width: int, stride: int) -> nn.Sequential:
    rest = (PreActBlock(width, width, 1) for _ in range(NUM_BLOCKS - 1))
    return nn.Sequential(PreActBlock(in_channels, width, stride), *rest)


class PreActResNet18(nn.Module):
    """A 3×3 stem and four layers of two blocks; 11.2 million parameters."""

    def __init__(self, num_classes: int, in_channels: int = 3, input_size: int = 32):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, WIDTHS[0], 3, padding=1, bias=False)
        self.layer1 = _layer(WIDTHS[0], WIDTHS[0], 1)
        self.layer2 = _layer(WIDTHS[0], WIDTHS[1], 2)
        self.layer3 = _layer(WIDTHS[1], WIDTHS[2], 2)
        self.layer4 = _layer(WIDTHS[2], WIDTHS[3], 2)
        self.linear = nn.Linear(WIDTHS[3], num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, C, H, W) -> (N, num_classes)."""
        features = self.layer2(self.layer1(self.conv1(images)))
        return self.linear(self.layer4(self.layer3(features)).mean((2, 3)))
