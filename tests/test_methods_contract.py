"""One table of every registered method: what any of them owes its caller, on tiny networks."""

from __future__ import annotations

import ast
import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import unbackdoor
from unbackdoor import purify
from unbackdoor.methods import METHODS, Method

CLASSES = 3
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Residual(nn.Module):
    """Functional activations and a skip connection: nothing of it shows in the list of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.norm(self.first(images)))
        features = torch.relu(features + self.second(features))
        return self.head(features.mean((2, 3)))


class Attention(nn.Module):
    """Tokens, layer normalisation and torch's fused attention: no convolution, no BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(7, 8)
        self.norm = nn.LayerNorm(8)
        self.mix = nn.Linear(8, 24)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        query, key, value = self.mix(self.norm(self.embed(images))).chunk(3, dim=-1)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.head(mixed.mean((1, 2)))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(4 * 4 * 3, CLASSES),
    )


def without_normalisation() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 3, 3, stride=2),
        nn.ELU(),
        nn.Flatten(),
        nn.Linear(18, CLASSES),
    )


def single_layer() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(63, CLASSES))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(63, 6), nn.ReLU(), nn.Linear(6, CLASSES))


NETWORKS = {
    "convolutional": convolutional,
    "without_normalisation": without_normalisation,
    "residual": Residual,
    "attention": Attention,
    "perceptron": perceptron,
    "single_layer": single_layer,
}


def quick(name: str, **fields: object) -> Method:
    """Return the method with every count of steps cut to two."""
    defaults = METHODS[name]().fields()
    counts = ("num_", "epochs", "steps", "least_steps")
    cut = {n: min(v, 2) for n, v in defaults.items() if n.startswith(counts) and type(v) is int}
    return METHODS[name](**{**cut, **{n: v for n, v in fields.items() if n in defaults}})


def build(network: str) -> nn.Module:
    torch.manual_seed(1)
    return NETWORKS[network]().eval()


def draw(count: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images of odd, unequal height and width, and labels."""
    images = torch.rand(count, 1, 9, 7, generator=torch.Generator().manual_seed(2))
    return images, torch.arange(count) % CLASSES


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(two)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def count_hooks(model: nn.Module) -> int:
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in HOOKS)


@pytest.fixture(params=sorted(METHODS))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_input_untouched_and_plain_model_back(name: str, network: str) -> None:
    model = build(network)
    before, random_state = state(model), torch.get_rng_state()
    result = purify(model, *draw(), method=quick(name))
    assert_same(state(model), before)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(p.requires_grad and p.grad is None for m in (model, result.model) for p in m.parameters())
    after = result.model.state_dict()
    assert list(after) == list(before) and type(result.model) is type(model)
    assert [n for n, _ in result.model.named_parameters()] == [n for n, _ in model.named_parameters()]
    assert [n for n, _ in result.model.named_modules()] == [n for n, _ in model.named_modules()]
    assert all(after[n].dtype == t.dtype and after[n].shape == t.shape for n, t in before.items())
    assert count_hooks(model) == count_hooks(result.model) == 0
    build(network).load_state_dict(after, strict=True)


def test_same_seed_same_result(name: str) -> None:
    model = build("convolutional")
    results = []
    for noise in (7, 8):
        torch.manual_seed(noise)
        results.append(purify(model, *draw(), method=quick(name), seed=3))
    assert_same(state(results[0].model), state(results[1].model))
    assert results[0].report.details == results[1].report.details


@pytest.mark.parametrize("train", [False, True])
def test_modes_and_frozen_parameters_come_back(name: str, train: bool) -> None:
    model = build("convolutional").train(train)
    model[1].train(not train)
    model[0].weight.requires_grad_(False)
    before = state(model)
    result = purify(model, *draw(), method=quick(name)).model
    assert_same(state(model), before)
    assert [m.training for m in result.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in result.parameters()] == [p.requires_grad for p in model.parameters()]


def test_callers_mode_does_not_change_the_result(name: str) -> None:
    results = [
        purify(build("convolutional").train(t), *draw(), method=quick(name)).model for t in (False, True)
    ]
    assert_same(*map(state, results))


@pytest.mark.parametrize("network", ["convolutional", "without_normalisation"])
@pytest.mark.parametrize("count", [1, 2])
def test_one_and_two_images(name: str, network: str, count: int) -> None:
    result = purify(build(network), *draw(count), method=quick(name))
    assert all(torch.isfinite(t).all() for t in result.model.state_dict().values())


def test_batches_of_one(name: str) -> None:
    purify(build("convolutional"), *draw(3), method=quick(name, batch_size=1))


def test_other_precision_stays(name: str) -> None:
    images, labels = draw()
    result = purify(build("convolutional").double(), images, labels, method=quick(name)).model
    assert result[0].weight.dtype == torch.float64


def test_record_is_plain_and_makes_the_method_again(name: str) -> None:
    method = quick(name)
    report = purify(build("perceptron"), *draw(), method=method).report
    fields = json.loads(json.dumps(report.to_dict()))["hyperparameters"]
    assert METHODS[report.method](**fields) == method


def test_progress_is_told_in_order(name: str) -> None:
    ticks = []
    purify(build("convolutional"), *draw(), method=quick(name), progress=ticks.append)
    assert ticks
    assert all(1 <= tick.step <= tick.total for tick in ticks)


def test_an_interrupted_run_leaves_the_model_alone(name: str) -> None:
    model = build("convolutional")
    before, original = state(model), copy.deepcopy(model)

    def stop(_tick: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        purify(model, *draw(), method=quick(name), progress=stop)
    assert_same(state(model), before)
    assert count_hooks(model) == 0
    assert [m.training for m in model.modules()] == [m.training for m in original.modules()]


def test_methods_know_neither_attacks_nor_metrics() -> None:
    """No defence can see a trigger, a target, a metric or a test split, because it imports none."""
    root = Path(unbackdoor.__file__).parent
    files = [file for folder in ("methods", "recover") for file in (root / folder).rglob("*.py")]
    assert files
    for file in files:
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        modules = {n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)}
        modules |= {alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names}
        banned = ("unbackdoor.attacks", "unbackdoor._evaluate", "unbackdoor.data", "unbackdoor.bench")
        assert not [module for module in modules if module.startswith(banned)], file.name
