"""Networks from a specification: a name of the zoo, or the user's own factory."""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from unbackdoor import zoo
from unbackdoor._errors import UnbackdoorError, unknown_name
from unbackdoor._modules import module_from_file

SYNTAX = "a zoo name, package.module:factory or path/to/file.py:factory, each with ?key=value,key=value"


def resolve_arch(spec: str, *, num_classes: int, in_channels: int, input_size: int) -> nn.Module:
    """Build the network that ``spec`` names, with fresh weights.

    ``spec`` is a name of the zoo, ``package.module:factory`` or ``path/to/file.py:factory``; a factory is a
    class or function that returns a module. Arguments follow a question mark:
    ``nets.py:make?depth=16,width=1``; values are Python literals, anything else is a string. A factory that
    names ``num_classes``, ``in_channels`` or ``input_size`` among its parameters gets them, unless the
    specification gives them. The module is imported, that is, **its code runs**: it is the user's own.

    Args:
        spec: the specification.
        num_classes: width of the output.
        in_channels: channels of the images.
        input_size: height and width of the images, in pixels.

    Raises:
        UnbackdoorError: unknown name (lists the valid ones), no such module or factory, or it fails.

    >>> type(resolve_arch("wrn_16_1", num_classes=10, in_channels=3, input_size=32)).__name__
    'WideResNet'
    >>> spec = "torch.nn:Linear?in_features=4,out_features=2"
    >>> resolve_arch(spec, num_classes=2, in_channels=1, input_size=2)
    Linear(in_features=4, out_features=2, bias=True)
    """
    name, _, arguments = spec.partition("?")
    given = _parse_arguments(spec, arguments)
    known = {"num_classes": num_classes, "in_channels": in_channels, "input_size": input_size}
    if ":" not in name:
        return _from_zoo(name, known | given)
    where, _, attribute = name.rpartition(":")
    with _importable(where):
        factory = _factory(spec, _module(spec, where), attribute)
        model = _call(spec, factory, _named_parameters(factory, known) | given)
    if not isinstance(model, nn.Module):
        raise UnbackdoorError(
            "the architecture's factory returned no torch.nn.Module",
            value=f"{spec} returned {type(model).__name__}",
            fix="name a class or function that returns the network",
        )
    return model


def _parse_arguments(spec: str, text: str) -> dict[str, Any]:
    """Read ``key=value,key=value``; commas inside brackets belong to the value."""
    if not text:
        return {}
    try:
        call = ast.parse(f"f({text})", mode="eval").body
    except SyntaxError:
        call = None
    plain = isinstance(call, ast.Call) and not call.args and all(item.arg for item in call.keywords)
    if not plain:
        raise UnbackdoorError("the architecture's arguments cannot be read", value=spec, fix=f"give {SYNTAX}")
    return {str(item.arg): _literal(item.value) for item in call.keywords}


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)


def _from_zoo(name: str, arguments: dict[str, Any]) -> nn.Module:
    if name not in zoo.NAMES:
        error = unknown_name("architecture", name, list(zoo.NAMES))
        raise UnbackdoorError(error.cause, value=error.value, fix=f"{error.fix}; or give {SYNTAX}")
    return _call(name, zoo.build, {"name": name, **arguments})


@contextmanager
def _importable(where: str) -> Iterator[None]:
    """Let a factory's file import its neighbours, as it would when run from its own folder."""
    folder = str(Path(where).resolve().parent) if where.endswith(".py") else str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _module(spec: str, where: str) -> ModuleType:
    try:
        return _from_file(spec, Path(where)) if where.endswith(".py") else importlib.import_module(where)
    except UnbackdoorError:
        raise
    except Exception as error:  # noqa: BLE001  the user's module may fail in any way
        raise UnbackdoorError(
            f"the architecture's module cannot be imported: {type(error).__name__}: {error}",
            value=spec,
            fix=f"check the name, and that the module's own imports are installed; give {SYNTAX}",
        ) from error


def _from_file(spec: str, path: Path) -> ModuleType:
    if not path.is_file():
        raise UnbackdoorError("there is no such architecture file", value=spec, fix=f"give {SYNTAX}")
    return module_from_file(f"unbackdoor_arch_{path.stem}", path)


def _factory(spec: str, module: ModuleType, attribute: str) -> Callable[..., Any]:
    factory = getattr(module, attribute, None)
    if callable(factory):
        return factory
    own = [
        n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__
    ]
    raise UnbackdoorError(
        f"the module has no factory {attribute!r}",
        value=spec,
        fix=f"use one of: {', '.join(sorted(own)) or 'none'}",
    )


def _named_parameters(factory: Callable[..., Any], known: dict[str, int]) -> dict[str, int]:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return {}
    return {name: value for name, value in known.items() if name in parameters}


def _call(spec: str, factory: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    try:
        return factory(**arguments)
    except UnbackdoorError:
        raise
    except Exception as error:  # noqa: BLE001  the user's factory may fail in any way
        shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
        raise UnbackdoorError(
            f"the architecture's factory failed: {type(error).__name__}: {error}",
            value=f"{spec} called with ({shown})",
            fix="give the arguments it needs after a question mark, for example file.py:make?depth=16",
        ) from error
