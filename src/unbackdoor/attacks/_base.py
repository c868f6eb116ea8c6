"""What a trigger is: images in, images out. Who is poisoned and to which label is said elsewhere."""

from __future__ import annotations

import abc
import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Trigger(abc.ABC):
    """A map from images to triggered images. Subclasses are frozen keyword-only dataclasses, one paper a file.

    Any randomness of a trigger (a pattern, a warp field) comes from its own ``seed`` field, so that the
    same trigger object always gives the same result.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def apply(self, images: Tensor) -> Tensor:
        """Return the triggered images.

        Args:
            images: float (N, C, H, W) in [0, 1]; not changed.

        Returns:
            A new tensor of the same shape, type and device, in [0, 1].
        """

    def __call__(self, images: Tensor) -> Tensor:
        return self.apply(images).clamp(0, 1)

    def fields(self) -> dict[str, Any]:
        """Return the parameters as plain values, for records."""
        return dataclasses.asdict(self)
