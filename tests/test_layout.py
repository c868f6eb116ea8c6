"""Weights with their channels last: faster, the same answers, and put back."""

from __future__ import annotations

import pytest
import torch

from unbackdoor._layout import channels_last


class Small(torch.nn.Module):
    """A convolution whose output is flattened, by a view or whatever its order in memory is."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        self.conv, self.view = torch.nn.Conv2d(3, 5, 3), view

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out = self.conv(images)
        return out.view(len(out), -1) if self.view else out.flatten(1)


@pytest.mark.parametrize("view", [False, True])
def test_weights_lie_with_their_channels_last_where_the_network_bears_it(view: bool) -> None:
    model, images = Small(view), torch.rand(2, 3, 8, 8)
    weight, before = model.conv.weight.detach().clone(), model(images)
    with channels_last(model, images):
        order = torch.contiguous_format if view else torch.channels_last
        assert model.conv.weight.is_contiguous(memory_format=order)
        torch.testing.assert_close(model(images), before)
    assert torch.equal(model.conv.weight, weight) and model.conv.weight.is_contiguous()


def test_weights_are_put_back_after_an_error_and_what_was_changed_stays_changed() -> None:
    model = Small(view=False)
    with pytest.raises(KeyError), channels_last(model, torch.rand(1, 3, 8, 8)):
        with torch.no_grad():
            model.conv.weight.fill_(3.0)
        raise KeyError
    assert model.conv.weight.is_contiguous() and model.conv.weight.unique().tolist() == [3.0]


def test_a_network_that_answers_otherwise_then_keeps_its_order() -> None:
    class Strides(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 5, 3)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=(2, 3)) + self.conv.weight.stride(3)

    model = Strides()
    with channels_last(model, torch.rand(1, 3, 8, 8)):
        assert model.conv.weight.is_contiguous()
