"""Read a state dict from a file without executing anything from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unbackdoor._errors import UnbackdoorError

KNOWN_KEYS = ("state_dict", "model_state_dict", "model", "net", "model_state", "network", "weights", "params")
"""Where published checkpoints keep the network; they decide when a file holds several state dicts."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
"""What wrappers (DataParallel, torch.compile, Lightning) put before every key."""

ORDER = "unbackdoor.key_order"
"""Metadata entry of our ``.safetensors`` files: the library sorts tensors, this keeps the network's order."""

_DEPTH = 3


@dataclass(frozen=True)
class Loaded:
    """A state dict from a file, and what is needed to write the same container again.

    Attributes:
        state: tensors by key, in the file's order, without ``prefix``.
        container: everything that the file holds (plain values); the state dict lies at ``key`` in it.
        key: path of nested keys, ``()`` when the file is the state dict itself.
        prefix: what stood before every key in the file, ``""`` for nothing.
        format: ``"zip"`` or ``"legacy"`` (torch.save) or ``"safetensors"``.
        metadata: of a safetensors file.
        path: the file.
    """

    state: dict[str, Tensor]
    container: Mapping[str, Any]
    key: tuple[str, ...]
    prefix: str
    format: str
    metadata: dict[str, str]
    path: Path

    @property
    def notes(self) -> tuple[str, ...]:
        """Tell what was found where, for people."""
        place = f"state dict of {len(self.state)} tensors under {'/'.join(self.key)!r}" if self.key else ""
        others = [str(name) for name in self.container if self.key and name != self.key[0]]
        return tuple(
            note
            for note in (
                place,
                f"prefix {self.prefix!r} on every key" if self.prefix else "",
                f"beside it: {', '.join(others)}" if others else "",
            )
            if note
        )


def load_state(path: str | Path, key: str | None = None) -> Loaded:
    """Read the state dict in a ``.pth``/``.pt``/``.tar`` (torch.save) or ``.safetensors`` file.

    The file is opened with ``weights_only=True``: a pickle that carries code is refused, unexecuted.
    A nested state dict is looked for three levels deep. Where the file holds several, one under a usual name
    (``state_dict``, ``model``, ``net``, …) is taken when there is exactly one; otherwise ``key`` must say.

    Args:
        path: the file.
        key: where the state dict lies, nested keys joined by ``/``; ``None`` finds it.

    Raises:
        UnbackdoorError: no such file; empty, truncated or damaged; carries code; no or several state dicts.
    """
    path = Path(path)
    _check_file(path)
    format_ = _format(path)
    container, metadata = _read_safetensors(path) if format_ == "safetensors" else (_read_torch(path), {})
    keys = _find(path, container, key)
    full = _at(container, keys)
    prefix = _common_prefix(list(full))
    state = {name.removeprefix(prefix): tensor for name, tensor in full.items()}
    return Loaded(state, container, keys, prefix, format_, metadata, path)


def _check_file(path: Path) -> None:
    fix = "give the path of a checkpoint file"
    if not path.exists():
        raise UnbackdoorError("there is no such checkpoint", value=path, fix=fix)
    if path.is_dir():
        raise UnbackdoorError("the checkpoint is a folder", value=path, fix=fix)
    if path.stat().st_size == 0:
        raise UnbackdoorError(
            "the checkpoint is empty", value=f"{path}, 0 bytes", fix="download or copy it again"
        )


def _format(path: Path) -> str:
    if path.suffix == ".safetensors":
        return "safetensors"
    with path.open("rb") as file:
        return "zip" if file.read(4) == b"PK\x03\x04" else "legacy"


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    return _ordered(tensors, metadata.get(ORDER, "[]")), metadata


def _ordered(tensors: dict[str, Tensor], text: str) -> dict[str, Tensor]:
    try:
        order = json.loads(text)
    except ValueError:
        return tensors
    known = isinstance(order, list) and set(map(str, order)) == set(tensors)
    return {name: tensors[name] for name in order} if known else tensors


def _read_torch(path: Path) -> Mapping[str, Any]:
    try:
        with torch.serialization.safe_globals(_numpy_values()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise _refused(path, error) from error
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from error
    if not isinstance(content, Mapping):
        raise UnbackdoorError(
            "the file holds no state dict",
            value=f"{path}: {type(content).__name__}",
            fix="save one: torch.save(model.state_dict(), path)",
        )
    return content


def _numpy_values() -> list[Any]:
    """Return numpy's numbers and arrays, plain data that many checkpoints keep beside the weights."""
    core = np._core.multiarray
    kinds = {type(np.dtype(kind)) for kind in "?bhilqBHILQefdUS"}
    names = [(core.scalar, f"numpy.{package}.multiarray.scalar") for package in ("core", "_core")]
    names += [
        (core._reconstruct, f"numpy.{package}.multiarray._reconstruct") for package in ("core", "_core")
    ]
    return [*names, np.ndarray, np.dtype, *kinds]


def _refused(path: Path, error: Exception) -> UnbackdoorError:
    found = re.search(r"GLOBAL (\S+)", str(error))
    if not found:
        return _damaged(path, error)
    return UnbackdoorError(
        "the file is a pickle that carries code or whole objects; it is refused, nothing of it was executed",
        value=f"{path} asks for {found[1]}",
        fix="ask its maker for the plain weights: torch.save(model.state_dict(), path)",
    )


def _damaged(path: Path, error: Exception) -> UnbackdoorError:
    said = next(iter(str(error).splitlines()), "") or type(error).__name__
    return UnbackdoorError(
        f"the checkpoint is truncated, damaged or of another format: {said[:160]}",
        value=f"{path}, {path.stat().st_size} bytes",
        fix="download or copy it again; files of torch.save and .safetensors are read",
    )


def _find(path: Path, container: Mapping[str, Any], key: str | None) -> tuple[str, ...]:
    """Return where the state dict lies in the container."""
    places = list(_places(container))
    if key is not None:
        wanted = [place for place in places if "/".join(place) == key]
    else:
        wanted = (
            places if len(places) == 1 else [place for place in places if place and place[-1] in KNOWN_KEYS]
        )
    if len(wanted) == 1:
        return wanted[0]
    names = ", ".join("/".join(place) for place in places)
    if not places or (key is not None and not wanted):
        raise UnbackdoorError(
            "the file holds no state dict" + (f" under {key!r}" if key else ""),
            value=f"{path} with {', '.join(map(str, list(container)[:12])) or 'nothing in it'}",
            fix=f"use one of: {names}" if names else "save one: torch.save(model.state_dict(), path)",
        )
    raise UnbackdoorError(
        "the file holds several state dicts",
        value=f"{path}: {names}",
        fix=f"say which: --key {names.split(', ')[0]}",
    )


def _places(value: object, at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if not isinstance(value, Mapping) or len(at) > _DEPTH:
        return
    if _is_state(value):
        yield at
        return
    for name, inner in value.items():
        if isinstance(name, str):
            yield from _places(inner, (*at, name))


def _is_state(value: Mapping[Any, Any]) -> bool:
    named = [item for name, item in value.items() if isinstance(name, str)]
    return len(named) == len(value) > 0 and all(isinstance(item, Tensor) for item in named)


def _at(container: Mapping[str, Any], keys: tuple[str, ...]) -> Mapping[str, Tensor]:
    value: Any = container
    for key in keys:
        value = value[key]
    return value


def _common_prefix(names: list[str]) -> str:
    """Return the wrappers' prefixes that every name starts with, ``"module._orig_mod."`` for example."""
    prefix = ""
    while True:
        for part in PREFIXES:
            if all(name.startswith(prefix + part) for name in names):
                prefix += part
                break
        else:
            return prefix
