"""Draw what `restore` recovers beside what the attacker used: small and strong triggers of the target found.

    python benchmarks/recovered.py badnets l2_inv --out docs/recovered.png

One row a victim of ``benchmarks/victims``: a clean image, the same with the attacker's trigger, then what was
recovered from one clean image a class: the minimal trigger of each family in which the target was found, and
strong triggers at its place. Only the second column needs the attacker's trigger.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbackdoor._clean import CleanImages, collect
from unbackdoor._files import writing
from unbackdoor.bench.grid_file import victims_of
from unbackdoor.bench.plots import pyplot
from unbackdoor.bench.victims import load_victim
from unbackdoor.methods.restore import Restore
from unbackdoor.recover import FAMILIES, Finding, examine, strengthen

ROOT = Path(__file__).parents[1]
STRONG = 3
"""Strong triggers drawn, a finding."""

Panel = tuple[str, Tensor]


def main() -> None:
    """Read the command line, recover, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("victims", nargs="+", help="names in benchmarks/victims/*.toml")
    parser.add_argument("--out", type=Path, required=True, help="the picture, PNG")
    parser.add_argument("--seed", type=int, default=0, help="of the clean images and the search")
    options = parser.parse_args()
    known = entries()
    for name in options.victims:
        if name not in known:
            parser.error(f"no victim {name!r}; there are: {', '.join(known)}")
    rows = {name: panels(known[name], options.seed) for name in options.victims}
    draw(rows, options.out)


def entries() -> dict[str, dict[str, Any]]:
    """Return every victim of the benchmark by its name, with its data set filled in."""
    folder = ROOT / "benchmarks" / "victims"
    files = {"victims": sorted(path.name for path in folder.glob("*.toml"))}
    return {entry["name"]: entry for entry in victims_of(files, folder / "all")}


def panels(entry: dict[str, Any], seed: int) -> list[Panel]:
    """Return one victim's pictures with their titles."""
    victim = load_victim(entry, ROOT)
    model = victim.model.eval().requires_grad_(False)
    clean = collect(model, *victim.data.train.draw(1, seed).tensors())
    generator = torch.Generator().manual_seed(seed)
    verdict = examine(model, clean, generator)
    image = clean.images[-1:]
    row = [("clean", image[0])]
    if victim.trigger is not None:
        row.append(("the attacker's", victim.trigger(image)[0]))
    for finding in verdict.findings:
        row += recovered(model, clean, finding, image, generator)
    return row


def recovered(
    model: nn.Module, clean: CleanImages, finding: Finding, image: Tensor, generator: torch.Generator
) -> list[Panel]:
    """Return one finding's minimal trigger, where there is one, and strong ones, on an image (1, C, H, W)."""
    family, place = finding.family, finding.strong_place
    goals = torch.full((STRONG,), finding.goal)
    sizes = {"steps": Restore.strong_steps, "batch": Restore.search_batch}
    strong, _, _ = strengthen(model, clean, family, place, goals, generator, **sizes)
    stacks = {"strong": strong}
    if family in FAMILIES:
        stacks = {"minimal": family.decode(finding.params), **stacks}
    target = "all-to-all" if finding.all_to_all else f"to {finding.goal}"
    drawn = {f"{kind} {family.name}": stack.apply(image)[:, 0] for kind, stack in stacks.items()}
    (first, picture), *others = [(title, picture) for title, some in drawn.items() for picture in some]
    return [(f"{first},\n{target}", picture), *others]


def draw(rows: dict[str, list[Panel]], path: Path) -> None:
    """Draw all rows and write the picture, atomically."""
    columns = max(len(row) for row in rows.values())
    size = (1.25 * columns, 1.65 * len(rows))
    figure, axes = pyplot().subplots(len(rows), columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set_axis_off()
    for line, (name, row) in zip(axes, rows.items(), strict=True):
        look = {"transform": line[0].transAxes, "fontsize": 6, "rotation": 90}
        line[0].text(-0.06, 0.5, name.replace("-", "\n", 2), ha="right", va="center", **look)
        for axis, (title, picture) in zip(line, row, strict=False):
            axis.imshow(picture.movedim(0, -1).squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1)
            axis.set_title(title, fontsize=7)
    with writing(path) as part:
        figure.savefig(part, format="png", dpi=130)


if __name__ == "__main__":
    main()
