"""The loop with holes, on saddles whose solution is known."""

from __future__ import annotations

import math

import pytest
import torch

from unbackdoor._minmax import (
    alternate,
    gradient_ascent,
    maximise,
    minimise,
    rescale_to_budget,
    sign_ascent,
)


class Draws:
    """Counts how often a batch was asked for."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> tuple[torch.Tensor]:
        self.count += 1
        return (torch.tensor(float(self.count)),)


def test_maximise_climbs_to_the_top() -> None:
    start, draw = (torch.zeros(2), torch.zeros(1)), Draws()

    def hill(values: tuple[torch.Tensor, ...], batch: torch.Tensor) -> torch.Tensor:
        return -(values[0] - 3).square().sum() - (values[1] + 1).square().sum()

    top = maximise(start, hill, draw, steps=60, ascend=gradient_ascent(0.2))
    torch.testing.assert_close(top, (torch.full((2,), 3.0), torch.full((1,), -1.0)))
    assert draw.count == 60
    assert not any(value.requires_grad for value in top)
    assert start[0].tolist() == [0, 0] and not start[0].requires_grad


def test_maximise_projects_after_every_step() -> None:
    found = maximise(
        (torch.zeros(1),),
        lambda values, batch: values[0].sum(),
        Draws(),
        steps=10,
        ascend=sign_ascent(0.3),
        project=lambda value: value.clamp(max=1),
    )
    assert found[0].item() == 1


def test_maximise_sees_each_batch_once_and_works_without_gradients_around() -> None:
    with torch.no_grad(), torch.enable_grad():
        found = maximise(
            (torch.zeros(1),),
            lambda v, batch: v[0].sum() * batch,
            Draws(),
            steps=3,
            ascend=gradient_ascent(1),
        )
    assert found[0].item() == 1 + 2 + 3


def test_minimise_descends_and_constrains() -> None:
    p, draw = torch.tensor([1.0], requires_grad=True), Draws()
    optimizer = torch.optim.SGD([p], lr=0.1)
    loss = minimise(
        optimizer,
        lambda batch: (p + 2).square().sum(),
        draw,
        steps=50,
        constrain=lambda: p.data.clamp_(0, 1),
    )
    assert p.item() == 0 and draw.count == 50 and 4 <= loss < 9


def test_minimise_returns_the_mean_loss() -> None:
    p = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([p], lr=0.0)
    assert minimise(optimizer, lambda batch: batch + p.sum(), Draws(), steps=4) == pytest.approx(2.5)
    assert math.isnan(minimise(optimizer, lambda batch: batch + p.sum(), Draws(), steps=0))


def test_minimise_leaves_other_gradients_alone() -> None:
    p, other = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)
    minimise(torch.optim.SGD([p], lr=0.1), lambda batch: (p * other).sum(), Draws(), steps=1)
    assert other.grad is None and p.item() == pytest.approx(0.9)


def test_rounds_alternate_and_tell() -> None:
    log: list[object] = []

    def attack() -> tuple[torch.Tensor, ...]:
        log.append("attack")
        return (torch.tensor(len(log)),)

    def defend(adversary: tuple[torch.Tensor, ...]) -> float:
        log.append(("defend", adversary[0].item()))
        return 0.5

    last = alternate(2, attack, defend, lambda *at, **values: log.append((*at, values["loss"])))
    assert log == ["attack", ("defend", 1), (1, 2, 0.5), "attack", ("defend", 4), (2, 2, 0.5)]
    assert last[0].item() == 4
    assert alternate(0, attack, defend) == ()


@pytest.mark.parametrize(("budget", "expected"), [(2.0, [1.5, -0.5]), (4.0, [3.0, -1.0]), (9.0, [3.0, -1.0])])
def test_rescale(budget: float, expected: list[float]) -> None:
    assert rescale_to_budget(torch.tensor([3.0, -1.0]), budget).tolist() == pytest.approx(expected)


def test_rescaling_nothing_gives_nothing() -> None:
    assert rescale_to_budget(torch.zeros(3), 1.0).tolist() == [0, 0, 0]
