"""FTrojan: two frequencies added to the colour channels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unbackdoor._dct import dct_basis
from unbackdoor.attacks._base import Trigger
from unbackdoor.attacks._patterns import check_range

YUV_TO_RGB = ((0.0, 1.140), (-0.395, -0.581), (2.032, 0.0))
"""BT.601: what U and V (columns) add to R, G, B (rows)."""


@dataclass(frozen=True, kw_only=True)
class FTrojan(Trigger):
    """Add ``magnitude`` to chosen DCT coefficients of U and V in every block of the image.

    The transform is linear, so this adds one fixed pattern to U and V, computed once from the inverse DCT of
    the chosen coefficients; it is then turned to RGB. A grey image has the luma channel only and gets it
    there.

    Attributes:
        magnitude: in 8-bit units of a coefficient of the orthonormal DCT, ≥ 0 (30 for small images in the
            paper, 50 for large ones).
        window: side of a block in pixels. Along an axis that is no multiple of it the block is the whole
            axis, with the positions moved to the same share of it.
        positions: (row, column) frequencies in a block: one middle, one high.

    References:
        Wang, Yao, Xu, An, Tong, Wang, An Invisible Black-box Backdoor Attack through Frequency Domain,
        ECCV 2022, arXiv 2111.10991.

    Differs from the authors' code: no rounding to 8-bit values on the way to YUV and back.
    """

    name: ClassVar[str] = "ftrojan"
    magnitude: float = 30.0
    window: int = 32
    positions: tuple[tuple[int, int], ...] = ((15, 15), (31, 31))

    def __post_init__(self) -> None:
        check_range("FTrojan", "magnitude", self.magnitude, 0, 255 * 1024)
        check_range("FTrojan", "window", self.window, 2, 4096)
        for position in self.positions:
            check_range("FTrojan", "positions", max(position), 0, self.window - 1)

    def apply(self, images: Tensor) -> Tensor:
        pattern = self._pattern(*images.shape[-2:]) / 255
        if images.shape[1] != 3:
            return (images + pattern.to(images)).clamp(0, 1)
        gains = torch.tensor(YUV_TO_RGB).sum(1)[:, None, None]
        return (images + (gains * pattern).to(images)).clamp(0, 1)

    def _pattern(self, height: int, width: int) -> Tensor:
        """Return what is added to a channel, (H, W), in 8-bit units."""
        sides = [self.window if size % self.window == 0 else size for size in (height, width)]
        coefficients = torch.zeros(sides[0], sides[1])
        for row, column in self.positions:
            coefficients[row * sides[0] // self.window, column * sides[1] // self.window] += self.magnitude
        block = dct_basis(sides[0]).T @ coefficients @ dct_basis(sides[1])
        return block.repeat(height // sides[0], width // sides[1])
