"""A plain convolutional network without any normalisation layer.

No paper's network: it stands for the models on which methods that live on BatchNorm (CLP, NFT) have nothing
to hold on to. Keys: ``features.<i>`` with ReLU and pooling layers counted, ``classifier.{0, 3}``.
"""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = (32, 64, 128)
HIDDEN = 256


class PlainCNN(nn.Module):
    """Three stages of two 3×3 convolutions and 2×2 pooling, two linear layers; 0.8 million parameters."""

    def __init__(self, num_classes: int, in_channels: int = 3, input_size: int = 32):
        super().__init__()
        layers: list[nn.Module] = []
        for width in WIDTHS:
            layers += [nn.Conv2d(in_channels, width, 3, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            in_channels = width
        self.features = nn.Sequential(*layers)
        flat = in_channels * (input_size // 2 ** len(WIDTHS)) ** 2
        self.classifier = nn.Sequential(
            nn.Linear(flat, HIDDEN), nn.ReLU(), nn.Dropout(0.5), nn.Linear(HIDDEN, num_classes)
        )
        self.features.apply(_keep_variance)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (N, C, H, W) -> (N, num_classes)."""
        return self.classifier(self.features(images).flatten(1))


def _keep_variance(module: nn.Module) -> None:
    """Start convolutions from He's normal: without BatchNorm the default's signal fades with depth."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)
