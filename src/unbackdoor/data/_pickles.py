"""An unpickler for the official CIFAR batches: numbers, strings, plain containers and numeric arrays only."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from unbackdoor._errors import UnbackdoorError

ARRAY_CLASS = "numpy.ndarray"


def load_plain(path: Path) -> dict[str, Any]:
    """Load a pickled dict of plain values and numeric arrays; nothing in the file can run code.

    Args:
        path: a pickle of Python 2 or 3, any protocol.

    Returns:
        The dict, keys as ``str``. Byte strings stay bytes.

    Raises:
        UnbackdoorError: the file names any other class or function, or is not such a dict.
    """
    try:
        with path.open("rb") as file:
            content = _PlainUnpickler(file, encoding="bytes").load()
    except UnbackdoorError:
        raise
    except Exception as error:  # noqa: BLE001 - a damaged pickle can raise anything
        raise _refusal(path, f"not a readable pickle: {error}") from error
    if not isinstance(content, dict):
        raise _refusal(path, f"expected a dict, found {type(content).__name__}")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in content.items()}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = _ADMITTED.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise UnbackdoorError(
                "the pickle asks for something that is not an array; it was not loaded",
                value=f"{module}.{name}",
                fix="get the official file again; a data set has no use for it",
            )
        return found


def _refusal(path: Path, cause: str) -> UnbackdoorError:
    return UnbackdoorError(cause, value=str(path), fix="get the official file again, and unpack it")


def _empty_array(kind: object, shape: tuple[int, ...], dtype: object) -> np.ndarray:
    """Stand in for numpy's ``_reconstruct``: an empty array whose state follows in the pickle."""
    if kind != ARRAY_CLASS:
        raise pickle.UnpicklingError("an array of another class")
    return np.empty((0,), np.uint8)


def _array_from_buffer(buffer: bytes, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """Stand in for numpy's ``_frombuffer``, which pickles of protocol 5 call."""
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


def _numeric_dtype(code: str | bytes, align: bool = False, copy: bool = True) -> np.dtype:
    """Stand in for ``numpy.dtype``: numbers only, since arrays of objects could hold anything."""
    dtype = np.dtype(code.decode() if isinstance(code, bytes) else code, copy=True)
    if dtype.kind not in "biuf":
        raise pickle.UnpicklingError(f"an array of {dtype}")
    return dtype


def _scalar(dtype: np.dtype, raw: bytes) -> Any:
    return np.frombuffer(raw, dtype)[0]


def _latin1(text: str, encoding: str) -> bytes:
    """Stand in for ``_codecs.encode``, with which old protocols write bytes."""
    return text.encode("latin1")


_ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): ARRAY_CLASS,
    ("numpy", "dtype"): _numeric_dtype,
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _array_from_buffer,
    ("_codecs", "encode"): _latin1,
}
