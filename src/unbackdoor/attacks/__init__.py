"""Triggers, label maps and the making of backdoored victims: to measure a defence against."""

from __future__ import annotations

from typing import Any

from unbackdoor._errors import UnbackdoorError, unknown_name
from unbackdoor.attacks._base import OptimisedTrigger, TrainableTrigger, Trigger
from unbackdoor.attacks._labels import AllToAll, AllToOne, LabelMap, SourceSpecific
from unbackdoor.attacks.adaptive import AdaptiveBlend, AdaptivePatch
from unbackdoor.attacks.badnets import BadNets
from unbackdoor.attacks.blend import Blend
from unbackdoor.attacks.bpp import BPP
from unbackdoor.attacks.clean_label import perturb_adversarially
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
    valid = [field for field in kind.__dataclass_fields__ if not field.startswith("_")]
    for field in fields:
        if field not in valid:
            raise UnbackdoorError(
                f"unknown field of {name}", value=field, fix=f"use one of: {', '.join(valid)}"
            )
    return kind(**fields)


__all__ = [
    "ATTACKS",
    "BPP",
    "SIG",
    "AdaptiveBlend",
    "AdaptivePatch",
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
    "OptimisedTrigger",
    "SourceSpecific",
    "TrainableTrigger",
    "Trigger",
    "TrojanNN",
    "TrojanSquare",
    "TrojanWatermark",
    "WaNet",
    "get_trigger",
    "perturb_adversarially",
]
