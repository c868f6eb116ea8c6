"""Forward passes in step: all of them halt where a layer is entered, and go on once it may have been changed.

A layer is solved from what all images send into it, and the next one from what they send on through the
solved one. Runs from the images up for each layer would spend most of their time in the same early layers. A
pass that is halted keeps only what it needs to go on, so that many together take less memory than one pass of
all images, whose early layers are the largest.

Each pass has a thread of its own, as nothing else can be halted inside a module that is anybody's. They take
turns in a fixed order: never do two run at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor._errors import UnbackdoorError


def in_step(
    model: nn.Module,
    layers: Sequence[str],
    batches: Sequence[Tensor],
    within: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[list[Tensor]]:
    """Yield, layer after layer, what each batch sends into it; then the layers' weights may be changed.

    Without gradients. Close the iterator where it is not run to its end (``contextlib.closing``): hooks and
    halted passes go then, as they do after the last layer and after an error of the model.

    Args:
        model: in eval mode; layers: names in ``named_modules``, each run once a pass, in this order.
        batches: images (N, C, H, W), which enter every layer in the order given.
        within: entered on the model for as long as it runs: what is done to its layers' inputs is seen here.

    Raises:
        UnbackdoorError: a batch runs the layers in another order, or not all of them.
    """
    passes = [_Pass(model, batch) for batch in batches]
    handles = []
    try:
        with within(model):
            for name in layers:
                halt = partial(_halt, passes, name)
                handles.append(model.get_submodule(name).register_forward_pre_hook(halt))
            for name in layers:
                yield [one.up_to(name) for one in passes]
    finally:
        for one in passes:
            one.give_up()
        for handle in handles:
            handle.remove()


def _halt(passes: list[_Pass], name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """Halt the pass that runs, if it is one of these: others of the same model go their way."""
    one = threading.current_thread()
    if one in passes:
        one.halt(name, inputs[0])


class _GivenUp(BaseException):
    """Ends a halted pass; no ``Exception``, which a model might catch."""


class _Pass(threading.Thread):
    """A forward pass that runs only between a call of ``up_to`` and its return."""

    def __init__(self, model: nn.Module, images: Tensor):
        super().__init__(daemon=True)
        self.model, self.images = model, images
        self.go_on, self.halted = threading.Semaphore(0), threading.Semaphore(0)
        self.given_up = False
        self.seen: tuple[str, Tensor] | None = None
        self.error: BaseException | None = None

    def up_to(self, name: str) -> Tensor:
        """Run until the layer is entered and return its input."""
        self.go_on.release()
        if self.ident is None:
            self.start()
        self.halted.acquire()
        if self.error is not None:
            raise self.error
        if self.seen is None or self.seen[0] != name:
            raise UnbackdoorError(
                f"the model does not run {name} where it did for the first image",
                value=self.seen and self.seen[0],
                fix="give a model that runs the same layers, in the same order, for all images",
            )
        return self.seen[1]

    def halt(self, name: str, inputs: Tensor) -> None:
        """Wait, in the pass's own thread, until it is to go on."""
        self.seen = (name, inputs)
        self.halted.release()
        self.go_on.acquire()
        self.seen = None
        if self.given_up:
            raise _GivenUp

    def run(self) -> None:
        self.go_on.acquire()
        try:
            # Both are a thread's own: gradients are on in a new one, and its device is the first.
            with torch.no_grad(), torch.cuda.device_of(self.images):
                self.model(self.images)
        except _GivenUp:
            pass
        except BaseException as error:  # noqa: BLE001 - raised again where the pass is waited for
            self.error = error
        finally:
            self.halted.release()

    def give_up(self) -> None:
        """End the pass where it is."""
        self.given_up = True
        if self.ident is not None:
            self.go_on.release()
            self.join()
