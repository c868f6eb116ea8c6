"""A victim on disk: the checkpoint, the tensors of its trigger, and one JSON record that says it all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from unbackdoor._errors import UnbackdoorError
from unbackdoor._evaluate import Metrics, accuracy, evaluate
from unbackdoor._files import write_json, writing
from unbackdoor._provenance import environment
from unbackdoor.attacks._train import TrainedVictim
from unbackdoor.checkpoint._read import ORDER
from unbackdoor.data import TestSplit, TrainSplit
from unbackdoor.victims._architecture import Architecture

FORMAT = 1
"""Version of the record's layout; a reader refuses newer ones."""

SUFFIXES = (".safetensors", ".pth", ".pt")


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
