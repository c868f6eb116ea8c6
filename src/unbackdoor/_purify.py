"""``purify``: check, copy, run the method on the copy, hand back a plain model."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unbackdoor._clean import CleanImages, collect
from unbackdoor._errors import UnbackdoorError
from unbackdoor._masks import maskable_weights
from unbackdoor._modes import evaluating, kept_modes
from unbackdoor._repeatable import repeatable
from unbackdoor._report import Report, compare, versions
from unbackdoor.methods import Method, Progress, Session, get_method


@dataclass(frozen=True)
class Purified:
    """A purified network and the record of how it was made.

    Attributes:
        model: plain ``nn.Module`` of the same class, device, modes and state-dict keys as the input.
        report: what was done.
    """

    model: nn.Module
    report: Report


@torch.inference_mode(False)
def purify(
    model: nn.Module,
    images: object,
    labels: object = None,
    *,
    method: Method | str | None = None,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Purified:
    """Return a copy of ``model`` without its backdoor, from a few clean images.

    Args:
        model: a classifier, (N, C, H, W) in [0, 1] -> logits (N, classes), with convolution or linear
            weights. It is never changed, also when an error is raised.
        images: float (N, C, H, W) in [0, 1]; one image a class is enough. Or a ``Dataset``/``DataLoader``
            of (image, label) pairs.
        labels: int (N,), in [0, classes); not given beside a data set.
        method: a ``unbackdoor.methods`` object, its name, or ``None`` for the default.
        seed: the same seed gives the same result on the same machine.
        progress: called with a ``Progress`` at every step.

    Returns:
        ``Purified(model, report)``.

    Raises:
        UnbackdoorError: unusable model, images, labels or method; says cause, value and fix.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    >>> result = purify(net, torch.rand(2, 1, 4, 4), torch.tensor([0, 1]), method="awm")
    >>> type(result.model).__name__, list(result.model.state_dict())
    ('Sequential', ['1.weight', '1.bias'])
    """
    method = get_method(method)
    check_model(model)
    work = _private_copy(model)
    with _seeded(seed, work):  # a DataLoader that shuffles draws from the global generator
        clean = collect(work, images, labels)
    before = accuracy_on(work, clean)
    start = time.perf_counter()
    with _seeded(seed, work), _kept_flags(work):
        generator = torch.Generator().manual_seed(seed)
        details = method.run(work, clean, Session(generator, progress))
    seconds = time.perf_counter() - start
    _check_result(model, work)
    layers = compare(model, work)
    report = Report(
        method=method.name,
        hyperparameters=method.fields(),
        seed=seed,
        seconds=seconds,
        num_images=len(clean),
        num_classes=clean.num_classes,
        accuracy_before=before,
        accuracy_after=accuracy_on(work, clean),
        changed=any(layer.changed for layer in layers),
        layers=layers,
        details=details,
        versions=versions(),
    )
    return Purified(work, report)


def check_model(model: nn.Module) -> None:
    """Refuse what cannot be purified: no module, no weights, tied weights, NaN or infinite values."""
    if not isinstance(model, nn.Module):
        raise UnbackdoorError(
            "model must be a torch.nn.Module",
            value=type(model).__name__,
            fix="build the network and load the state dict first: net.load_state_dict(state)",
        )
    maskable_weights(model)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise UnbackdoorError(
                f"the model has NaN or infinite values in {name!r}",
                value=f"{bad} of {tensor.numel()} values",
                fix="get an intact checkpoint; a network with such values computes nothing",
            )


def accuracy_on(model: nn.Module, clean: CleanImages) -> float:
    """Return the share of the clean images that get their label, in eval mode, modes kept."""
    with torch.no_grad(), evaluating(model):
        batches = zip(clean.images.split(256), clean.labels.split(256), strict=True)
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / len(clean)


def _private_copy(model: nn.Module) -> nn.Module:
    try:
        work = copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        raise UnbackdoorError(
            f"the model cannot be copied: {error}",
            value=type(model).__name__,
            fix="detach tensors kept on the module, or remove handles that cannot be deep-copied",
        ) from error
    work.zero_grad(set_to_none=True)
    return work


@contextmanager
def _kept_flags(model: nn.Module) -> Iterator[None]:
    grads = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        with kept_modes(model):
            yield
    finally:
        for parameter, flag in grads.items():
            parameter.requires_grad_(flag)
            parameter.grad = None


@contextmanager
def _seeded(seed: int, model: nn.Module) -> Iterator[None]:
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad(), repeatable(device):
        torch.manual_seed(seed)
        yield


def _check_result(before: nn.Module, after: nn.Module) -> None:
    """Hold a method to its contract: the same state dict, and finite."""
    old, new = before.state_dict(), after.state_dict()
    shapes = [[(name, t.shape, t.dtype) for name, t in state.items()] for state in (old, new)]
    if shapes[0] != shapes[1]:
        raise RuntimeError("the method changed the state dict's keys, order, shapes or types")
    for name, tensor in new.items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise RuntimeError(f"the method made NaN or infinite values in {name!r}; nothing is handed back")
