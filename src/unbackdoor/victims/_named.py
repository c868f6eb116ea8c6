"""The named set: victims of many attacks, networks and data sets, short enough to train on a CPU.

The recipes are short on purpose (minutes each on one core). For the accuracies of the literature give more
epochs: ``unbackdoor attack --epochs 60``.
"""

from __future__ import annotations

from typing import Any

from unbackdoor.attacks._recipe import Recipe
from unbackdoor.victims._spec import VictimSpec, default_recipe


def _short(data: str, epochs: int, **changes: Any) -> Recipe:
    fields = default_recipe(data).fields() | {"epochs": epochs} | changes
    return Recipe(**fields)


def _cifar(epochs: int = 3, **fields: Any) -> VictimSpec:
    return VictimSpec(data="cifar10", recipe=_short("cifar10", epochs), **fields)


def _gtsrb(epochs: int = 4, **fields: Any) -> VictimSpec:
    return VictimSpec(data="gtsrb", recipe=_short("gtsrb", epochs), **fields)


def _fashion(epochs: int = 4, **fields: Any) -> VictimSpec:
    return VictimSpec(data="fashion_mnist", recipe=_short("fashion_mnist", epochs), **fields)


NAMED: dict[str, VictimSpec] = {
    "cifar10-small_vgg-clean": _cifar(),
    "gtsrb-small_vgg-clean": _gtsrb(),
    "fashion_mnist-wrn_16_1-badnets": _fashion(arch="wrn_16_1", attack="badnets"),
    "cifar10-small_vgg-blend": _cifar(attack="blend"),
    "gtsrb-small_vgg-wanet": _gtsrb(6, attack="wanet"),
    "cifar10-small_vgg-sig": _cifar(attack="sig", clean_label=True, poison_rate=0.8),
    "cifar10-small_vgg-badnets-all_to_all": _cifar(5, attack="badnets", all_to_all=True),
    "gtsrb-small_vgg-ftrojan": _gtsrb(attack="ftrojan"),
    "gtsrb-wrn_16_1-bpp": _gtsrb(arch="wrn_16_1", attack="bpp"),
    "gtsrb-resnet_20-low_frequency": _gtsrb(arch="resnet_20", attack="low_frequency"),
    "cifar10-wrn_16_1-trojan_square-1_percent": _cifar(
        arch="wrn_16_1", attack="trojan_square", poison_rate=0.01
    ),
    "gtsrb-plain_cnn-trojan_watermark": VictimSpec(
        data="gtsrb",
        arch="plain_cnn",
        attack="trojan_watermark",
        recipe=_short("gtsrb", 6, learning_rate=0.02),
    ),
    "gtsrb-small_vgg-input_aware": _gtsrb(6, attack="input_aware", fields={"mask_epochs": 3, "width": 16}),
    "cifar10-small_vgg-adaptive_blend": _cifar(attack="adaptive_blend", poison_rate=0.01),
    "cifar10-small_vgg-clean_label": _cifar(
        attack="badnets",
        fields={"corner": "all"},
        clean_label=True,
        poison_rate=0.5,
        adversarial_eps=16 / 255,
        surrogate="cifar10-small_vgg-clean",
    ),
    "gtsrb-small_vgg-trojan_nn": _gtsrb(attack="trojan_nn", surrogate="gtsrb-small_vgg-clean"),
}
"""Every victim by its name, in the order they are built: a surrogate before the victims that need it."""
