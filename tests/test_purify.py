"""``purify``: the input is never touched, the output is a plain model, the seed decides."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from conftest import Tiny, make_tiny
from unbackdoor import Normalize, Purified, UnbackdoorError, purify
from unbackdoor._clean import CleanImages
from unbackdoor._repeatable import repeatable
from unbackdoor.methods import AWM, Method, Progress, Session

QUICK = AWM(epochs=2, steps=2, batch_size=4, trigger_step=1.0)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, kw_only=True)
class Vandal(Method):
    """Ruin everything within reach, then raise."""

    name: ClassVar[str] = "vandal"
    error: type[BaseException] | None = None

    def run(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
        model.train().requires_grad_(False)
        for tensor in model.state_dict().values():
            tensor.zero_()
        clean.images.zero_()
        clean.labels.zero_()
        torch.rand(3)
        if self.error:
            raise self.error
        return {}


def picture(model: nn.Module) -> dict[str, Any]:
    """Everything about a model that must be kept, by value."""
    return {
        "state": [(name, t.clone(), t.dtype) for name, t in model.state_dict().items()],
        "modules": [(name, type(m), m.training) for name, m in model.named_modules()],
        "flags": [(name, p.requires_grad, p.grad) for name, p in model.named_parameters()],
        "objects": [id(t) for t in [*model.parameters(), *model.buffers()]],
        "hooks": [len(getattr(m, kind)) for m in model.modules() for kind in HOOKS],
    }


def assert_untouched(before: dict[str, Any], model: nn.Module) -> None:
    now = picture(model)
    for (name, old, dtype), (new_name, new, new_dtype) in zip(before["state"], now["state"], strict=True):
        assert (name, dtype) == (new_name, new_dtype) and torch.equal(old, new)
    assert all(before[part] == now[part] for part in ("modules", "flags", "objects", "hooks"))


def interrupt(tick: Progress) -> None:
    raise KeyboardInterrupt


def refuse(tick: Progress) -> None:
    raise OSError("disk full")


OUTCOMES: dict[str, tuple[Method | str, Callable[[Progress], None] | None, type[BaseException] | None]] = {
    "success": (QUICK, None, None),
    "vandal": (Vandal(), None, None),
    "unknown method": ("awn", None, UnbackdoorError),
    "crash in the middle": (Vandal(error=RuntimeError), None, RuntimeError),
    "interrupt in the middle": (Vandal(error=KeyboardInterrupt), None, KeyboardInterrupt),
    "interrupt in progress": (QUICK, interrupt, KeyboardInterrupt),
    "crash in progress": (QUICK, refuse, OSError),
}


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_the_input_is_never_touched(conv_bn: Tiny, outcome: str) -> None:
    method, progress, error = OUTCOMES[outcome]
    conv_bn.model.train()[1].eval()
    conv_bn.model[0].bias.requires_grad_(False)
    before, random = picture(conv_bn.model), torch.get_rng_state()
    images, labels = conv_bn.images.clone(), conv_bn.labels.clone()
    arguments = {"method": method, "progress": progress}
    if error is None:
        purify(conv_bn.model, conv_bn.images, conv_bn.labels, **arguments)
    else:
        with pytest.raises(error):
            purify(conv_bn.model, conv_bn.images, conv_bn.labels, **arguments)
    assert_untouched(before, conv_bn.model)
    assert torch.equal(images, conv_bn.images) and torch.equal(labels, conv_bn.labels)
    assert torch.equal(random, torch.get_rng_state())


def test_bad_images_leave_the_input_alone(conv_bn: Tiny) -> None:
    before = picture(conv_bn.model.train())
    with pytest.raises(UnbackdoorError):
        purify(conv_bn.model, conv_bn.images[:, :2], conv_bn.labels)
    assert_untouched(before, conv_bn.model)


def test_the_output_is_a_plain_model_of_the_same_kind(tiny: Tiny) -> None:
    tiny.model.train()[1].eval()
    next(tiny.model.parameters()).requires_grad_(False)
    before = picture(tiny.model)
    result = purify(tiny.model, tiny.images, tiny.labels, method=QUICK)
    assert isinstance(result, Purified) and type(result.model) is type(tiny.model)
    after = picture(result.model)
    for part in ("modules", "flags", "hooks"):
        assert after[part] == before[part]
    keys = [[(name, t.shape, dtype) for name, t, dtype in side["state"]] for side in (before, after)]
    assert keys[0] == keys[1]
    tiny.model.load_state_dict(result.model.state_dict(), strict=True)
    pairs = zip(before["state"], after["state"], strict=True)
    assert any(not torch.equal(old[1], new[1]) for old, new in pairs) and result.report.changed
    assert not set(before["objects"]) & set(after["objects"])


def state_after(tiny: Tiny, seed: int) -> list[Tensor]:
    result = purify(tiny.model, tiny.images, tiny.labels, method=QUICK, seed=seed)
    return list(result.model.state_dict().values())


def test_the_seed_decides(tiny: Tiny) -> None:
    first = state_after(tiny, seed=0)
    torch.rand(5)
    again, other = state_after(tiny, seed=0), state_after(tiny, seed=1)
    assert all(map(torch.equal, first, again))
    assert not all(map(torch.equal, first, other))


class Stream(IterableDataset):
    def __init__(self, tiny: Tiny):
        self.tiny = tiny

    def __iter__(self):
        return zip(self.tiny.images, self.tiny.labels.tolist(), strict=True)


@pytest.mark.parametrize("kind", ["dataset", "loader", "stream", "stream_loader", "shuffled_loader"])
def test_data_sets_and_loaders(conv_bn: Tiny, kind: str) -> None:
    pairs = TensorDataset(conv_bn.images, conv_bn.labels)
    source = {
        "dataset": lambda: pairs,
        "loader": lambda: DataLoader(pairs, batch_size=3),
        "stream": lambda: Stream(conv_bn),
        "stream_loader": lambda: DataLoader(Stream(conv_bn), batch_size=3),
        "shuffled_loader": lambda: DataLoader(pairs, batch_size=3, shuffle=True),
    }[kind]()
    random = torch.get_rng_state()
    result = list(purify(conv_bn.model, source, method=QUICK).model.state_dict().values())
    assert torch.equal(random, torch.get_rng_state())
    torch.rand(5)
    again = list(purify(conv_bn.model, source, method=QUICK).model.state_dict().values())
    assert all(map(torch.equal, result, again))
    if kind != "shuffled_loader":
        assert all(map(torch.equal, result, state_after(conv_bn, seed=0)))


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_double_precision_stays(variant: str) -> None:
    tiny = make_tiny("conv_bn")
    method = AWM(variant=variant, epochs=1, steps=1)
    result = purify(tiny.model.double(), tiny.images, tiny.labels, method=method)
    assert {p.dtype for p in result.model.parameters()} == {torch.float64}


def test_works_where_gradients_are_off(conv_bn: Tiny) -> None:
    expected = state_after(conv_bn, seed=0)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            tiny = make_tiny("conv_bn")
            found = state_after(tiny, seed=0)
        assert all(map(torch.equal, expected, found))


def test_the_report_tells_what_was_done(conv_bn: Tiny) -> None:
    ticks: list[Progress] = []
    report = purify(
        conv_bn.model, conv_bn.images, conv_bn.labels, method=QUICK, seed=3, progress=ticks.append
    ).report
    assert (report.method, report.seed, report.num_images, report.num_classes) == ("awm", 3, 8, 4)
    assert report.hyperparameters == QUICK.fields() and report.seconds > 0
    assert [(tick.step, tick.total) for tick in ticks] == [(1, 2), (2, 2)]
    changed = {layer.name for layer in report.layers if layer.changed}
    assert changed == {"0.weight", "3.weight"}
    assert json.loads(json.dumps(report.to_dict()))["details"]["steps"] == 2


def test_the_report_measures_the_given_images(conv_bn: Tiny) -> None:
    report = purify(conv_bn.model, conv_bn.images, conv_bn.labels, method=Vandal()).report
    with torch.no_grad():
        right = (conv_bn.model(conv_bn.images).argmax(1) == conv_bn.labels).double().mean().item()
    assert report.accuracy_before == right


def test_a_method_that_diverges_hands_nothing_back(conv_bn: Tiny) -> None:
    class Diverging(Vandal):
        def run(self, model: nn.Module, clean: CleanImages, session: Session) -> dict[str, Any]:
            model.get_parameter("0.weight").data.fill_(float("nan"))
            return {}

    with pytest.raises(RuntimeError, match="0.weight"):
        purify(conv_bn.model, conv_bn.images, conv_bn.labels, method=Diverging())


def test_normalisation_belongs_to_the_model(conv_bn: Tiny) -> None:
    layer = Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    wrapped = layer.wrap(conv_bn.model)
    assert wrapped[1] is conv_bn.model
    assert list(wrapped.state_dict()) == [f"1.{key}" for key in conv_bn.model.state_dict()]
    expected = conv_bn.model((conv_bn.images - layer.mean) / layer.std)
    assert torch.equal(wrapped(conv_bn.images), expected)
    result = purify(wrapped, conv_bn.images, conv_bn.labels, method=QUICK)
    conv_bn.model.load_state_dict(result.model[1].state_dict(), strict=True)


@pytest.mark.parametrize("arguments", [([0.5], [0.5, 0.5]), ([], []), ([0.5], [0.0])])
def test_normalize_refuses(arguments: tuple[list[float], list[float]]) -> None:
    with pytest.raises(UnbackdoorError, match="std"):
        Normalize(*arguments)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_only_a_gpu_is_asked_for_repeatable_algorithms_and_the_callers_choice_comes_back(kind: str) -> None:
    with pytest.raises(KeyboardInterrupt), repeatable(torch.device(kind)):
        assert torch.are_deterministic_algorithms_enabled() is (kind == "cuda")
        raise KeyboardInterrupt
    assert not torch.are_deterministic_algorithms_enabled()
