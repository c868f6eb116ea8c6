"""VGG-19 with BatchNorm and one linear layer, as the CIFAR literature has it.

References:
    Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015,
    arXiv:1409.1556. State-dict keys as in kuangliu/pytorch-cifar, ANP and AWM: ``features.<i>`` with the
    pooling layers counted, and one ``classifier`` (torchvision's three, which BackdoorBench uses, do not
    load). Pooling rounds up, which changes nothing at 32 or 64 pixels and lets 28 pixels through.
"""

from __future__ import annotations

from torch import Tensor, nn

STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))


class VGG19BN(nn.Module):
    """Sixteen convolutions in five stages, each stage ended by 2×2 pooling; 20 million parameters."""

    def __init__(self, num_classes: int, in_channels: int = 3, input_size: int = 32):
        super().__init__()
        layers: list[nn.Module] = []
        for width, count in STAGES:
            for _ in range(count):
                layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                in_channels = width
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
        self.features = nn.Sequential(*layers)
        side = -(-input_size // 2 ** len(STAGES))
        self.classifier = nn.Linear(in_channels * side**2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, C, H, W) -> (N, num_classes)."""
        return self.classifier(self.features(images).flatten(1))
