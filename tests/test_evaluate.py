"""Metrics against cases counted by hand: the model answers with the value of the one pixel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from unbackdoor._errors import UnbackdoorError
from unbackdoor._evaluate import Metrics, accuracy, defence_effectiveness, evaluate
from unbackdoor.attacks._labels import AllToAll, AllToOne, SourceSpecific


class Reader(nn.Module):
    """Answers class round(10 · x); dropout makes train mode answer 0, so that eval mode shows."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(10.0))

    def forward(self, x: Tensor) -> Tensor:
        wanted = (x.flatten(1)[:, 0] * self.scale).round().long().clamp(0, 9)
        wanted = wanted * (not self.training)
        return nn.functional.one_hot(wanted, 10).float()


def images(*classes: int) -> Tensor:
    """Return images that ``Reader`` answers with these classes."""
    return torch.tensor(classes).view(-1, 1, 1, 1) / 10


def shifted(x: Tensor) -> Tensor:
    return x + 0.1


def test_all_to_one_leaves_the_target_class_out() -> None:
    answers, labels = images(0, 1, 2, 3, 0), torch.tensor([0, 1, 2, 2, 3])
    half_obeyed = lambda x: torch.where(x < 0.15, torch.zeros_like(x), x)  # noqa: E731
    result = evaluate(Reader(), answers, labels, half_obeyed, AllToOne(target=0))
    # answers 0 1 2 3 0 against 0 1 2 2 3; triggered answers 0 0 2 3 0, the first image is the target's;
    # of the others the last is the target's without the trigger
    assert result == Metrics(3 / 5, 2 / 4, 1 / 4, 3 / 5, 5, 4, 1 / 4, 1 / 1)


def test_all_to_all_counts_y_plus_one() -> None:
    labels = torch.tensor([0, 1, 2, 2])
    result = evaluate(Reader(), images(0, 1, 2, 1), labels, shifted, AllToAll(num_classes=3))
    # triggered answers 1 2 3 2; wanted 1 2 0 0
    assert result == Metrics(3 / 4, 2 / 4, 1 / 4, 2 / 4, 4, 4, 0 / 4, None)


def test_source_specific_counts_the_source_only() -> None:
    labels = torch.tensor([1, 1, 2, 0])
    result = evaluate(Reader(), images(1, 4, 2, 0), labels, shifted, SourceSpecific(source=1, target=2))
    # triggered answers 2 5 3 1; wanted 2 2 2 0; only the two images of class 1 count
    assert result == Metrics(3 / 4, 1 / 2, 0.0, 1 / 4, 4, 2, 0 / 2, 1 / 1)


def test_a_plain_function_works_as_label_map() -> None:
    result = evaluate(Reader(), images(1, 0), torch.tensor([1, 0]), lambda x: x, torch.zeros_like)
    assert (result.asr, result.ra, result.num_triggered) == (0.0, 1.0, 1)


@pytest.mark.parametrize("batch_size", [1, 2, 500])
def test_uint8_and_batches_do_not_matter(batch_size: int) -> None:
    pixels, labels = (
        torch.tensor([0, 51, 102, 255], dtype=torch.uint8).view(-1, 1, 1, 1),
        torch.tensor([0, 2, 4, 1]),
    )
    assert accuracy(Reader(), pixels, labels, batch_size) == 3 / 4
    seen: list[float] = []
    evaluate(Reader(), pixels, labels, lambda x: seen.append(x.max().item()) or x, AllToOne(), batch_size)
    assert max(seen) == 1.0


def test_modes_are_put_back_also_after_an_error() -> None:
    model = nn.Sequential(Reader(), nn.Identity())
    model.train()
    model[1].eval()
    evaluate(model, images(1), torch.tensor([1]), shifted, AllToOne())
    assert (model[0].training, model[1].training) == (True, False)

    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("broken trigger")

    with pytest.raises(RuntimeError, match="broken"):
        evaluate(model, images(1), torch.tensor([1]), broken, AllToOne())
    assert (model[0].training, model[1].training) == (True, False)


def test_der_by_hand() -> None:
    def metrics(acc: float, asr: float) -> Metrics:
        return Metrics(acc, asr, 0.0, 0.0, 1, 1)

    before = metrics(0.9, 1.0)
    assert defence_effectiveness(before, before) == 0.5
    assert defence_effectiveness(before, metrics(0.9, 0.0)) == 1.0
    assert defence_effectiveness(before, metrics(0.8, 0.4)) == pytest.approx((0.6 - 0.1 + 1) / 2)
    assert defence_effectiveness(metrics(0.8, 0.1), metrics(0.9, 0.3)) == 0.5


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(UnbackdoorError, match="no image whose label"):
        evaluate(Reader(), images(0), torch.tensor([0]), shifted, AllToOne(target=0))
    with pytest.raises(UnbackdoorError, match="one label an image"):
        accuracy(Reader(), images(0, 1), torch.tensor([0]))
