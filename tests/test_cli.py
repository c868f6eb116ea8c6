"""The command line: what it writes, what it says about bad input, and its exit codes."""

from __future__ import annotations

import json
import os
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from unbackdoor import Report, cli
from unbackdoor._report import LayerChange
from unbackdoor.checkpoint import _write
from unbackdoor.cli import _show
from unbackdoor.methods import AWM

ARCH = """
from torch import nn

def make(num_classes, in_channels, width=4):
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, num_classes),
    )
"""
QUICK = ["--method", "awm", "--set", "epochs=1", "--set", "steps=2"]


def network(num_classes: int = 3, width: int = 4) -> nn.Module:
    space: dict = {}
    exec(ARCH, space)
    torch.manual_seed(0)
    return space["make"](num_classes, 3, width)


@dataclass(frozen=True)
class Case:
    """A checkpoint, its architecture and labelled images, in a folder of their own."""

    folder: Path
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: object) -> tuple[int, str]:
        """Run the command line in this process; returns its exit code and what it printed."""
        with pytest.raises(SystemExit) as caught, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["unbackdoor", *map(str, arguments)])
            patch.chdir(self.folder)
            cli.main()
        shown = self.capsys.readouterr()
        return int(caught.value.code or 0), shown.out + shown.err

    def purify(
        self, *more: object, checkpoint: str = "victim.pth", arch: str = "net.py:make", images: str = "a.npz"
    ):
        return self.run("purify", checkpoint, "--arch", arch, "--images", images, *QUICK, *more)

    def evaluate(self, *more: object, arch: str = "net.py:make"):
        return self.run("evaluate", "victim.pth", "--arch", arch, "--images", "a.npz", *more)

    def files(self) -> list[str]:
        return sorted(os.listdir(self.folder))


@pytest.fixture
def case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Case:
    (tmp_path / "net.py").write_text(ARCH)
    torch.save({"net": network().state_dict(), "acc": 84.5}, tmp_path / "victim.pth")
    generator = np.random.default_rng(0)
    images, labels = generator.integers(0, 256, (12, 8, 8, 3), np.uint8), np.arange(12) % 3
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    Image.new("RGB", (2, 2), "white").save(tmp_path / "patch.png")
    Image.fromarray(images[0] // 8).save(tmp_path / "add.png")
    mask = np.zeros((8, 8), np.float32)
    mask[:2, :2] = 1
    np.save(tmp_path / "mask.npy", mask)
    np.save(tmp_path / "pattern.npy", np.ones((3, 8, 8), np.float32))
    return Case(tmp_path, capsys)


def test_purify_writes_the_same_container_and_a_record(case: Case) -> None:
    before = (case.folder / "victim.pth").read_bytes()
    code, shown = case.purify("--per-class", 2, "--json", "r.json", "--seed", 3)
    assert code == 0, shown
    for told in ("'net'", "6 of 3 classes, seed 3", "accuracy", "0.weight", "written: victim.purified.pth"):
        assert told in shown
    raw = torch.load(case.folder / "victim.purified.pth", weights_only=True)
    assert raw["acc"] == 84.5
    network().load_state_dict(raw["net"], strict=True)
    assert not torch.equal(raw["net"]["0.weight"], network().state_dict()["0.weight"])
    record = json.loads((case.folder / "r.json").read_text())
    assert record["report"]["hyperparameters"]["epochs"] == 1 and record["report"]["seed"] == 3
    assert (record["checkpoint"]["key"], record["images"]["num_images"]) == ("net", 6)
    assert {"accuracy_before", "accuracy_after", "seconds", "layers"} <= set(record["report"])
    assert (case.folder / "victim.pth").read_bytes() == before
    assert case.files() == sorted(
        ["a.npz", "add.png", "mask.npy", "net.py", "patch.png", "pattern.npy", "r.json", "victim.pth"]
        + ["victim.purified.pth"]
    )


def test_every_layers_mask_is_shown_where_the_method_tells_it(case: Case) -> None:
    code, shown = case.purify("--json", "r.json")
    assert code == 0
    record = json.loads((case.folder / "r.json").read_text())["report"]
    line = next(line for line in shown.splitlines() if "0.weight" in line)
    assert f"{record['details']['mask_mean']['0.weight']:.3f}" in line
    report = dict(record, layers=tuple(LayerChange(**layer) for layer in record["layers"]))
    _show.show_report(Report(**{**report, "details": {"mask_mean": 0.25}}))
    assert "0.25" in case.capsys.readouterr().out


def test_purify_is_the_same_for_the_same_seed(case: Case) -> None:
    for out, seed in (("1.pth", 0), ("2.pth", 0), ("3.pth", 1)):
        assert case.purify("--per-class", 1, "--seed", seed, "--out", out)[0] == 0
    first, second, third = (torch.load(case.folder / f"{n}.pth", weights_only=True)["net"] for n in "123")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_purify_from_a_folder_with_normalisation_to_safetensors(case: Case) -> None:
    for label in range(3):
        (case.folder / "pictures" / f"class{label}").mkdir(parents=True)
        Image.new("RGB", (9, 9), (80 * label, 0, 0)).save(
            case.folder / "pictures" / f"class{label}" / "a.png"
        )
    more = ("--resize", 8, "--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2", "--out", "b.safetensors")
    code, shown = case.purify(*more, images="pictures", arch="net.py:make?width=4")
    assert code == 0, shown
    from safetensors.torch import load_file

    network().load_state_dict(load_file(case.folder / "b.safetensors"), strict=True)


def test_evaluate_counts_by_hand(case: Case) -> None:
    arrays = np.load(case.folder / "a.npz")
    images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2).float() / 255
    labels, triggered = torch.from_numpy(arrays["labels"]), images.clone()
    triggered[:, :, 6:, 5:7] = 1
    with torch.no_grad():
        clean, sent = (network().eval()(x).argmax(1) for x in (images, triggered))
    target = int(sent.mode().values)
    code, shown = case.evaluate("--trigger", "patch:patch.png@6,5", "--target", target, "--json", "m.json")
    assert code == 0, shown
    assert "ASR (without target-class images)" in shown and "ASR with target-class images" in shown
    metrics = json.loads((case.folder / "m.json").read_text())["metrics"]
    others = labels != target
    assert metrics["acc"] == pytest.approx((clean == labels).float().mean().item())
    assert metrics["asr"] == pytest.approx((sent == target)[others].float().mean().item())
    assert "ASR of no trigger" in shown
    assert metrics["asr_untriggered"] == pytest.approx((clean == target)[others].float().mean().item())
    assert "ACC of the target's images" in shown
    assert metrics["acc_target"] == pytest.approx((clean == target)[~others].float().mean().item())
    assert metrics["ra"] == pytest.approx((sent == labels)[others].float().mean().item())
    assert metrics["asr_with_target"] == pytest.approx((sent == target).float().mean().item())


@pytest.mark.parametrize("trigger", ["patch:patch.png", "additive:add.png", "mask:mask.npy,pattern.npy"])
def test_evaluate_takes_every_kind_of_trigger(case: Case, trigger: str) -> None:
    code, shown = case.evaluate("--trigger", trigger, "--all-to-all")
    assert code == 0, shown


BAD_PURIFY = {
    "architecture": (dict(arch="small_vvg"), "unknown architecture", "wrn_16_1"),
    "no factory": (dict(arch="net.py:nothing"), "no factory 'nothing'", "use one of: make"),
    "method": ("--method awn", "unknown method", "awm"),
    "field": ("--set epoch=3", "epoch", "mask_penalty"),
    "setting": ("--set epochs", "field=value", "--set epochs=20"),
    "too few classes": ("--classes 2", "more classes than the network has outputs", "--classes 3"),
    "too many classes": ("--classes 5", "network (5, 16), file (3, 16)", "--classes 3"),
    "too many a class": ("--per-class 9", "fewer images than a draw of 9", "4 images"),
    "folder of out": ("--out none/x.pth", "cannot write the output", "mkdir -p none"),
    "out is a folder": ("--out .", "cannot write the output", "folder"),
    "out is input": ("--out victim.pth", "overwrite the input", "--out"),
    "json is out": ("--out x --json x", "overwrite the input or the other output", "--json"),
    "json": ("--json none/x.json", "cannot write the output", "mkdir -p none"),
    "mean": ("--mean 0.5,0.5 --std 1,1", "one value a channel", "3 channels"),
    "mean alone": ("--mean 0.5,0.5,0.5", "go together", "--std"),
    "std": ("--mean a,b,c --std 1,1,1", "must be numbers", "a,b,c"),
    "device": ("--device quantum", "cannot use this device", "--device cpu"),
    "key": ("--key model", "no state dict under 'model'", "use one of: net"),
    "checkpoint": (dict(checkpoint="none.pth"), "no such checkpoint", "none.pth"),
    "images": (dict(images="none"), "no such file or folder", "none"),
    "images are the checkpoint": (dict(images="victim.pth"), "no images and labels", "victim.pth"),
}


@pytest.mark.parametrize("name", BAD_PURIFY)
def test_bad_input_to_purify(case: Case, name: str) -> None:
    given, cause, fix = BAD_PURIFY[name]
    before = case.files()
    code, shown = case.purify(**given) if isinstance(given, dict) else case.purify(*given.split())
    assert code == 2 and cause in shown and fix in shown, shown
    assert "Traceback" not in shown and case.files() == before


def test_broken_files_are_bad_input(case: Case) -> None:
    whole = (case.folder / "victim.pth").read_bytes()
    for name, content in (("cut.pth", whole[: len(whole) // 2]), ("empty.pth", b"")):
        (case.folder / name).write_bytes(content)
        code, shown = case.purify(checkpoint=name)
        assert code == 2 and ("truncated" in shown or "empty" in shown) and "fix:" in shown


def test_a_checkpoint_with_nan_is_bad_input(case: Case) -> None:
    broken = network()
    broken[0].weight.data[0, 0, 0, 0] = float("nan")
    torch.save(broken.state_dict(), case.folder / "nan.pth")
    code, shown = case.purify(checkpoint="nan.pth")
    assert code == 2 and "NaN or infinite values in '0.weight'" in shown


def test_empty_classes_and_folders_are_bad_input(case: Case) -> None:
    (case.folder / "pictures").mkdir()
    assert case.purify(images="pictures")[0] == 2
    for name in ("cat", "dog", "owl"):
        (case.folder / "pictures" / name).mkdir()
    Image.new("RGB", (8, 8)).save(case.folder / "pictures" / "cat" / "a.png")
    for more in ((), ("--per-class", 1)):
        code, shown = case.purify(*more, images="pictures")
        assert code == 2 and "class 1 (dog) has no image" in shown, shown


BAD_EVALUATE = {
    "kind": ("--trigger ribbon:patch.png --target 0", "unknown trigger", "additive, mask, patch"),
    "file": ("--trigger patch:none.png --target 0", "not a readable picture", "none.png"),
    "no file": ("--trigger patch --target 0", "names no file", "patch:FILE"),
    "place": ("--trigger patch:patch.png@7,7 --target 0", "does not fit", "from 0 to 6"),
    "place text": ("--trigger patch:patch.png@a --target 0", "place cannot be read", "@27,27"),
    "size": ("--trigger additive:patch.png --target 0", "another size", "3×8×8"),
    "pattern": ("--trigger mask:mask.npy --target 0", "needs a pattern", "PATTERN"),
    "no target": ("--trigger patch:patch.png", "which label", "--all-to-all"),
    "both": ("--trigger patch:patch.png --target 1 --all-to-all", "which label", "--target N"),
    "target": ("--trigger patch:patch.png --target 3", "target must lie in [0, 3)", "start at 0"),
}


@pytest.mark.parametrize("name", BAD_EVALUATE)
def test_bad_input_to_evaluate(case: Case, name: str) -> None:
    given, cause, fix = BAD_EVALUATE[name]
    code, shown = case.evaluate(*given.split())
    assert code == 2 and cause in shown and fix in shown, shown


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_nothing_is_left_beside_a_factory_where_python_writes_bytecode(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    before = case.files()
    assert case.evaluate("--trigger", "patch:patch.png@6,5", "--target", 0)[0] == 0
    assert case.files() == before


def test_ctrl_c_leaves_nothing_behind(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    before = case.files()
    with monkeypatch.context() as patch:
        patch.setattr(AWM, "run", interrupt)
        code, shown = case.purify()
    assert code == 130 and "interrupted" in shown
    assert case.files() == before

    def half(state: object, path: Path, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(_write.torch, "save", half)
    assert case.purify("--json", "r.json")[0] == 130
    assert case.files() == before


def test_help_and_version(case: Case) -> None:
    assert case.run("--version") == (0, f"unbackdoor {cli.__version__}\n")
    code, shown = case.run("purify", "--help")
    assert code == 0 and "--per-class" in shown
    assert case.run("purge")[0] == 2


def test_the_package_runs_as_a_module(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["unbackdoor", "--version"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_module("unbackdoor", run_name="__main__")
    assert not caught.value.code
    assert capsys.readouterr().out == f"unbackdoor {cli.__version__}\n"
