"""The small VGG of I-BAU and AWM: six convolutions, BatchNorm, ELU, dropout.

References:
    Zeng, Chen, Park, Mao, Jin, Jia, "Adversarial Unlearning of Backdoors via Implicit Hypergradient", ICLR
    2022, arXiv:2110.03735. State-dict keys as in the checkpoints published with it: ``features.<i>`` with
    pooling and dropout layers counted, and ``classifier``.
"""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = (32, 64, 128)
DROPOUTS = (0.3, 0.4, 0.4)


def _stage(in_channels: int, width: int, dropout: float) -> list[nn.Module]:
    """Return two convolutions of ``width`` channels, 2×2 pooling and dropout."""
    layers: list[nn.Module] = []
    for channels in (in_channels, width):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ELU()]
    return [*layers, nn.MaxPool2d(2), nn.Dropout(dropout)]


class SmallVGG(nn.Module):
    """Three stages of 32, 64 and 128 channels and one linear layer; 0.3 million parameters."""

    def __init__(self, num_classes: int, in_channels: int = 3, input_size: int = 32):
        super().__init__()
        layers: list[nn.Module] = []
        for channels, width, dropout in zip((in_channels, *WIDTHS), WIDTHS, DROPOUTS, strict=False):
            layers += _stage(channels, width, dropout)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(WIDTHS[-1] * (input_size // 8) ** 2, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, C, H, W) -> (N, num_classes)."""
        return self.classifier(self.features(images).flatten(1))
