"""``unbackdoor demo``: a real victim that ships with the package, purified from one image a class."""

from __future__ import annotations

from typing import Annotated

import typer

from unbackdoor import _demo
from unbackdoor._evaluate import evaluate
from unbackdoor._purify import purify
from unbackdoor.cli import _show
from unbackdoor.methods import DEFAULT, METHODS, get_method


def command(
    method: Annotated[str, typer.Option(help=f"One of: {', '.join(sorted(METHODS))}.")] = DEFAULT.name,
    per_class: Annotated[int, typer.Option(min=1, help="Clean images a class.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw and of the method.")] = 0,
) -> None:
    """Purify a backdoored Fashion-MNIST classifier and show what it obeys before and after."""
    remover = get_method(method)
    case = _demo.load()
    images, labels = case.test.tensors()
    before = evaluate(case.model, images, labels, case.trigger, case.label_map)
    _show.note(case.about)
    with _show.progress_bar("purify") as listen:
        clean = case.train.draw(per_class, seed)
        result = purify(case.model, *clean.tensors(), method=remover, seed=seed, progress=listen)
    after = evaluate(result.model, images, labels, case.trigger, case.label_map)
    title = f"{remover.name}, {len(clean)} clean images, {result.report.seconds:.1f} s"
    _show.show_metrics(f"{title}; {len(labels):,} test images", {"before": before, "after": after})
