"""``unbackdoor attack``: a data set in, a backdoored checkpoint and its record out."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from unbackdoor._errors import UnbackdoorError
from unbackdoor._files import check_writable
from unbackdoor.attacks import ATTACKS
from unbackdoor.cli import _open, _options, _show
from unbackdoor.data import NAMES, load
from unbackdoor.victims import (
    VictimSpec,
    build_victim,
    check_suffix,
    default_recipe,
    load_victim,
)

NONE = "none"
FORMATS = ("safetensors", "pth")


def command(
    data: Annotated[
        str,
        typer.Option(
            help=f"Data set: {', '.join(NAMES)}, hf:NAME, torchvision:CLASS, a folder with train/ and "
            "test/, or an .npz file.",
            show_default=False,
        ),
    ],
    attack: Annotated[
        str,
        typer.Option(
            help=f"One of: {', '.join(sorted(ATTACKS))}; none trains a clean model.", show_default=False
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Write the checkpoint here, and its record beside it as .json.", show_default=False
        ),
    ],
    arch: _options.Arch = "small_vgg",
    data_root: Annotated[
        Path | None, typer.Option(help="Folder with the data sets; $UNBACKDOOR_DATA or ./data without it.")
    ] = None,
    resize: _options.Resize = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Set a field of the attack: --set opacity=0.1.")
    ] = None,
    poison_rate: Annotated[
        float | None,
        typer.Option(
            help="Share of the training set; with --clean-label, of the target class. [default: 0.1]"
        ),
    ] = None,
    cover_rate: Annotated[
        float | None, typer.Option(help="Covers for one poisoned image; without it, the attack's own.")
    ] = None,
    target: Annotated[int | None, typer.Option(min=0, help="Target class. [default: 0]")] = None,
    source: Annotated[int | None, typer.Option(min=0, help="Attack this class only.")] = None,
    all_to_all: Annotated[
        bool, typer.Option("--all-to-all", help="Class y to y + 1, no single target.")
    ] = False,
    clean_label: Annotated[
        bool, typer.Option("--clean-label", help="Poison target-class images only and keep every label.")
    ] = False,
    surrogate: Annotated[
        Path | None,
        typer.Option(
            help="Clean model (made with --attack none) that triggers are optimised on, where they are."
        ),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="Clean model of the same network and data that training starts from."),
    ] = None,
    adversarial_eps: Annotated[
        float | None,
        typer.Option(
            help="Move poisoned images against --surrogate first, by up to this much a pixel, in [0, 1]."
        ),
    ] = None,
    adversarial_steps: Annotated[int | None, typer.Option(min=1, help="Steps of that. [default: 20]")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training set.")] = 10,
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", help="Set a field of the recipe: --recipe learning_rate=0.05."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything.")] = 0,
    format_: Annotated[
        str | None, typer.Option("--format", help="safetensors or pth; by default what --out ends in.")
    ] = None,
    device: _options.Device = "auto",
) -> None:
    """Train a victim: poison DATA, train a network on it, measure it, write checkpoint and record.

    Standard augmentation is on and images are not mirrored where that changes their class (gtsrb). A run that
    is stopped goes on from its last whole epoch when the same command is given again.
    """
    out = _with_format(out, format_)
    poisoning = {
        "fields": _options.fields(set_ or []),
        "poison_rate": poison_rate,
        "cover_rate": cover_rate,
        "target": target,
        "source": source,
        "all_to_all": all_to_all,
        "clean_label": clean_label,
        "surrogate": None if surrogate is None else str(surrogate),
        "adversarial_eps": adversarial_eps,
        "adversarial_steps": adversarial_steps,
    }
    spec = VictimSpec(
        data=data,
        resize=resize,
        arch=arch,
        attack=None if attack == NONE else attack,
        recipe=_recipe(data, _options.fields(recipe or []) | {"epochs": epochs}),
        start=None if start is None else str(start),
        seed=seed,
        **_given(attack, poisoning),
    )
    clean, first = (None if path is None else load_victim(path) for path in (surrogate, start))
    splits = load(data, data_root, resize=resize)
    try:
        with _show.progress_bar(out.stem) as listen:
            record = build_victim(
                spec,
                out,
                splits,
                surrogate=clean,
                start=first,
                device=_open.pick_device(device),
                progress=listen,
            )
    except KeyboardInterrupt:
        _show.note("stopped; the same command goes on from the last whole epoch")
        raise
    _show.console.print(_show.facts_table(f"Victim {out.stem}", facts(record)))
    _show.console.print(f"written: {out}", highlight=False, soft_wrap=True)


def facts(record: dict[str, Any]) -> dict[str, object]:
    """Return what to show of a victim's record."""
    attack, metrics = record["attack"], record["metrics"]
    shown: dict[str, object] = {"network": record["architecture"]["name"], "data": record["data"]["name"]}
    if attack is None:
        shown["attack"] = "none: a clean model"
    else:
        shown["attack"] = f"{attack['name']}, {attack['label_map']['name']}"
        shown["poisoned"] = f"{attack['num_poisoned']:,} of {record['data']['num_train']:,} training images"
    shown["ACC (clean accuracy)"] = _show.percent(metrics["acc"])
    if attack is not None:
        shown["ASR (without target-class images)"] = _show.percent(metrics["asr"])
        shown["RA (triggered, true label)"] = _show.percent(metrics["ra"])
    shown["seconds"] = f"{record['seconds']:.0f}"
    return shown


def _given(attack: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the poisoning that were given; none of them goes with a clean model."""
    given = {name: value for name, value in options.items() if value not in (None, False, {})}
    if attack == NONE and given:
        name = "set" if "fields" in given else next(iter(given)).replace("_", "-")
        raise UnbackdoorError("a clean model is not poisoned", value=f"--{name}", fix=f"drop --{name}")
    if "target" in given and "all_to_all" in given:
        raise UnbackdoorError(
            "all-to-all has no single target", value=f"--target {given['target']}", fix="drop it"
        )
    return given


def _recipe(data: str, settings: dict[str, Any]) -> Any:
    start = default_recipe(data)
    unknown = sorted(set(settings) - set(start.fields()))
    if unknown:
        raise UnbackdoorError(
            "unknown field of the recipe", value=unknown[0], fix=f"use one of: {', '.join(start.fields())}"
        )
    return dataclasses.replace(start, **settings)


def _with_format(out: Path, format_: str | None) -> Path:
    """Return ``out`` with the suffix of the format that is asked for, checked to be writable."""
    if format_ is not None:
        if format_ not in FORMATS:
            raise UnbackdoorError("unknown format", value=format_, fix=f"use one of: {', '.join(FORMATS)}")
        out = out.with_suffix(f".{format_}")
    return check_writable(check_suffix(out))
