"""What a method is: a frozen dataclass of hyper-parameters with one ``run``."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import nn

from unbackdoor._clean import CleanImages


@dataclass(frozen=True)
class Progress:
    """One tick of a running method: ``step`` of ``total`` in ``phase``, with the current figures."""

    phase: str
    step: int
    total: int
    values: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Session:
    """What a method may draw on while it runs: the only source of randomness, and where to tell of progress.

    ``purify`` also forks and seeds torch's global generators around ``run``, so that layers which draw
    from them (dropout) are reproducible and the caller's random state is left alone.
    """

    generator: torch.Generator
    progress: Callable[[Progress], None] | None = None

    def tell(self, phase: str, step: int, total: int, **values: float) -> None:
        """Report progress, if anybody listens."""
        if self.progress is not None:
            self.progress(Progress(phase, step, total, values))


@dataclass(frozen=True, kw_only=True)
class Method(abc.ABC):
    """A purification method. Subclasses are frozen keyword-only dataclasses in a file of their own.

    ``run`` gets a private copy of the model and changes it in place; its signature has no room for a
    trigger, a target label or test images. It returns plain values (JSON) for the report.
    """

    name: ClassVar[str]

    @abc.abstractmethod
    def run(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        """Purify ``model`` in place.

        Args:
            model: a private copy, on the device of ``clean.images``, in the caller's train/eval mode; the
                modes and ``requires_grad`` flags are put back by ``purify``. Parameters and buffers keep
                their names, order, shapes and types.
            clean: the defender's images.
            session: generator and progress.

        Returns:
            What was done, JSON-able; it becomes ``Report.details``.
        """

    def fields(self) -> dict[str, Any]:
        """Return the hyper-parameters as plain values, for records."""
        return dataclasses.asdict(self)
