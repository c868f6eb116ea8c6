"""``unbackdoor demo``: a real victim that ships with the package, purified from one image a class."""

from __future__ import annotations

from typing import Annotated

import typer

from unbackdoor import _demo
from unbackdoor._evaluate import evaluate
from unbackdoor._purify import purify
from unbackdoor.cli import _show
from unbackdoor.methods import DEFAULT, METHODS, get_method

ABOUT = (
    "A WideResNet-16-1 trained on Fashion-MNIST by an attacker: a white 3×3 patch makes it answer T-shirt."
)


def command(
    method: Annotated[str, typer.Option(help=f"One of: {', '.join(sorted(METHODS))}.")] = DEFAULT.name,
    per_class: Annotated[int, typer.Option(min=1, max=20, help="Clean images a class.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw and of the method.")] = 0,
) -> None:
    """Purify a backdoored Fashion-MNIST classifier and show what it obeys before and after."""
    remover, case = get_method(method), _demo.load()
    victim, clean = case.victim, case.train.draw(per_class, seed)
    images, labels = case.test.tensors()
    _show.note(ABOUT)
    before = evaluate(victim.model, images, labels, victim.trigger, victim.label_map)
    with _show.progress_bar("purify") as listen:
        result = purify(victim.model, *clean.tensors(), method=remover, seed=seed, progress=listen)
    after = evaluate(result.model, images, labels, victim.trigger, victim.label_map)
    title = f"{remover.name}, {len(clean)} clean images, {result.report.seconds:.1f} s"
    _show.show_metrics(f"{title}; {len(labels):,} test images", {"before": before, "after": after})
