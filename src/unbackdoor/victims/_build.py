"""Make victims from their specifications, one or the named set, resumably."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from unbackdoor._errors import UnbackdoorError, unknown_name
from unbackdoor._files import check_writable
from unbackdoor.attacks._train import train_victim
from unbackdoor.bench.places import find_root, locate
from unbackdoor.bench.records import plain
from unbackdoor.data import TestSplit, TrainSplit, load
from unbackdoor.methods import Progress
from unbackdoor.victims._architecture import Architecture
from unbackdoor.victims._load import SavedVictim, load_victim, read_victim_record
from unbackdoor.victims._named import NAMED
from unbackdoor.victims._record import check_suffix, record_path, save_victim
from unbackdoor.victims._spec import VictimSpec

Splits = tuple[TrainSplit, TestSplit]


def build_victim(
    spec: VictimSpec,
    out: str | os.PathLike[str],
    splits: Splits,
    *,
    surrogate: SavedVictim | None = None,
    start: SavedVictim | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Train the victim of ``spec`` and write checkpoint and record; return the record.

    A run that is killed goes on from its last whole epoch when it is called again with the same arguments.

    Args:
        spec: what to make.
        out: checkpoint to write, ``.safetensors`` or ``.pth``; the record goes beside it as ``.json``.
        splits: what ``data.load(spec.data)`` returned.
        surrogate: the clean model that ``spec.surrogate`` names.
        start: the clean model that ``spec.start`` names.
        device: where to train.
        progress: called with a ``Progress`` at every step.

    Raises:
        UnbackdoorError: nothing can be written there, the specification does not fit the data, or a model
            that it names is not given, is backdoored, or (``start``) is of another network or other data.
    """
    out = check_writable(check_suffix(out))
    train, test = splits
    architecture = Architecture.for_split(spec.arch, train)
    model = architecture.build(spec.seed)
    clean = _checked("surrogate", spec.surrogate, surrogate)
    first = _checked("start", spec.start, start)
    if first is not None:
        _check_same(first, architecture, train)
        model.load_state_dict(first.model.state_dict())
    model.to(device)
    state = out.with_name(f".{out.stem}.state")
    victim = train_victim(
        model,
        train,
        spec.poisoning(train, None if clean is None else clean.model.to(device)),
        spec.recipe,
        seed=spec.seed,
        progress=progress,
        resume_path=state,
    )
    extra = {"spec": spec.to_dict(), "surrogate": _hash(clean), "start": _hash(first)}
    record = save_victim(out, victim, architecture, train, test, spec.data, extra)
    state.unlink(missing_ok=True)
    return record


def build_named(
    name: str,
    folder: str | os.PathLike[str],
    *,
    data_root: str | os.PathLike[str] | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[Progress], None] | None = None,
) -> tuple[dict[str, Any], bool]:
    """Build one victim of the named set in ``folder``, the clean models it needs first, unless it is there.

    Returns:
        Its record, and whether it was built now.

    Raises:
        UnbackdoorError: unknown name, or the data set is not there.
    """
    spec, out = named_spec(name), Path(folder) / f"{name}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    if is_built(out, spec):
        return read_victim_record(out), False
    clean: dict[str, SavedVictim] = {}
    for role, other in (("surrogate", spec.surrogate), ("start", spec.start)):
        if other is not None:
            build_named(other, folder, data_root=data_root, device=device, progress=progress)
            clean[role] = load_victim(out.with_name(f"{other}.safetensors"))
    splits = load(spec.data, data_root, resize=spec.resize)
    return build_victim(spec, out, splits, **clean, device=device, progress=progress), True


def named_spec(name: str) -> VictimSpec:
    """Return the specification of a victim of the named set."""
    if name not in NAMED:
        raise unknown_name("victim", name, list(NAMED))
    return NAMED[name]


def is_built(checkpoint: Path, spec: VictimSpec) -> bool:
    """Tell whether ``checkpoint`` is there with the record of this very specification."""
    if not checkpoint.exists() or not record_path(checkpoint).exists():
        return False
    return read_victim_record(checkpoint).get("spec") == plain(spec.to_dict())


def zoo_folder() -> Path:
    """Return where the named set lies: ``$UNBACKDOOR_ZOO``, or ``benchmarks/zoo`` of the project."""
    return locate("{zoo}", find_root(Path.cwd()))


def _checked(role: str, named: str | None, given: SavedVictim | None) -> SavedVictim | None:
    """Return the clean model that the specification names in this role, ``None`` where it names none."""
    if (named is None) != (given is None):
        raise UnbackdoorError(
            f"the specification names a {role} and none is given, or the other way round",
            value=f"spec.{role}={named!r}, {role}={None if given is None else given.record['name']!r}",
            fix=f"build_victim(spec, out, splits, {role}=load_victim(...)), with spec.{role} set",
        )
    if given is not None and given.record["attack"] is not None:
        raise UnbackdoorError(
            f"the {role} is backdoored itself",
            value=f"{given.record['name']}, attack {given.record['attack']['name']}",
            fix="give a clean model: unbackdoor attack --attack none",
        )
    return given


def _check_same(start: SavedVictim, architecture: Architecture, train: TrainSplit) -> None:
    """Refuse to start from another network, or from one that was trained on other images."""
    theirs, ours = start.record["architecture"], dict(vars(architecture))
    if theirs != ours:
        raise UnbackdoorError(
            "the start is another network than the victim",
            value=f"{theirs} for {ours}",
            fix=f"--arch {theirs['name']}",
        )
    if start.record["data"]["train_sha256"] != train.content_hash():
        raise UnbackdoorError(
            "the start was trained on other images than the victim's",
            value=f"{start.record['name']}: {start.record['data']['name']}",
            fix="train a clean model on the same data: unbackdoor attack --attack none",
        )


def _hash(clean: SavedVictim | None) -> str | None:
    return None if clean is None else clean.record["sha256"]
