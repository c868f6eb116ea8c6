"""Write a network into the container that its checkpoint came in."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unbackdoor._errors import UnbackdoorError
from unbackdoor._files import writing
from unbackdoor.checkpoint._fit import COUNTER
from unbackdoor.checkpoint._read import ORDER, Loaded

_SUFFIXES = (".safetensors", ".pth.tar", ".pt.tar", ".pth", ".pt", ".tar", ".ckpt", ".bin")


def default_output(checkpoint: str | Path) -> Path:
    """Return the name beside the input that a purified checkpoint gets.

    >>> default_output("nets/victim.pth.tar").name
    'victim.purified.pth.tar'
    """
    path = Path(checkpoint)
    suffix = next((suffix for suffix in _SUFFIXES if path.name.endswith(suffix)), "")
    return path.with_name(f"{path.name.removesuffix(suffix)}.purified{suffix}")


def save_like(loaded: Loaded, model: nn.Module, path: str | Path) -> None:
    """Write the weights of ``model`` as the checkpoint ``loaded`` had them, atomically.

    A name that ends in ``.safetensors`` gets the state dict alone, under the network's own keys. Any other
    name gets the input's container (its other entries as they were, the same place, prefix, keys, order,
    shapes and types) in the input's own kind of ``torch.save`` file. The safetensors library sorts tensors
    inside the file; their order is kept in the file's metadata and restored by ``load_state``.

    Args:
        loaded: what ``load_into`` returned for a network of the same class.
        model: the network to write.
        path: the file to write.

    Raises:
        UnbackdoorError: the network has other keys or shapes, or the file cannot be written.
    """
    state = _state_like(loaded, model)
    path = Path(path)
    if path.suffix == ".safetensors":
        _write_safetensors(loaded, state, path)
        return
    named = type(_old_state(loaded))((loaded.prefix + name, tensor) for name, tensor in state.items())
    if hasattr(_old_state(loaded), "_metadata"):
        named._metadata = copy.copy(_old_state(loaded)._metadata)  # type: ignore[union-attr]
    with writing(path) as part:
        torch.save(
            _replaced(loaded.container, loaded.key, named),
            part,
            _use_new_zipfile_serialization=loaded.format != "legacy",
        )


def _state_like(loaded: Loaded, model: nn.Module) -> dict[str, Tensor]:
    """Return the network's tensors in the file's order and types, on the CPU and each in its own memory."""
    new = model.state_dict()
    old_shapes = {name: tensor.shape for name, tensor in loaded.state.items()}
    absent = [name for name in new if name not in old_shapes and not name.endswith(COUNTER)]
    if absent or any(name not in new or new[name].shape != shape for name, shape in old_shapes.items()):
        raise UnbackdoorError(
            "the network has other keys or shapes than the checkpoint it came from",
            value=f"{len(new)} tensors, {len(old_shapes)} in {loaded.path}",
            fix="give the model that purify() returned",
        )
    return {
        name: new[name].detach().to("cpu", old.dtype).contiguous().clone()
        for name, old in loaded.state.items()
    }


def _write_safetensors(loaded: Loaded, state: dict[str, Tensor], path: Path) -> None:
    metadata = {"format": "pt", **loaded.metadata, ORDER: json.dumps(list(state))}
    if loaded.format == "safetensors":
        metadata[ORDER] = json.dumps([loaded.prefix + name for name in state])
        state = {loaded.prefix + name: tensor for name, tensor in state.items()}
    with writing(path) as part:
        save_file(state, part, metadata=metadata)


def _old_state(loaded: Loaded) -> Mapping[str, Tensor]:
    value: Any = loaded.container
    for key in loaded.key:
        value = value[key]
    return value


def _replaced(
    container: Mapping[str, Any], keys: tuple[str, ...], state: Mapping[str, Tensor]
) -> Mapping[str, Any]:
    """Return a copy of the container with ``state`` at ``keys``; every mapping on the way keeps its type."""
    if not keys:
        return state
    changed = copy.copy(container)
    changed[keys[0]] = _replaced(container[keys[0]], keys[1:], state)  # type: ignore[index]
    return changed
