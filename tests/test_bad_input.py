"""Every bad input of the Python API has a message with cause, value and fix."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from conftest import NUM_CLASSES, Tiny, make_tiny
from unbackdoor import UnbackdoorError, purify
from unbackdoor.methods import AWM, METHODS, get_method

Change = Callable[[Tiny], tuple[object, ...]]


class Items(Dataset):
    def __init__(self, items: list[object]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> object:
        return self.items[index]


def spoiled(value: float, where: str) -> Change:
    def change(tiny: Tiny) -> tuple[object, ...]:
        tiny.model.state_dict()[where].view(-1)[0] = value
        return tiny.model, tiny.images, tiny.labels

    return change


def with_images(change: Callable[[Tensor], object]) -> Change:
    return lambda tiny: (tiny.model, change(tiny.images), tiny.labels)


def with_labels(change: Callable[[Tensor], object]) -> Change:
    return lambda tiny: (tiny.model, tiny.images, change(tiny.labels))


def with_model(change: Callable[[nn.Module], object]) -> Change:
    return lambda tiny: (change(tiny.model), tiny.images, tiny.labels)


def tied(tiny: Tiny) -> tuple[object, ...]:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 192), nn.Linear(192, 192), nn.Linear(192, 4))
    model[2].weight = model[1].weight
    return model, tiny.images, tiny.labels


def uncopyable(model: nn.Module) -> nn.Module:
    model.lock = threading.Lock()
    return model


CASES: dict[str, tuple[Change, str, str, str]] = {  # change, then what cause, value and fix must tell
    "no module": (with_model(lambda m: m.state_dict()), "must be a torch.nn.Module", "OrderedDict", "load"),
    "NaN weight": (
        spoiled(float("nan"), "3.weight"),
        "NaN or infinite values in '3.weight'",
        "1 of",
        "intact",
    ),
    "inf buffer": (
        spoiled(float("inf"), "1.running_var"),
        "infinite values in '1.running_var'",
        "1 of",
        "int",
    ),
    "tied weights": (tied, "tied", "1.weight and 2.weight", "clone()"),
    "nothing to mask": (with_model(lambda m: nn.Flatten()), "no convolution or linear", "Flatten", "Conv"),
    "cannot be copied": (with_model(uncopyable), "cannot be copied", "Sequential", "remove handles"),
    "not logits": (with_model(lambda m: m[:3]), "logits of shape (N, classes)", "(1, 6, 8, 8)", "wrap"),
    "one class": (with_model(lambda m: nn.Sequential(m, nn.Linear(4, 1))), "logits", "(1, 1)", "wrap"),
    "no labels": (with_labels(lambda y: None), "labels beside it", "NoneType", "purify(model"),
    "list of images": (with_images(lambda x: x.tolist()), "must be a float tensor", "list", "purify(model"),
    "flat images": (with_images(lambda x: x.flatten(1)), "shape (N, C, H, W)", "(8, 192)", "unsqueeze"),
    "no image": (with_images(lambda x: x[:0]), "at least one image", "(0, 3, 8, 8)", "unsqueeze"),
    "bytes": (with_images(lambda x: (x * 255).byte()), "floating point", "torch.uint8", "/ 255"),
    "beyond 1": (with_images(lambda x: x * 255), "lie in [0, 1]", "255", "Normalize"),
    "below 0": (with_images(lambda x: x - 0.5), "lie in [0, 1]", "[-0.5", "Normalize"),
    "NaN image": (with_images(lambda x: x * float("nan")), "lie in [0, 1]", "nan", "Normalize"),
    "channels": (with_images(lambda x: x[:, :1]), "does not take these images", "(8, 1, 8, 8)", "channels"),
    "label count": (with_labels(lambda y: y[:-1]), "one an image", "(7,) for 8", "(N,)"),
    "float labels": (with_labels(lambda y: y.float()), "integers", "torch.float32", "torch.arange"),
    "class count": (with_labels(lambda y: y + 6), f"in [0, {NUM_CLASSES})", "[6, 9]", "order of the model"),
    "negative label": (with_labels(lambda y: y - 1), f"in [0, {NUM_CLASSES})", "[-1, 2]", "starting at 0"),
    "labels twice": (
        lambda tiny: (tiny.model, TensorDataset(tiny.images, tiny.labels), tiny.labels),
        "labels were given beside a data set",
        "TensorDataset",
        "purify(model, dataset)",
    ),
    "empty data set": (
        lambda tiny: (tiny.model, TensorDataset(tiny.images[:0], tiny.labels[:0])),
        "no clean images",
        "empty",
        "at least one",
    ),
    "images of two sizes": (
        lambda tiny: (tiny.model, Items([(torch.rand(3, 8, 8), 0), (torch.rand(3, 9, 9), 1)])),
        "pairs of tensors of one size",
        "tuple",
        "resized",
    ),
    "no pairs": (
        lambda tiny: (tiny.model, Items([{"image": 1}])),
        "(image, label) pairs",
        "dict",
        "transform",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_message(case: str) -> None:
    change, cause, value, fix = CASES[case]
    with pytest.raises(UnbackdoorError) as caught:
        purify(*change(make_tiny("conv_bn")), method=AWM(epochs=0))
    assert cause in caught.value.cause
    assert value in str(caught.value.value)
    assert fix in caught.value.fix
    assert (
        str(caught.value) == f"{caught.value.cause}\n  got: {caught.value.value}\n  fix: {caught.value.fix}"
    )


def test_unknown_method_lists_the_valid_ones(conv_bn: Tiny) -> None:
    with pytest.raises(UnbackdoorError, match="unknown method") as caught:
        purify(conv_bn.model, conv_bn.images, conv_bn.labels, method="awn")
    assert caught.value.value == "'awn'" and all(name in caught.value.fix for name in METHODS)


def test_unknown_field_lists_the_valid_ones() -> None:
    with pytest.raises(UnbackdoorError) as caught:
        get_method("awm", alpha=0.9)
    assert "alpha" in caught.value.cause and "clean_weight" in caught.value.fix


def test_some_classes_may_be_missing(conv_bn: Tiny) -> None:
    report = purify(conv_bn.model, conv_bn.images[:2], conv_bn.labels[:2], method=AWM(epochs=0)).report
    assert (report.num_images, report.num_classes) == (2, NUM_CLASSES)
