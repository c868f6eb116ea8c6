"""Forward passes in step: what they see, and that nothing stays behind."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest
import torch
from torch import nn

from unbackdoor import UnbackdoorError
from unbackdoor._in_step import in_step


class Scaled(nn.Module):
    """Multiplies by ``weight`` and tells when it ran, and whether gradients were on."""

    def __init__(self, log: list[tuple[float, bool]]) -> None:
        super().__init__()
        self.weight, self.log = nn.Parameter(torch.tensor(1.0)), log

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.log.append((x.flatten()[0].item(), torch.is_grad_enabled()))
        return x * self.weight


def steps(log: list[tuple[float, bool]] | None = None) -> nn.Sequential:
    log = [] if log is None else log
    return nn.Sequential(*(Scaled(log) for _ in range(3))).requires_grad_(False)


def nothing_left(model: nn.Module) -> bool:
    alone = threading.active_count() == 1
    return alone and not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_each_layer_is_entered_by_all_batches_before_any_goes_on_through_it_as_it_is_then() -> None:
    log: list[tuple[float, bool]] = []
    model, batches = steps(log), [torch.full((2, 1), 2.0), torch.full((1, 1), 3.0)]
    seen = []
    for inputs in in_step(model, ["1", "2"], batches):
        seen.append([x.tolist() for x in inputs])
        model[1].weight.fill_(10.0)
    assert seen == [[[[2.0], [2.0]], [[3.0]]], [[[20.0], [20.0]], [[30.0]]]]
    # The first layer ran once a batch, and the last not at all: nothing asks for it.
    assert log == [(2.0, False), (3.0, False), (2.0, False), (3.0, False)]
    assert nothing_left(model)


def test_what_is_done_within_is_seen() -> None:
    class Doubling:
        def __init__(self, model: nn.Module) -> None:
            self.handle = model[1].register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            self.handle.remove()

    model = steps()
    [[inputs]] = in_step(model, ["1"], [torch.ones(1, 1)], Doubling)
    assert inputs.item() == 2 and nothing_left(model)


def test_passes_and_hooks_go_when_it_is_closed_early() -> None:
    log: list[tuple[float, bool]] = []
    model = steps(log)
    with closing(in_step(model, ["1", "2"], [torch.ones(1, 1)] * 3)) as walk:
        next(walk)
        assert threading.active_count() == 4
    assert len(log) == 3 and nothing_left(model)


def test_a_model_that_catches_exceptions_is_given_up_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, caught = steps(), []

    def forward(x: torch.Tensor) -> torch.Tensor:
        try:
            return nn.Sequential.forward(model, x)
        except Exception as error:  # noqa: BLE001 - what such a model does
            caught.append(error)
            return x

    monkeypatch.setattr(model, "forward", forward)
    with closing(in_step(model, ["1", "2"], [torch.ones(1, 1)])) as walk:
        next(walk)
    assert not caught and nothing_left(model)


def test_the_model_s_own_error_comes_through_and_nothing_stays() -> None:
    model = nn.Sequential(Scaled([]), nn.Linear(7, 2), Scaled([]))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        list(in_step(model, ["0", "2"], [torch.ones(1, 7), torch.ones(1, 6)]))
    assert nothing_left(model)


class Skipping(nn.Module):
    """Leaves its first layer out, or runs it last, where images are dark."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.a, self.b, self.last = Scaled([]), Scaled([]), last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.mean() > 0.5:
            return self.b(self.a(x))
        return self.a(self.b(x)) if self.last else self.b(x)


@pytest.mark.parametrize("last", [True, False])
def test_layers_that_run_in_another_order_for_some_images_are_refused(last: bool) -> None:
    model = Skipping(last)
    with pytest.raises(UnbackdoorError, match="does not run a where it did"):
        list(in_step(model, ["a", "b"], [torch.ones(1, 1), torch.zeros(1, 1)]))
    assert nothing_left(model)


def test_a_layer_that_is_left_out_after_another_is_refused() -> None:
    class Ending(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self[0](x) if x.mean() < 0.5 else super().forward(x)

    model = Ending(*steps())
    with pytest.raises(UnbackdoorError, match="does not run 2 where it did") as raised:
        list(in_step(model, ["0", "2"], [torch.ones(1, 1), torch.zeros(1, 1)]))
    assert "None" in str(raised.value) and nothing_left(model)


def test_a_layer_that_is_never_run_is_refused() -> None:
    model = Skipping(last=False)
    with pytest.raises(UnbackdoorError, match="does not run a where it did"):
        list(in_step(model, ["a"], [torch.zeros(1, 1)]))
    assert nothing_left(model)
