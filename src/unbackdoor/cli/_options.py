"""Options that several commands share, and how their text is read."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Annotated, Any

import typer

from unbackdoor._errors import UnbackdoorError

ARCH_HELP = (
    "The network: a name of the built-in zoo, package.module:factory or path/to/file.py:factory, with "
    "arguments as ?key=value,key=value. A file or module named here is your own code and is run; a factory "
    "that has parameters num_classes, in_channels or input_size gets them."
)

Checkpoint = Annotated[
    Path,
    typer.Argument(help="The checkpoint: .pth, .pt, .tar (torch.save) or .safetensors.", show_default=False),
]
Arch = Annotated[str, typer.Option(help=ARCH_HELP, show_default=False)]
Images = Annotated[
    Path,
    typer.Option(
        help="Labelled images: a folder with a sub-folder a class, or an .npz file.", show_default=False
    ),
]
Classes = Annotated[
    int | None, typer.Option(min=2, help="Outputs of the network; without it, the classes of the images.")
]
Key = Annotated[
    str | None,
    typer.Option(help="Where the state dict lies in the checkpoint, as outer/inner, if it has several."),
]
Mean = Annotated[
    str | None,
    typer.Option(help="Normalisation that the network expects, one value a channel: 0.49,0.48,0.45."),
]
Std = Annotated[str | None, typer.Option(help="Standard deviations that go with --mean.")]
Resize = Annotated[
    int | None, typer.Option(min=1, help="Resize the images to this height and width, in pixels.")
]
Grey = Annotated[
    bool | None, typer.Option("--grey/--colour", help="Read pictures with one channel, or with three.")
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto takes a GPU where there is one.")]
Json = Annotated[Path | None, typer.Option("--json", help="Write the record as JSON here.")]


def fields(settings: list[str]) -> dict[str, Any]:
    """Read ``field=value`` pairs; values are Python literals, anything else is a string.

    >>> fields(["epochs=5", "variant=paper"])
    {'epochs': 5, 'variant': 'paper'}
    """
    pairs = [setting.partition("=") for setting in settings]
    bad = [setting for setting, pair in zip(settings, pairs, strict=True) if not (pair[0] and pair[1])]
    if bad:
        raise UnbackdoorError("a setting must be field=value", value=bad[0], fix="--set epochs=20")
    return {name.strip(): literal(value.strip()) for name, _, value in pairs}


def literal(text: str) -> Any:
    """Return the Python literal in ``text``, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def numbers(name: str, text: str | None) -> list[float] | None:
    """Read comma-separated numbers: ``"0.5,0.5"`` -> ``[0.5, 0.5]``."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UnbackdoorError(
            f"{name} must be numbers, one a channel", value=text, fix=f"{name} 0.5,0.5,0.5"
        ) from error
