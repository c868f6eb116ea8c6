"""Open what a command works on: the images, the network with its weights, the device."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from unbackdoor._errors import UnbackdoorError
from unbackdoor._files import check_writable
from unbackdoor._normalize import Normalize
from unbackdoor.attacks._labels import AllToAll, AllToOne, LabelMap
from unbackdoor.checkpoint import Loaded, load_into, load_state, resolve_arch
from unbackdoor.data import LabelledImages, TrainSplit


@dataclass(frozen=True)
class OpenNetwork:
    """A network with its weights.

    Attributes:
        model: takes images in [0, 1]; with a ``Normalize`` before it when one was asked for.
        loaded: the checkpoint it came from.
        wrapped: whether the network proper is ``model[1]``.
    """

    model: nn.Module
    loaded: Loaded
    wrapped: bool

    def unwrap(self, model: nn.Module) -> nn.Module:
        """Return the network proper of ``model`` or of its purified copy."""
        return model[1] if self.wrapped else model  # type: ignore[index]

    def record(self) -> dict[str, Any]:
        """Return where the weights came from, as plain values."""
        digest = hashlib.sha256(self.loaded.path.read_bytes()).hexdigest()
        found = {"key": "/".join(self.loaded.key), "prefix": self.loaded.prefix, "format": self.loaded.format}
        return {"path": str(self.loaded.path), "sha256": digest, **found}


def open_network(
    checkpoint: Path,
    arch: str,
    images: LabelledImages,
    *,
    classes: int | None,
    key: str | None,
    mean: list[float] | None,
    std: list[float] | None,
    device: str,
) -> OpenNetwork:
    """Build the network for these images and load the checkpoint into it."""
    _check_classes(images, classes)
    _check_normalisation(images, mean, std)
    where = pick_device(device)
    loaded = load_state(checkpoint, key)
    size, channels = images.images.shape[1], images.images.shape[3]
    num_classes = classes or images.num_classes
    network = resolve_arch(arch, num_classes=num_classes, in_channels=channels, input_size=size)
    loaded = load_into(network, loaded)
    model = network if mean is None or std is None else Normalize(mean, std).wrap(network)
    return OpenNetwork(model.to(where).eval(), loaded, mean is not None)


def check_targets(checkpoint: Path, out: Path, json: Path | None) -> Path:
    """Return ``out`` when the outputs can be written and overwrite neither the input nor each other."""
    targets = [out] if json is None else [out, json]
    for target in targets:
        check_writable(target)
    if len({target.resolve() for target in (checkpoint, *targets)}) <= len(targets):
        raise UnbackdoorError(
            "an output would overwrite the input or the other output",
            value=", ".join(map(str, (checkpoint, *targets))),
            fix="give each of --out and --json a name of its own",
        )
    return out


def images_record(path: Path, used: LabelledImages, per_class: int | None) -> dict[str, Any]:
    """Return which images were used, as plain values."""
    facts = {"per_class": per_class, "num_images": len(used), "classes": list(used.classes)}
    return {"path": str(path), "sha256": used.content_hash(), **facts}


def draw(images: LabelledImages, per_class: int | None, seed: int) -> TrainSplit:
    """Return ``per_class`` images of every class, or all images; no class may be empty."""
    split = TrainSplit(images.images, images.labels, images.classes)
    if per_class is not None:
        return split.draw(per_class, seed)
    counts = np.bincount(split.labels, minlength=split.num_classes)
    if (counts == 0).any():
        empty = int(counts.argmin())
        raise UnbackdoorError(
            f"class {empty} ({split.classes[empty]}) has no image",
            value="0 images",
            fix="add images of it, or remove its folder",
        )
    return split


def label_map(target: int | None, all_to_all: bool, num_classes: int) -> LabelMap:
    """Return the attacker's label map; exactly one of the two must be asked for."""
    if (target is None) == (not all_to_all):
        raise UnbackdoorError(
            "say which label the attacker wants",
            value=f"--target {target}, --all-to-all {all_to_all}",
            fix="give one of --target N and --all-to-all",
        )
    if target is None:
        return AllToAll(num_classes=num_classes)
    if target >= num_classes:
        raise UnbackdoorError(
            f"the target must lie in [0, {num_classes}), the classes", value=target, fix="labels start at 0"
        )
    return AllToOne(target=target)


def pick_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        said = str(error).splitlines()[0]
        raise UnbackdoorError(
            f"cannot use this device: {said}", value=name, fix="--device cpu, or auto"
        ) from error
    return device


def _check_classes(images: LabelledImages, classes: int | None) -> None:
    if classes is not None and classes < images.num_classes:
        raise UnbackdoorError(
            f"the images have more classes than the network has outputs (--classes {classes})",
            value=f"{images.num_classes} classes, the last ones {', '.join(images.classes[classes:][:5])}",
            fix=f"--classes {images.num_classes}, or remove the classes that the network does not know",
        )


def _check_normalisation(images: LabelledImages, mean: list[float] | None, std: list[float] | None) -> None:
    channels = images.images.shape[3]
    given = [values for values in (mean, std) if values is not None]
    if len(given) == 1 or any(len(values) not in (channels,) for values in given):
        raise UnbackdoorError(
            "--mean and --std go together, one value a channel",
            value=f"mean {mean}, std {std}, images of {channels} channels",
            fix="--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5",
        )
