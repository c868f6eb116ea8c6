"""Put a state dict into a network: every key fits, or nothing is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from unbackdoor._errors import UnbackdoorError
from unbackdoor.checkpoint._read import Loaded

COUNTER = "num_batches_tracked"
"""Buffer of BatchNorm that files from before PyTorch 0.4.1 do not have; PyTorch itself fills it in."""

_LISTED = 12


def load_into(model: nn.Module, loaded: Loaded) -> Loaded:
    """Load the state dict into ``model``, in place; every key and shape must match.

    Only BatchNorm's counters may be absent altogether, as in files from before PyTorch 0.4.1. A network that
    itself has the prefix in its names (``self.model = …``) is recognised by its keys.

    Returns:
        ``loaded`` with the prefix that was really left out.

    Raises:
        UnbackdoorError: keys are missing, left over or of another shape; ``model`` is unchanged.
    """
    fitted = _with_prefix_of(model, loaded)
    wanted = model.state_dict()
    _check_names(list(wanted), fitted)
    _check_shapes(wanted, fitted)
    model.load_state_dict(fitted.state)
    return fitted


def _with_prefix_of(model: nn.Module, loaded: Loaded) -> Loaded:
    """Give back as many of the left-out prefixes as make the names those of ``model``."""
    wanted = _without_counters(model.state_dict())
    parts = loaded.prefix.split(".")[:-1]
    for kept in range(len(parts) + 1):
        left_out = "".join(f"{part}." for part in parts[: len(parts) - kept])
        given_back = loaded.prefix.removeprefix(left_out)
        state = {given_back + name: tensor for name, tensor in loaded.state.items()}
        if _without_counters(state) == wanted:
            return dataclasses.replace(loaded, state=state, prefix=left_out)
    return loaded


def _without_counters(names: Iterable[str]) -> set[str]:
    return {name for name in names if not name.endswith(COUNTER)}


def _check_names(wanted: list[str], loaded: Loaded) -> None:
    missing = [name for name in wanted if name not in loaded.state]
    if all(name.endswith(COUNTER) for name in missing) and not any(COUNTER in name for name in loaded.state):
        missing = []
    left_over = [name for name in loaded.state if name not in set(wanted)]
    if missing or left_over:
        lists = _listing("missing in the file", missing) + _listing("left over", left_over)
        raise UnbackdoorError(
            "the checkpoint does not fit the architecture; every key must match, and nothing was loaded",
            value=f"{loaded.path}\n{lists}".rstrip(),
            fix="choose the --arch that the checkpoint was made with",
        )


def _check_shapes(wanted: Mapping[str, Tensor], loaded: Loaded) -> None:
    pairs = [(name, tuple(wanted[name].shape), tuple(tensor.shape)) for name, tensor in loaded.state.items()]
    wrong = [pair for pair in pairs if pair[1] != pair[2]]
    if wrong:
        lines = [f"{name}: network {ours}, file {theirs}" for name, ours, theirs in wrong]
        raise UnbackdoorError(
            "the checkpoint has other shapes than the network; nothing was loaded",
            value=f"{loaded.path}\n{_listing('other shape', lines)}".rstrip(),
            fix=_shape_fix(wrong),
        )


def _shape_fix(wrong: list[tuple[str, tuple[int, ...], tuple[int, ...]]]) -> str:
    """Name the option when only the last layer's width or only the first layer's channels differ."""
    if all(ours[1:] == theirs[1:] for _, ours, theirs in wrong) and len({pair[2][0] for pair in wrong}) == 1:
        return f"the network in the file has {wrong[0][2][0]} outputs there: --classes {wrong[0][2][0]}"
    if len(wrong) == 1 and len(wrong[0][2]) == 4 and wrong[0][1][0] == wrong[0][2][0]:
        return f"the network in the file takes images of {wrong[0][2][1]} channels; give such images"
    return "give images of the size that the network was made for, or choose another --arch"


def _listing(title: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return f"    {title} ({len(names)}): {', '.join(names[:_LISTED])}{more}\n"
