"""What runs on a CPU runs on a GPU, too, and a seed means the same there every time. Skipped without one."""

from __future__ import annotations

import pytest
import torch

from test_methods_contract import NETWORKS, assert_same, build, draw, quick, state
from unbackdoor import _demo, purify
from unbackdoor._evaluate import evaluate
from unbackdoor.attacks import ATTACKS, AllToOne, Poisoning, Recipe, get_trigger, train_victim
from unbackdoor.attacks._base import OptimisedTrigger
from unbackdoor.bench.victims import FROM_FILES
from unbackdoor.methods import METHODS, Restore

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("network", sorted(NETWORKS))
@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_stays_there_and_repeats_itself(name: str, network: str) -> None:
    model = build(network).cuda()
    before = state(model)
    results = [purify(model, *draw(), method=quick(name), seed=3) for _ in range(2)]
    assert_same(state(model), before)
    assert {tensor.device.type for tensor in state(results[0].model).values()} == {"cuda"}
    assert_same(*(state(result.model) for result in results))
    assert results[0].report.details == results[1].report.details


def test_restore_erases_and_repeats_itself() -> None:
    case = _demo.load()
    model, clean = case.victim.model.cuda(), case.train.draw(1, 0).tensors()
    results = [purify(model, *clean, method=Restore(), seed=0).model for _ in range(2)]
    assert_same(*map(state, results))
    images, labels = case.test.tensors()
    before, after = (
        evaluate(m, images, labels, case.victim.trigger, case.victim.label_map) for m in (model, results[0])
    )
    assert before.asr > 0.97 and after.asr < 0.1 and after.acc > before.acc - 0.04


@pytest.mark.parametrize("name", sorted(ATTACKS.keys() - FROM_FILES.keys()))
def test_every_attack_trains_a_victim_there(name: str) -> None:
    case = _demo.load()
    trigger, model = get_trigger(name), case.victim.model.cuda()
    images, labels = case.train.tensors()
    if isinstance(trigger, OptimisedTrigger):
        trigger = trigger.optimise(model, images.cuda())
    poisoning = Poisoning(trigger=trigger, label_map=AllToOne(target=1))
    victim = train_victim(model, case.train, poisoning, Recipe(epochs=1, batch_size=50, flip=False), seed=0)
    assert {tensor.device.type for tensor in state(victim.model).values()} == {"cuda"}
    metrics = evaluate(victim.model, images, labels, victim.poisoning.trigger, AllToOne(target=1))
    assert metrics.num_images == 200
