"""The one exception of the package: every bad input says cause, offending value and fix."""

from __future__ import annotations


class UnbackdoorError(ValueError):
    """Bad input: what is wrong, the value that is wrong, and a fix that can be run.

    The command line turns it into exit code 2; from Python it is an ordinary ``ValueError``.

    >>> print(UnbackdoorError("unknown method", value="awn", fix="use one of: awm, ft"))
    unknown method
      got: awn
      fix: use one of: awm, ft
    """

    def __init__(self, cause: str, *, value: object, fix: str):
        self.cause, self.value, self.fix = cause, value, fix
        super().__init__(f"{cause}\n  got: {value}\n  fix: {fix}")


def unknown_name(kind: str, name: str, valid: list[str]) -> UnbackdoorError:
    """Return the error for a name that is not in a registry; it lists the valid ones."""
    return UnbackdoorError(f"unknown {kind}", value=repr(name), fix=f"use one of: {', '.join(sorted(valid))}")


def require(condition: bool, cause: str, value: object, fix: str) -> None:
    """Raise ``UnbackdoorError`` unless ``condition`` holds (NaN never does)."""
    if not condition:
        raise UnbackdoorError(cause, value=value, fix=fix)
