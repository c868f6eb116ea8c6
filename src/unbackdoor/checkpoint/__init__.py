"""Safe reading and writing of state dicts, and networks from a specification.

Nothing here executes code from a checkpoint: files are opened as plain tensors or refused. An architecture
specification, on the other hand, is the user's own code and is imported.
"""

from unbackdoor.checkpoint._fit import load_into
from unbackdoor.checkpoint._read import Loaded, load_state
from unbackdoor.checkpoint._spec import resolve_arch
from unbackdoor.checkpoint._write import default_output, save_like

__all__ = ["Loaded", "default_output", "load_into", "load_state", "resolve_arch", "save_like"]
