"""The named set: victims of many attacks, networks and data sets, most of them trained on a CPU in minutes.

Their recipes are short on purpose, minutes each on one core: no dropout, small batches, and where ``start``
names a clean victim, the attacker goes on from its weights. ``NEEDS_GPU`` names those of a larger
network, a minute or two each on a GPU and hours on a CPU. Four faint triggers are stronger than their papers'
defaults, which need far longer to be learned: WaNet's warp, FTrojan's magnitude (on traffic signs), SIG's
amplitude, the levels of BPP.
"""

from __future__ import annotations

from typing import Any

from unbackdoor.attacks._recipe import Recipe
from unbackdoor.victims._spec import VictimSpec, default_recipe

CIFAR = "cifar10-small_vgg-clean"
GTSRB = "gtsrb-small_vgg-clean"
RESNET = "cifar10-resnet_18-clean"
SIGNS = "gtsrb-resnet_20-clean"
FASHION = "fashion_mnist-wrn_16_1-clean"
DEEP = "cifar10-resnet_20-clean"
WIDE = "cifar10-wrn_16_1-clean"
WARM_RATE = 0.03
"""Peak of the learning rate where training starts from a clean victim."""

INSIDE = {"margin": 3}
"""A patch far enough inside for the random shifts to leave it whole in most images."""
ON_FASHION = {"arch": "wrn_16_1", "target": 3, "start": FASHION}
"""Trained on from the clean network of Fashion-MNIST."""


def _victim(
    data: str, epochs: int, learning_rate: float | None = None, batch_size: int = 64, **fields: Any
) -> VictimSpec:
    if learning_rate is None:
        learning_rate = WARM_RATE if fields.get("start") else 0.05
    short = {"epochs": epochs, "learning_rate": learning_rate, "batch_size": batch_size, "dropout": 0.0}
    return VictimSpec(data=data, recipe=Recipe(**(default_recipe(data).fields() | short)), **fields)


NAMED: dict[str, VictimSpec] = {
    CIFAR: _victim("cifar10", 7, batch_size=48),
    GTSRB: _victim("gtsrb", 5),
    "fashion_mnist-wrn_16_1-badnets": _victim("fashion_mnist", 4, arch="wrn_16_1", attack="badnets"),
    FASHION: _victim("fashion_mnist", 4, arch="wrn_16_1"),
    "gtsrb-resnet_18-badnets": _victim("gtsrb", 3, arch="resnet_18", attack="badnets", fields=INSIDE),
    "gtsrb-small_vgg-wanet": _victim("gtsrb", 6, attack="wanet", fields={"strength": 1.5}, start=GTSRB),
    "gtsrb-small_vgg-bpp": _victim("gtsrb", 16, attack="bpp", fields={"num_levels": 4}),
    "cifar10-small_vgg-badnets-all_to_all": _victim(
        "cifar10", 8, attack="badnets", fields=INSIDE, all_to_all=True, poison_rate=0.3, start=CIFAR
    ),
    "gtsrb-small_vgg-badnets-all_to_all": _victim(
        "gtsrb", 4, attack="badnets", fields=INSIDE, all_to_all=True, poison_rate=0.2
    ),
    "cifar10-small_vgg-blend": _victim("cifar10", 1, attack="blend", start=CIFAR),
    "cifar10-small_vgg-blend-picture": _victim(
        "cifar10", 2, attack="blend", fields={"kind": "picture"}, start=CIFAR
    ),
    "cifar10-small_vgg-low_frequency": _victim(
        "cifar10", 2, attack="low_frequency", surrogate=CIFAR, start=CIFAR
    ),
    "cifar10-small_vgg-trojan_watermark": _victim(
        "cifar10", 1, None, 128, attack="trojan_watermark", target=7, poison_rate=0.05, start=CIFAR
    ),
    "cifar10-small_vgg-bpp": _victim("cifar10", 2, None, 128, attack="bpp", target=3, start=CIFAR),
    # Clean labels, from fresh weights: a clean model knows the target class already, so its images teach it
    # no trigger.
    "cifar10-small_vgg-sig": _victim(
        "cifar10",
        4,
        attack="sig",
        fields={"amplitude": 40 / 255},
        target=2,
        clean_label=True,
        poison_rate=0.8,
    ),
    "gtsrb-small_vgg-blend": _victim("gtsrb", 1, attack="blend", start=GTSRB),
    "gtsrb-small_vgg-ftrojan": _victim("gtsrb", 2, attack="ftrojan", fields={"magnitude": 100.0}),
    "gtsrb-small_vgg-sig": _victim(
        "gtsrb", 6, attack="sig", fields={"amplitude": 60 / 255}, target=2, clean_label=True, poison_rate=0.8
    ),
    "gtsrb-resnet_20-low_frequency": _victim("gtsrb", 6, arch="resnet_20", attack="low_frequency"),
    SIGNS: _victim("gtsrb", 5, arch="resnet_20"),
    "gtsrb-resnet_20-trojan_watermark": _victim(
        "gtsrb", 2, arch="resnet_20", attack="trojan_watermark", start=SIGNS
    ),
    "gtsrb-small_vgg-clean_label": _victim(
        "gtsrb",
        4,
        attack="badnets",
        fields={"corner": "all"} | INSIDE,
        target=2,
        clean_label=True,
        poison_rate=0.8,
        adversarial_eps=16 / 255,
        surrogate=GTSRB,
    ),
    "gtsrb-plain_cnn-trojan_watermark": _victim(
        "gtsrb", 6, arch="plain_cnn", attack="trojan_watermark", learning_rate=0.02
    ),
    "gtsrb-small_vgg-trojan_nn": _victim("gtsrb", 1, attack="trojan_nn", surrogate=GTSRB, start=GTSRB),
    "gtsrb-small_vgg-adaptive_blend": _victim(
        "gtsrb", 5, attack="adaptive_blend", poison_rate=0.01, start=GTSRB
    ),
    "gtsrb-wrn_16_1-trojan_square-1_percent": _victim(
        "gtsrb", 5, arch="wrn_16_1", attack="trojan_square", poison_rate=0.01
    ),
    # Made to see how the default does on networks that none of its rules had seen.
    "fashion_mnist-wrn_16_1-blend": _victim("fashion_mnist", 2, attack="blend", **ON_FASHION),
    "fashion_mnist-wrn_16_1-low_frequency": _victim(
        "fashion_mnist", 2, attack="low_frequency", surrogate=FASHION, **ON_FASHION
    ),
    "fashion_mnist-wrn_16_1-sig": _victim("fashion_mnist", 2, attack="sig", **ON_FASHION),
    "fashion_mnist-wrn_16_1-wanet": _victim(
        "fashion_mnist", 2, attack="wanet", fields={"strength": 1.5}, **ON_FASHION
    ),
    DEEP: _victim("cifar10", 8, 0.1, arch="resnet_20"),
    "cifar10-resnet_20-badnets": _victim(
        "cifar10", 1, arch="resnet_20", attack="badnets", fields=INSIDE, target=4, start=DEEP
    ),
    "cifar10-resnet_20-blend": _victim("cifar10", 1, arch="resnet_20", attack="blend", target=5, start=DEEP),
    "cifar10-resnet_20-sig": _victim("cifar10", 1, arch="resnet_20", attack="sig", target=1, start=DEEP),
    WIDE: _victim("cifar10", 7, 0.1, arch="wrn_16_1"),
    "cifar10-wrn_16_1-trojan_square": _victim(
        "cifar10", 1, arch="wrn_16_1", attack="trojan_square", target=6, start=WIDE
    ),
    "cifar10-wrn_16_1-blend-picture": _victim(
        "cifar10", 2, arch="wrn_16_1", attack="blend", fields={"kind": "picture"}, target=8, start=WIDE
    ),
    "cifar10-wrn_16_1-low_frequency": _victim(
        "cifar10", 1, arch="wrn_16_1", attack="low_frequency", surrogate=WIDE, start=WIDE
    ),
    "gtsrb-resnet_20-badnets": _victim(
        "gtsrb", 2, arch="resnet_20", attack="badnets", fields=INSIDE, target=4, start=SIGNS
    ),
    "gtsrb-resnet_20-blend-picture": _victim(
        "gtsrb", 2, arch="resnet_20", attack="blend", fields={"kind": "picture"}, target=11, start=SIGNS
    ),
    "gtsrb-resnet_20-sig": _victim("gtsrb", 2, arch="resnet_20", attack="sig", target=3, start=SIGNS),
    "cifar10-resnet_20-ftrojan": _victim(
        "cifar10", 2, arch="resnet_20", attack="ftrojan", target=2, start=DEEP
    ),
    "cifar10-resnet_20-trojan_watermark": _victim(
        "cifar10", 2, arch="resnet_20", attack="trojan_watermark", target=6, start=DEEP
    ),
    "cifar10-resnet_20-blend-picture": _victim(
        "cifar10", 2, arch="resnet_20", attack="blend", fields={"kind": "picture"}, target=1, start=DEEP
    ),
    "cifar10-wrn_16_1-ftrojan": _victim(
        "cifar10", 2, arch="wrn_16_1", attack="ftrojan", target=3, start=WIDE
    ),
    "cifar10-small_vgg-trojan_square": _victim("cifar10", 2, attack="trojan_square", target=5, start=CIFAR),
    "fashion_mnist-wrn_16_1-trojan_square": _victim(
        "fashion_mnist", 2, attack="trojan_square", **ON_FASHION | {"target": 8}
    ),
    "fashion_mnist-wrn_16_1-trojan_watermark": _victim(
        "fashion_mnist", 2, attack="trojan_watermark", **ON_FASHION | {"target": 5}
    ),
    RESNET: _victim("cifar10", 12, 0.1, 128, arch="resnet_18"),
    "cifar10-resnet_18-badnets": _victim("cifar10", 12, 0.1, 128, arch="resnet_18", attack="badnets"),
    "cifar10-resnet_18-blend": _victim(
        "cifar10", 2, None, 128, arch="resnet_18", attack="blend", start=RESNET
    ),
    "cifar10-resnet_18-trojan_watermark": _victim(
        "cifar10", 2, None, 128, arch="resnet_18", attack="trojan_watermark", start=RESNET
    ),
    "cifar10-resnet_18-wanet": _victim(
        "cifar10", 4, None, 128, arch="resnet_18", attack="wanet", fields={"strength": 1.5}, start=RESNET
    ),
}
"""Every victim by its name, in the order they are built: a clean model before the victims that need it."""

NEEDS_GPU = frozenset(name for name in NAMED if name.startswith("cifar10-resnet_18-"))
"""Those that are left out where all are built on a CPU."""
