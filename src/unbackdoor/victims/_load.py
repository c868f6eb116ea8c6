"""A victim back from disk: record, network, trigger and label map."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from unbackdoor._errors import UnbackdoorError, unknown_name
from unbackdoor.attacks import get_trigger
from unbackdoor.attacks._base import Trigger
from unbackdoor.attacks._labels import AllToAll, AllToOne, LabelMap, SourceSpecific
from unbackdoor.checkpoint import load_into, load_state
from unbackdoor.victims._architecture import Architecture
from unbackdoor.victims._record import FORMAT, record_path

LABEL_MAPS: dict[str, type[LabelMap]] = {cls.name: cls for cls in (AllToOne, AllToAll, SourceSpecific)}


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


def read_attack(checkpoint: str | os.PathLike[str]) -> tuple[Trigger | None, LabelMap | None]:
    """Return the trigger and the label map of a victim that ``save_victim`` wrote, without its network.

    Raises:
        UnbackdoorError: no record there, or one of a layout that this version does not know.
    """
    return load_attack(read_victim_record(checkpoint), Path(checkpoint).parent)


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
