"""``unbackdoor evaluate``: what a checkpoint gets right, and how well it obeys a trigger."""

from __future__ import annotations

from typing import Annotated

import typer

from unbackdoor._evaluate import evaluate
from unbackdoor._files import check_writable, write_json
from unbackdoor.attacks.fixed import SYNTAX, trigger_from_spec
from unbackdoor.cli import _open, _options, _show
from unbackdoor.data import read_images


def command(
    checkpoint: _options.Checkpoint,
    arch: _options.Arch,
    images: _options.Images,
    trigger: Annotated[
        str,
        typer.Option(help=f"{SYNTAX}; without @ a patch lies in the lower right corner.", show_default=False),
    ],
    target: Annotated[
        int | None, typer.Option(min=0, help="The label that triggered images are sent to.")
    ] = None,
    all_to_all: Annotated[bool, typer.Option("--all-to-all", help="Label y is sent to y + 1.")] = False,
    split: Annotated[
        str, typer.Option(help="Of a file or folder that holds several: test or train.")
    ] = "test",
    classes: _options.Classes = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images a forward pass.")] = 500,
    json: _options.Json = None,
    key: _options.Key = None,
    mean: _options.Mean = None,
    std: _options.Std = None,
    resize: _options.Resize = None,
    grey: _options.Grey = None,
    device: _options.Device = "auto",
) -> None:
    """Measure CHECKPOINT on labelled images: ACC, ASR, RA.

    ACC: share of the clean images that get their label. ASR: share of the triggered images, those of the
    target class left out, that get the attacker's label. RA: share of the same images that get their true
    label. The ASR with target-class images, as much of the literature counts it, is shown under its own name.
    """
    if json is not None:
        check_writable(json)
    fixed = trigger_from_spec(trigger)
    labelled = read_images(images, split=split, resize=resize, grey=grey)
    num_classes = classes or labelled.num_classes
    label_map = _open.label_map(target, all_to_all, num_classes)
    network = _open.open_network(
        checkpoint,
        arch,
        labelled,
        classes=classes,
        key=key,
        mean=_options.numbers("--mean", mean),
        std=_options.numbers("--std", std),
        device=device,
    )
    metrics = evaluate(network.model, *labelled.tensors(), fixed, label_map, batch_size)
    if json is not None:
        attack = {"trigger": fixed.name, **fixed.fields(), "labels": label_map.name, "target": target}
        used = _open.images_record(images, labelled, None)
        record = {"checkpoint": network.record(), "arch": arch, "images": used, "attack": attack}
        write_json(json, {**record, "metrics": metrics.to_dict()})
    _show.show_metrics(f"{checkpoint.name}, {metrics.num_images:,} images", {"share": metrics})
