"""Files are written whole or not at all: to a temporary name beside the target, then renamed."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unbackdoor._errors import UnbackdoorError


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside ``path`` that becomes ``path`` when the block ends without an error.

    When the block raises (Ctrl-C included) the temporary file is removed and ``path`` stays as it was.

    Raises:
        UnbackdoorError: the file cannot be written.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        yield part
        os.replace(part, target)
    except OSError as error:
        raise _unwritable(target, error.strerror or str(error)) from error
    finally:
        with suppress(OSError):
            part.unlink()


def write_json(path: str | os.PathLike[str], record: Mapping[str, Any]) -> None:
    """Write a record as indented JSON, atomically; NaN and infinite values become null."""
    text = json.dumps(_finite(record), indent=2, allow_nan=False) + "\n"
    with writing(path) as part:
        part.write_text(text, encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_writable(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` when a file can be written there, before any work is done; leaves nothing behind.

    Raises:
        UnbackdoorError: the folder does not exist, ``path`` is a folder, or writing is not allowed.
    """
    target = Path(path)
    if os.path.isdir(target):
        raise _unwritable(target, "it is a folder", "give the name of a file in it")
    if not os.path.isdir(target.parent):
        raise _unwritable(target, f"there is no folder {target.parent}", f"mkdir -p {target.parent}")
    if os.path.exists(target) and not os.access(target, os.W_OK):
        raise _unwritable(target, "the file there is read-only")
    probe = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise _unwritable(target, error.strerror or str(error)) from error
    return target


def _unwritable(
    path: Path, why: str, fix: str = "give a path in a folder that you may write to"
) -> UnbackdoorError:
    return UnbackdoorError(f"cannot write the output: {why}", value=path, fix=fix)
