"""Triggers, label maps and the making of backdoored victims: to measure a defence against."""

from __future__ import annotations

import dataclasses
from typing import Any

from unbackdoor._errors import UnbackdoorError, unknown_name
from unbackdoor.attacks._base import OptimisedTrigger, TrainableTrigger, Trigger
from unbackdoor.attacks._labels import AllToAll, AllToOne, LabelMap, SourceSpecific
from unbackdoor.attacks._poison import Poisoning
from unbackdoor.attacks._recipe import Recipe
from unbackdoor.attacks._train import TrainedVictim, train_victim
from unbackdoor.attacks.adaptive import AdaptiveBlend, AdaptivePatch
from unbackdoor.attacks.badnets import BadNets
from unbackdoor.attacks.blend import Blend
from unbackdoor.attacks.bpp import BPP
from unbackdoor.attacks.clean_label import perturb_adversarially
from unbackdoor.attacks.fixed import Additive, MaskPattern, Patch, trigger_from_spec
from unbackdoor.attacks.ftrojan import FTrojan
from unbackdoor.attacks.input_aware import InputAware
from unbackdoor.attacks.invisible import L0Inv, L2Inv
from unbackdoor.attacks.low_frequency import LowFrequency
from unbackdoor.attacks.sig import SIG
from unbackdoor.attacks.trojan import TrojanSquare, TrojanWatermark
from unbackdoor.attacks.trojan_nn import TrojanNN
from unbackdoor.attacks.wanet import WaNet

ATTACKS: dict[str, type[Trigger]] = {
    trigger.name: trigger
    for trigger in (
        BadNets,
        Blend,
        TrojanSquare,
        TrojanWatermark,
        L0Inv,
        L2Inv,
        WaNet,
        SIG,
        LowFrequency,
        FTrojan,
        BPP,
        InputAware,
        AdaptiveBlend,
        AdaptivePatch,
        TrojanNN,
        Patch,
        Additive,
        MaskPattern,
    )
}
"""Every trigger by its registry name."""


def get_trigger(name: str, **fields: Any) -> Trigger:
    """Build a trigger by its registry name.

    Args:
        name: a key of ``ATTACKS``.
        fields: hyper-parameters; those not given have the paper's defaults.

    Raises:
        UnbackdoorError: unknown name or field (the valid ones are listed), or a value out of range.

    >>> get_trigger("sig", frequency=3.0).fields()["frequency"]
    3.0
    """
    if name not in ATTACKS:
        raise unknown_name("attack", name, list(ATTACKS))
    kind = ATTACKS[name]
    valid = {field.name: field for field in dataclasses.fields(kind)}
    required = [field.name for field in valid.values() if field.default is dataclasses.MISSING]
    wrong = [field for field in fields if field not in valid]
    if wrong:
        raise UnbackdoorError(
            f"unknown field of {name}", value=", ".join(wrong), fix=f"use one of: {', '.join(valid)}"
        )
    if not fields.keys() >= set(required):
        raise UnbackdoorError(
            f"{name} needs fields that were not given",
            value=sorted(fields),
            fix=f"give {', '.join(required)}",
        )
    return kind(**{field: _tuples(value) for field, value in fields.items()})


def _tuples(value: Any) -> Any:
    """Return lists, as a JSON record has them, as the tuples that the fields hold."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


__all__ = [
    "ATTACKS",
    "BPP",
    "SIG",
    "AdaptiveBlend",
    "AdaptivePatch",
    "Additive",
    "AllToAll",
    "AllToOne",
    "BadNets",
    "Blend",
    "FTrojan",
    "InputAware",
    "L0Inv",
    "L2Inv",
    "LabelMap",
    "LowFrequency",
    "MaskPattern",
    "OptimisedTrigger",
    "Patch",
    "Poisoning",
    "Recipe",
    "SourceSpecific",
    "TrainableTrigger",
    "TrainedVictim",
    "Trigger",
    "TrojanNN",
    "TrojanSquare",
    "TrojanWatermark",
    "WaNet",
    "get_trigger",
    "perturb_adversarially",
    "train_victim",
    "trigger_from_spec",
]
