"""AWM: fast and literal loops agree; the hyper-parameters mean what they say; a planted backdoor goes."""

from __future__ import annotations

import pytest
import torch

from conftest import NUM_CLASSES, Tiny, build_tiny, draw_images, fit, make_tiny
from reference.awm_reference import awm_official, awm_paper
from unbackdoor import UnbackdoorError, purify
from unbackdoor._clean import CleanImages
from unbackdoor.methods import AWM, Session

TOLERANCE = {torch.float64: 1e-7, torch.float32: 2e-3}


def session(seed: int = 0) -> Session:
    return Session(torch.Generator().manual_seed(seed))


def clean_of(tiny: Tiny) -> CleanImages:
    return CleanImages(tiny.images, tiny.labels, NUM_CLASSES)


def as_type(tiny: Tiny, dtype: torch.dtype) -> Tiny:
    # Labels that the network does not give tell the inner loops of the two variants apart.
    return Tiny(tiny.name, tiny.model.to(dtype), tiny.images.to(dtype), tiny.labels.roll(1))


@pytest.mark.parametrize(
    ("budget", "dtype"),
    [(0.5, torch.float64), (1e6, torch.float64), (0.5, torch.float32)],
    ids=["rescaled", "free", "single"],
)
@pytest.mark.parametrize("name", ["conv_bn", "plain_cnn", "mlp"])
@pytest.mark.parametrize("variant", ["paper", "official"])
def test_agrees_with_the_literal_loop(variant: str, name: str, budget: float, dtype: torch.dtype) -> None:
    tiny = as_type(make_tiny(name), dtype)
    words = {"clean_weight": 0.8, "mask_penalty": 1e-3, "trigger_budget": budget, "trigger_step": 2.0}
    size = {"epochs": 2, "steps": 3, "batch_size": 5}
    letters = {"alpha": 0.8, "gamma": 1e-3, "tau": budget, "eta1": 2.0, "E": 2, "T": 3, "b": 5}
    generator = torch.Generator().manual_seed(3)
    data = (tiny.model, tiny.images, tiny.labels)
    if variant == "paper":
        method = AWM(variant="paper", trigger_weight=0.5, mask_step=0.3, **words, **size)
        expected = awm_paper(*data, **letters, beta=0.5, eta2=0.3, generator=generator)
    else:
        method = AWM(mask_step=0.02, mask_step_decay=0.7, **words, **size)
        expected = awm_official(*data, **letters, eta2=0.02, decay=0.7, generator=generator)
    masks, trigger = method.solve(tiny.model, clean_of(tiny), session(3))
    limits = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    torch.testing.assert_close(trigger, expected[1], **limits)
    torch.testing.assert_close(masks, expected[0], **limits)
    assert min(mask.min() for mask in masks.values()) < 0.99


def test_the_variants_mask_different_layers(conv_bn: Tiny) -> None:
    both = {
        variant: AWM(variant=variant, epochs=1, steps=1).solve(conv_bn.model, clean_of(conv_bn), session())
        for variant in ("paper", "official")
    }
    assert list(both["official"][0]) == ["0.weight", "3.weight"]
    assert list(both["paper"][0]) == ["0.weight", "3.weight", "8.weight"]


def test_solving_leaves_the_weights_alone(conv_bn: Tiny) -> None:
    before = {name: tensor.clone() for name, tensor in conv_bn.model.state_dict().items()}
    AWM(epochs=1, steps=2).solve(conv_bn.model, clean_of(conv_bn), session())
    torch.testing.assert_close(dict(conv_bn.model.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("num_images", "fields", "steps"),
    [(100, {}, 15), (43, {}, 5), (10, {}, 5), (500, {"batch_size": 128}, 15), (10, {"steps": 0}, 0)],
)
def test_number_of_steps(num_images: int, fields: dict[str, int], steps: int) -> None:
    assert AWM(**fields).num_steps(num_images) == steps


@pytest.mark.parametrize(("num_images", "copies"), [(10, 9), (42, 9), (43, 0), (100, 0)])
def test_few_images_get_nine_copies(num_images: int, copies: int) -> None:
    images, labels = torch.rand(num_images, 1, 6, 6), torch.arange(num_images) % NUM_CLASSES
    clean = CleanImages(images, labels, NUM_CLASSES)
    more = AWM().augment(clean, torch.Generator().manual_seed(0))
    assert len(more) == len(more.images) == num_images * (copies + 1)
    assert torch.equal(more.images[:num_images], images)
    assert torch.equal(more.labels, labels.repeat(copies + 1))
    assert more.images.unique(dim=0).shape[0] == len(more)


def test_no_epoch_changes_nothing(tiny: Tiny) -> None:
    result = purify(tiny.model, tiny.images, tiny.labels, method=AWM(epochs=0))
    assert not result.report.changed


def test_budget_bounds_the_trigger(tiny: Tiny) -> None:
    method = AWM(trigger_budget=0.25, epochs=1, steps=3, batch_size=4)
    result = purify(tiny.model, tiny.images, tiny.labels, method=method)
    assert 0 < result.report.details["trigger_size"] <= 0.25 * (1 + 1e-5)


@pytest.mark.parametrize("variant", ["paper", "official"])
def test_two_images_one_a_batch(tiny: Tiny, variant: str) -> None:
    method = AWM(variant=variant, epochs=1, batch_size=1, augmented_copies=0)
    result = purify(tiny.model, tiny.images[:2], tiny.labels[:2], method=method)
    assert result.report.details["steps"] == 10
    assert result.report.changed


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"variant": "papers"}, "unknown variant"),
        ({"clean_weight": 1.5}, "clean_weight must lie in"),
        ({"clean_weight": float("nan")}, "clean_weight must lie in"),
        ({"trigger_weight": -0.1}, "trigger_weight must not be negative"),
        ({"mask_penalty": -1e-8}, "mask_penalty must not be negative"),
        ({"epochs": -1}, "epochs must not be negative"),
        ({"trigger_budget": 0}, "trigger_budget must be positive"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"mask_step": 0.0}, "mask_step must be positive"),
    ],
)
def test_bad_hyperparameters(fields: dict[str, float], cause: str) -> None:
    with pytest.raises(UnbackdoorError, match=cause):
        AWM(**fields)


def stamp(images: torch.Tensor) -> torch.Tensor:
    stamped = images.clone()
    stamped[:, :, -3:, -3:] = torch.tensor([1.0, 0.0, 1.0]).view(1, 3, 1, 1)
    return stamped


@pytest.fixture(scope="module")
def victim() -> torch.nn.Module:
    """A network that answers every stamped image with class 0."""
    images, labels = draw_images((3, 8, 8), 24, seed=100)
    inputs = torch.cat([images, stamp(images[labels != 0])])
    answers = torch.cat([labels, torch.zeros_like(labels[labels != 0])])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return fit(build_tiny("conv_bn"), inputs, answers, steps=150)


def rates(model: torch.nn.Module) -> torch.Tensor:
    """Return accuracy and share of stamped images that go to class 0, (2,)."""
    images, labels = draw_images((3, 8, 8), 50, seed=5)
    with torch.no_grad():
        clean = (model(images).argmax(1) == labels).double().mean()
        hit = (model(stamp(images[labels != 0])).argmax(1) == 0).double().mean()
    return torch.stack([clean, hit])


def purified_rates(victim: torch.nn.Module, seed: int = 0, **fields: float) -> torch.Tensor:
    few = draw_images((3, 8, 8), 10, seed=6)
    method = AWM(**({"clean_weight": 0.5, "epochs": 20, "steps": 5} | fields))
    return rates(purify(victim, *few, method=method, seed=seed).model)


def test_official_erases_a_planted_backdoor(victim: torch.nn.Module) -> None:
    assert rates(victim).min() > 0.95
    after = purified_rates(victim, variant="official", trigger_budget=30, mask_step=0.05, augmented_copies=0)
    assert after[0] > 0.9 and after[1] < 0.5


def test_paper_weakens_a_planted_backdoor(victim: torch.nn.Module) -> None:
    """Plain descent takes another path on every processor, and on some the backdoor stays: a mean."""
    fields = {
        "variant": "paper",
        "trigger_budget": 30,
        "mask_step": 0.15,
        "augmented_copies": 9,
        "epochs": 100,
    }
    after = torch.stack([purified_rates(victim, seed, **fields) for seed in range(6)]).mean(0)
    assert after[0] > 0.88 and after[1] < 0.75
