"""Purification methods, one paper a file; ``METHODS`` is the list that commands and benchmarks use."""

from __future__ import annotations

from unbackdoor._errors import UnbackdoorError, unknown_name
from unbackdoor.methods._base import Method, Progress, Session
from unbackdoor.methods.anp import ANP
from unbackdoor.methods.awm import AWM
from unbackdoor.methods.clp import CLP
from unbackdoor.methods.fine_prune import FinePrune
from unbackdoor.methods.fine_tune import FineTune
from unbackdoor.methods.fst import FST
from unbackdoor.methods.ft_sam import FTSAM
from unbackdoor.methods.ibau import IBAU
from unbackdoor.methods.mcr import MCR
from unbackdoor.methods.nad import NAD
from unbackdoor.methods.neural_cleanse import NeuralCleanse
from unbackdoor.methods.nft import NFT
from unbackdoor.methods.restore import Restore
from unbackdoor.methods.rnp import RNP
from unbackdoor.methods.sau import SAU

METHODS: dict[str, type[Method]] = {
    cls.name: cls
    for cls in (
        Restore,
        AWM,
        FineTune,
        FinePrune,
        CLP,
        RNP,
        NFT,
        NAD,
        MCR,
        NeuralCleanse,
        FTSAM,
        SAU,
        FST,
        ANP,
        IBAU,
    )
}
DEFAULT = Restore

__all__ = [
    "ANP",
    "AWM",
    "CLP",
    "DEFAULT",
    "FST",
    "FTSAM",
    "FinePrune",
    "FineTune",
    "IBAU",
    "MCR",
    "METHODS",
    "Method",
    "NAD",
    "NFT",
    "NeuralCleanse",
    "Progress",
    "RNP",
    "Restore",
    "SAU",
    "Session",
    "get_method",
]


def get_method(method: Method | str | None, **fields: object) -> Method:
    """Return a method object from an object, a registry name (with fields) or ``None`` for the default.

    >>> get_method("awm", variant="paper").variant
    'paper'
    """
    if method is None:
        return DEFAULT(**fields)
    if isinstance(method, Method):
        return method
    if method not in METHODS:
        raise unknown_name("method", str(method), list(METHODS))
    try:
        return METHODS[method](**fields)
    except TypeError as error:
        valid = ", ".join(METHODS[method].__dataclass_fields__) or "none"
        raise UnbackdoorError(str(error), value=fields, fix=f"fields of {method}: {valid}") from error
