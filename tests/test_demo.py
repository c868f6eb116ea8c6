"""The demo's victim is really backdoored, its images are real and apart, and it fits into the package."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from unbackdoor import _demo, cli
from unbackdoor._evaluate import evaluate
from unbackdoor.data import check_disjoint

MEGABYTES = 3


def test_the_victim_is_backdoored() -> None:
    case = _demo.load()
    victim, few = case.victim, np.arange(0, len(case.test), 4)
    images, labels = case.test.subset(few).tensors()
    metrics = evaluate(victim.model, images, labels, victim.trigger, victim.label_map)
    assert metrics.acc > 0.85 and metrics.asr > 0.97
    assert victim.record["metrics"]["asr"] > 0.97 and victim.record["metrics"]["num_images"] == 10000


def test_the_images_are_apart_and_balanced() -> None:
    case = _demo.load()
    check_disjoint(case.train, case.test)
    assert np.bincount(case.train.labels).tolist() == [20] * 10
    assert np.bincount(case.test.labels).tolist() == [100] * 10


def test_it_is_small() -> None:
    assert sum(file.stat().st_size for file in _demo.FOLDER.rglob("*") if file.is_file()) <= MEGABYTES * 10**6


def test_the_command_shows_before_and_after(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["unbackdoor", "demo", "--method", "clp"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    shown = capsys.readouterr().out
    assert not caught.value.code, shown
    assert "before" in shown and "after" in shown and "ASR (without target-class images)" in shown
