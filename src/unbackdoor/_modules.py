"""Files of the user's own, run as modules."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType


class _Uncached(SourceFileLoader):
    """Reads a module's source and writes no bytecode beside it."""

    def set_data(self, path: str, data: object, *, _mode: int = 0o666) -> None:
        pass


def module_from_file(name: str, path: Path) -> ModuleType:
    """Run a file of the user's own as a module of that name; nothing is left beside the file.

    Whatever the file raises is raised.
    """
    path = path.resolve()
    found = importlib.util.spec_from_file_location(name, path, loader=_Uncached(name, str(path)))
    module = importlib.util.module_from_spec(found)  # type: ignore[arg-type]  a loader was given, so it is one
    sys.modules[name] = module
    found.loader.exec_module(module)  # type: ignore[union-attr]
    return module
