"""A victim on disk: the checkpoint, the tensors of its trigger, and one JSON record that says it all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unbackdoor._errors import UnbackdoorError, unknown_name
from unbackdoor._evaluate import Metrics, accuracy, evaluate
from unbackdoor._files import write_json, writing
from unbackdoor._provenance import environment
from unbackdoor.attacks import get_trigger
from unbackdoor.attacks._base import Trigger
from unbackdoor.attacks._labels import AllToAll, AllToOne, LabelMap, SourceSpecific
from unbackdoor.attacks._train import TrainedVictim
from unbackdoor.checkpoint import load_into, load_state, resolve_arch
from unbackdoor.checkpoint._read import ORDER
from unbackdoor.data import TestSplit, TrainSplit

FORMAT = 1
"""Version of the record's layout; a reader refuses newer ones."""

LABEL_MAPS: dict[str, type[LabelMap]] = {cls.name: cls for cls in (AllToOne, AllToAll, SourceSpecific)}
SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What ``resolve_arch`` needs to make a network again; ``name`` is its specification."""

    name: str
    num_classes: int
    in_channels: int
    input_size: int

    @classmethod
    def for_split(cls, name: str, split: TrainSplit) -> Architecture:
        """Return the network ``name`` for the images of ``split``.

        Raises:
            UnbackdoorError: the images are not square.
        """
        height, width, channels = split.images.shape[1:]
        if height != width:
            raise UnbackdoorError(
                "the networks of the zoo take square images", value=f"{height}x{width}", fix="--resize 32"
            )
        return cls(name=name, num_classes=split.num_classes, in_channels=channels, input_size=height)

    def build(self, seed: int | None = None) -> nn.Module:
        """Build the network; with a ``seed`` its fresh weights follow from it and nothing else."""
        with torch.random.fork_rng():
            if seed is not None:
                torch.manual_seed(seed)
            return resolve_arch(
                self.name,
                num_classes=self.num_classes,
                in_channels=self.in_channels,
                input_size=self.input_size,
            )


@dataclass(frozen=True, eq=False)
class SavedVictim:
    """A victim read back.

    Attributes:
        model: in eval mode, on the CPU.
        trigger, label_map: of its attack; ``None`` for a clean model.
        record: the JSON record.
    """

    model: nn.Module
    trigger: Trigger | None
    label_map: LabelMap | None
    record: dict[str, Any]


def record_path(checkpoint: str | os.PathLike[str]) -> Path:
    """Return where the record of a checkpoint lies.

    >>> record_path("zoo/blend.safetensors").as_posix()
    'zoo/blend.json'
    """
    return Path(checkpoint).with_suffix(".json")


def measure(victim: TrainedVictim, test: TestSplit) -> dict[str, Any]:
    """Return the metrics of a victim on the whole test split; ACC alone for a clean model."""
    images = torch.from_numpy(test.images).permute(0, 3, 1, 2)
    labels = torch.from_numpy(test.labels)
    if victim.poisoning is None:
        return {"acc": accuracy(victim.model, images, labels), "num_images": len(labels)}
    poisoning = victim.poisoning
    metrics: Metrics = evaluate(victim.model, images, labels, poisoning.trigger, poisoning.label_map)
    return metrics.to_dict()


def save_victim(
    path: str | os.PathLike[str],
    victim: TrainedVictim,
    architecture: Architecture,
    train: TrainSplit,
    test: TestSplit,
    data: str,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Measure a victim and write checkpoint, trigger tensors and record side by side; return the record.

    Args:
        path: checkpoint, ``.safetensors`` or ``.pth``; the record gets the same name with ``.json``, the
            trigger's tensors, if it has any, with ``.trigger.safetensors``.
        victim: what ``train_victim`` returned.
        architecture: how ``victim.model`` was built.
        train, test: the splits it was trained on and is measured on.
        data: name of the data set, for the record.
        extra: further entries of the record, plain values.

    Raises:
        UnbackdoorError: another suffix, or a file that cannot be written.
    """
    path = check_suffix(path)
    device = next(victim.model.parameters()).device
    figures = measure(victim, test)
    write_state(path, victim.model.state_dict())
    record = {
        "format": FORMAT,
        "kind": "victim",
        "name": path.stem,
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "architecture": dict(vars(architecture)),
        "data": {
            "name": data,
            "num_train": len(train),
            "num_test": len(test),
            "train_sha256": train.content_hash(),
            "test_sha256": test.content_hash(),
        },
        "attack": _attack(victim, path),
        "recipe": victim.recipe.fields(),
        "mixed_precision": victim.mixed_precision,
        "seed": victim.seed,
        "metrics": figures,
        "losses": list(victim.losses),
        "seconds": round(victim.seconds, 1),
        **(extra or {}),
        **environment(device),
    }
    write_json(record_path(path), record)
    return record


def check_suffix(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` if its suffix names a kind of checkpoint that can be written."""
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise UnbackdoorError(
            "a victim's checkpoint ends in .safetensors or .pth",
            value=path.name,
            fix=f"{path.stem}.safetensors",
        )
    return path


def write_state(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict, by its suffix as safetensors or with ``torch.save``, atomically."""
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    with writing(path) as part:
        if path.suffix == ".safetensors":
            save_file(state, part, metadata={ORDER: json.dumps(list(state))})
        else:
            torch.save(state, part)


def read_victim_record(checkpoint: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the record beside a checkpoint (or the record itself, by its own path).

    Raises:
        UnbackdoorError: no record there, or one of a layout that this version does not know.
    """
    path = record_path(checkpoint)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnbackdoorError(
            f"the victim's record cannot be read: {error}", value=path, fix="make it again: unbackdoor attack"
        ) from error
    if not isinstance(record, dict) or record.get("kind") != "victim" or record.get("format") != FORMAT:
        raise UnbackdoorError(
            "not the record of a victim, or one of another version", value=path, fix="unbackdoor attack"
        )
    return record


def load_victim(checkpoint: str | os.PathLike[str]) -> SavedVictim:
    """Load a victim that ``save_victim`` wrote: network, trigger and label map, checked by its hash.

    Raises:
        UnbackdoorError: a file is missing, is another one than the record names, or does not fit.
    """
    path = Path(checkpoint)
    record = read_victim_record(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "no file"
    if digest != record["sha256"]:
        raise UnbackdoorError(
            f"the checkpoint is not the one of its record (SHA-256 {record['sha256'][:12]}…)",
            value=f"{path}: {digest[:12]}",
            fix="make both again: unbackdoor attack",
        )
    model = Architecture(**record["architecture"]).build()
    load_into(model, load_state(path))
    trigger, label_map = load_attack(record, path.parent)
    return SavedVictim(model.eval(), trigger, label_map, record)


def load_attack(record: Mapping[str, Any], folder: Path) -> tuple[Trigger | None, LabelMap | None]:
    """Return the trigger, with its tensors from ``folder``, and the label map that a record names."""
    attack = record["attack"]
    if attack is None:
        return None, None
    fields = {key: tuple(v) if isinstance(v, list) else v for key, v in attack["fields"].items()}
    trigger = get_trigger(attack["name"], **fields)
    if attack["trigger_file"] is not None:
        trigger = trigger.with_state(load_file(folder / attack["trigger_file"]))
    labels = attack["label_map"]
    if labels["name"] not in LABEL_MAPS:
        raise unknown_name("label map", labels["name"], list(LABEL_MAPS))
    return trigger, LABEL_MAPS[labels["name"]](**labels["fields"])


def _attack(victim: TrainedVictim, path: Path) -> dict[str, Any] | None:
    """Return the attack's part of the record, after its trigger's tensors are written."""
    if victim.poisoning is None:
        return None
    state = victim.poisoning.trigger.state()
    file = path.with_name(f"{path.stem}.trigger.safetensors") if state else None
    if file is not None:
        write_state(file, state)
    return {
        **victim.poisoning.spec(),
        "num_poisoned": victim.num_poisoned,
        "num_covers": victim.num_covers,
        "trigger_file": None if file is None else file.name,
    }
