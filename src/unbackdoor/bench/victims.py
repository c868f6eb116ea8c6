"""From the plain values of a cell to its network, its data and its attack, all read from files."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor._errors import UnbackdoorError, unknown_name
from unbackdoor._evaluate import Metrics, accuracy, evaluate
from unbackdoor._modules import module_from_file
from unbackdoor.attacks import get_trigger
from unbackdoor.attacks._base import Trigger
from unbackdoor.attacks._labels import AllToAll, AllToOne, LabelMap, SourceSpecific
from unbackdoor.attacks.fixed import Additive, MaskPattern, Patch
from unbackdoor.bench.places import existing, locate
from unbackdoor.checkpoint import load_into, load_state, resolve_arch
from unbackdoor.data import TestSplit, TrainSplit

LABEL_MAPS: dict[str, type[LabelMap]] = {cls.name: cls for cls in (AllToOne, AllToAll, SourceSpecific)}
FROM_FILES: dict[str, type[Trigger]] = {cls.name: cls for cls in (Patch, Additive, MaskPattern)}
NUM_PROBES = 8
DEFAULT_LOADER = "unbackdoor.data:load"


@dataclass(frozen=True, eq=False)
class Data:
    """Both splits of a data set and their hashes.

    Attributes:
        train: what clean images are drawn from; ``test``: what is measured on.
        test_images: uint8 (N, C, H, W), ``test_labels``: int64 (N,): the test split as tensors.
        train_sha256, test_sha256: of pixels and labels.
    """

    train: TrainSplit
    test: TestSplit
    test_images: Tensor
    test_labels: Tensor
    train_sha256: str
    test_sha256: str


@dataclass(frozen=True, eq=False)
class Victim:
    """A network to purify and what is known of its attack (by the bench, never by a method).

    Attributes:
        model: in eval mode, on the CPU.
        data: what it was trained on.
        trigger, label_map: of the attack; ``None`` for a model that is only measured on clean images.
        arch: name or specification of the network.
        sha256: of the checkpoint file.
    """

    model: nn.Module
    data: Data
    trigger: Trigger | None
    label_map: LabelMap | None
    arch: str
    sha256: str

    def facts(self) -> dict[str, Any]:
        """Return what records and tables tell of a victim; the trigger's hash is of some triggered images."""
        facts = {"sha256": self.sha256, "arch": self.arch, "attack": None}
        if self.trigger is None:
            return facts
        triggered = self.trigger(self.data.test_images[:NUM_PROBES].float() / 255)
        pixels = (triggered * 255).round().to(torch.uint8).contiguous().numpy()
        return {**facts, "attack": self.trigger.name, "trigger_sha256": hashlib.sha256(pixels).hexdigest()}

    def measure(self, model: nn.Module) -> Metrics | None:
        """Return the metrics of ``model`` on the whole test split; ``None`` without a trigger."""
        if self.trigger is None or self.label_map is None:
            return None
        images, labels = self.data.test_images, self.data.test_labels
        return evaluate(model, images, labels, self.trigger, self.label_map, _batch_size(model))

    def figures(self, model: nn.Module) -> dict[str, float | None]:
        """Return the metrics as plain values; ACC alone without a trigger."""
        metrics = self.measure(model)
        if metrics is not None:
            return dict(metrics.to_dict())
        acc = accuracy(model, self.data.test_images, self.data.test_labels, _batch_size(model))
        return {"acc": acc, "asr": None, "ra": None, "num_images": len(self.data.test_labels)}


def load_victim(entry: Mapping[str, Any], root: str | Path) -> Victim:
    """Load what a victim's entry names; without ``arch``, what the record beside the checkpoint says.

    With ``attack_of``, the attack is that of another saved victim: what its trigger does to this network.

    Raises:
        UnbackdoorError: a file is absent, is not the one that the entry's ``sha256`` names, or does not fit.
    """
    path = existing(locate(entry["checkpoint"], root), f"the checkpoint of {entry['name']}")
    sha256 = file_hash(path)
    if not sha256.startswith(entry.get("sha256", "")):
        raise UnbackdoorError(
            f"the checkpoint of {entry['name']} is another file than the grid names",
            value=f"SHA-256 {sha256}",
            fix=f"get the file with SHA-256 {entry['sha256']}…, or correct the entry",
        )
    data = load_data(entry["data"], root)
    if "arch" in entry:
        model, name = _architecture(entry["arch"], data, root), entry["arch"]
        load_into(model, load_state(path, entry.get("key")))
        attack = load_attack(entry, data.train.num_classes, root)
    else:
        from unbackdoor.victims import load_victim as load_saved  # imports bench.places, so not at the top

        saved = load_saved(path)
        model, name = saved.model, saved.record["architecture"]["name"]
        attack = saved.trigger, saved.label_map
    if "attack_of" in entry:
        attack = _attack_of(locate(entry["attack_of"], root))
    return Victim(model.eval(), data, *attack, name, sha256)


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load_data(entry: Mapping[str, Any], root: str | Path) -> Data:
    """Load a data set by its table: ``loader`` (``module:function`` or ``file.py:function``) and ``args``.

    The loader returns (``TrainSplit``, ``TestSplit``). A process keeps the last two that it loaded.
    """
    return _load_data(json.dumps(dict(entry), sort_keys=True), str(root))


def load_attack(
    entry: Mapping[str, Any], num_classes: int, root: str | Path
) -> tuple[Trigger | None, LabelMap | None]:
    """Return the trigger and the label map of a victim's entry; paths in the trigger's fields are located."""
    if entry.get("trigger") is None:
        return None, None
    fields = {key: _located(value, root) for key, value in entry["trigger"].items()}
    labels = dict(entry.get("labels") or {})
    name = labels.pop("name", AllToOne.name)
    if name not in LABEL_MAPS:
        raise unknown_name("label map", name, list(LABEL_MAPS))
    if name == AllToAll.name:
        labels.setdefault("num_classes", num_classes)
    return _trigger(**fields), LABEL_MAPS[name](**labels)


def missing_file(entry: Mapping[str, Any], root: str | Path) -> str | None:
    """Return why a victim cannot be run here, or ``None``: a checkpoint or data that are not there."""
    named = [entry["checkpoint"], entry["data"].get("needs", "."), entry.get("attack_of", ".")]
    absent = [path for path in (locate(text, root) for text in named) if not path.exists()]
    return f"{absent[0]} is not there" if absent else None


def _attack_of(checkpoint: Path) -> tuple[Trigger | None, LabelMap | None]:
    """Return the trigger and the label map that the record beside a checkpoint tells of."""
    from unbackdoor.victims import read_attack  # imports bench.places, so not at the top

    return read_attack(checkpoint)


def _batch_size(model: nn.Module) -> int:
    """Return a fast batch size: on CPU one whose activations the allocator reuses and does not map anew."""
    return 100 if next(model.parameters()).device.type == "cpu" else 1000


def _trigger(name: str, **fields: Any) -> Trigger:
    return FROM_FILES[name](**fields) if name in FROM_FILES else get_trigger(name, **fields)


@lru_cache(maxsize=2)
def _load_data(text: str, root: str) -> Data:
    entry = json.loads(text)
    load = _function(entry.get("loader", DEFAULT_LOADER), root)
    train, test = load(**{key: _located(value, root) for key, value in entry.get("args", {}).items()})
    images = torch.from_numpy(test.images).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(test.labels)
    return Data(train, test, images, labels, train.content_hash(), test.content_hash())


def _architecture(spec: str, data: Data, root: str | Path) -> nn.Module:
    file, colon, rest = spec.partition(".py:")
    _, channels, size, _ = data.test_images.shape
    return resolve_arch(
        f"{locate(file + '.py', root)}:{rest}" if colon else spec,
        num_classes=data.train.num_classes,
        in_channels=channels,
        input_size=size,
    )


def _function(spec: str, root: str | Path) -> Callable[..., Any]:
    """Import ``module:function`` or ``file.py:function``."""
    where, _, name = spec.rpartition(":")
    if where.endswith(".py"):
        path = existing(locate(where, root), "the data loader")
        module = module_from_file(f"unbackdoor_loader_{path.stem}", path)
    else:
        module = importlib.import_module(where)
    return getattr(module, name)


def _located(value: Any, root: str | Path) -> Any:
    """Return text with a place in braces as a path, lists as tuples, anything else as it is."""
    if isinstance(value, str) and "{" in value:
        return str(locate(value, root))
    return tuple(_located(item, root) for item in value) if isinstance(value, list) else value
