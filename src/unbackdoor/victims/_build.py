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
        device: where to train.
        progress: called with a ``Progress`` at every step.

    Raises:
        UnbackdoorError: nothing can be written there, or the specification does not fit the data.
    """
    out = check_writable(check_suffix(out))
    train, test = splits
    architecture = Architecture.for_split(spec.arch, train)
    model = architecture.build(spec.seed).to(device)
    clean = None if surrogate is None else _checked(surrogate).model.to(device)
    state = out.with_name(f".{out.stem}.state")
    victim = train_victim(
        model,
        train,
        spec.poisoning(train, clean),
        spec.recipe,
        seed=spec.seed,
        progress=progress,
        resume_path=state,
    )
    extra = {"spec": spec.to_dict(), "surrogate": None if surrogate is None else surrogate.record["sha256"]}
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
    """Build one victim of the named set in ``folder``, its surrogate first, unless it is there already.

    Returns:
        Its record, and whether it was built now.

    Raises:
        UnbackdoorError: unknown name, or the data set is not there.
    """
    spec, out = named_spec(name), Path(folder) / f"{name}.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    if is_built(out, spec):
        return read_victim_record(out), False
    surrogate = None
    if spec.surrogate is not None:
        build_named(spec.surrogate, folder, data_root=data_root, device=device, progress=progress)
        surrogate = load_victim(out.with_name(f"{spec.surrogate}.safetensors"))
    splits = load(spec.data, data_root, resize=spec.resize)
    record = build_victim(spec, out, splits, surrogate=surrogate, device=device, progress=progress)
    return record, True


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


def _checked(surrogate: SavedVictim) -> SavedVictim:
    if surrogate.record["attack"] is not None:
        raise UnbackdoorError(
            "the surrogate is backdoored itself",
            value=f"{surrogate.record['name']}, attack {surrogate.record['attack']['name']}",
            fix="give a clean model: unbackdoor attack --attack none",
        )
    return surrogate
