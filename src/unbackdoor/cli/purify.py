"""``unbackdoor purify``: a checkpoint in, a purified checkpoint out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unbackdoor._files import write_json
from unbackdoor._purify import purify
from unbackdoor.checkpoint import default_output, save_like
from unbackdoor.cli import _open, _options, _show
from unbackdoor.data import read_images
from unbackdoor.methods import DEFAULT, METHODS, get_method

MANY_IMAGES = 5000


def command(
    checkpoint: _options.Checkpoint,
    arch: _options.Arch,
    images: _options.Images,
    classes: _options.Classes = None,
    per_class: Annotated[
        int | None, typer.Option(min=1, help="Draw this many images a class; without it, all are used.")
    ] = None,
    method: Annotated[str, typer.Option(help=f"One of: {', '.join(sorted(METHODS))}.")] = DEFAULT.name,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Set a field of the method: --set epochs=20.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw and of the method.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Write the network here; by default beside the checkpoint, as NAME.purified.pth."),
    ] = None,
    json: _options.Json = None,
    key: _options.Key = None,
    mean: _options.Mean = None,
    std: _options.Std = None,
    resize: _options.Resize = None,
    grey: _options.Grey = None,
    device: _options.Device = "auto",
) -> None:
    """Remove the backdoor from CHECKPOINT with a few clean images, and write the purified network.

    The output has the container, keys, order, shapes and types of the input (a name ending in .safetensors:
    the state dict alone), so it loads into the original class with strict=True. The input is not changed.
    """
    remover = get_method(method, **_options.fields(set_ or []))
    target = _open.check_targets(checkpoint, out or default_output(checkpoint), json)
    clean = _open.draw(read_images(images, resize=resize, grey=grey), per_class, seed)
    network = _open.open_network(
        checkpoint,
        arch,
        clean,
        classes=classes,
        key=key,
        mean=_options.numbers("--mean", mean),
        std=_options.numbers("--std", std),
        device=device,
    )
    for found in network.loaded.notes:
        _show.note(f"{checkpoint.name}: {found}")
    if len(clean) > MANY_IMAGES:
        _show.note(f"all {len(clean):,} images are used; --per-class 1 draws one a class")
    with _show.progress_bar("purify") as listen:
        result = purify(network.model, *clean.tensors(), method=remover, seed=seed, progress=listen)
    save_like(network.loaded, network.unwrap(result.model), target)
    if json is not None:
        used = _open.images_record(images, clean, per_class)
        record = {"checkpoint": network.record(), "arch": arch, "images": used, "out": str(target)}
        write_json(json, {**record, "report": result.report.to_dict()})
    _show.show_report(result.report)
    _show.console.print(f"written: {target}", highlight=False, soft_wrap=True)
