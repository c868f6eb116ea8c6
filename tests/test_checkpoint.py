"""Checkpoints: read without executing anything, every key accounted for, written back as they came."""

from __future__ import annotations

import os
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unbackdoor import UnbackdoorError
from unbackdoor._files import check_writable, write_json, writing
from unbackdoor.checkpoint import default_output, load_into, load_state, resolve_arch, save_like


def net(seed: int = 0, num_classes: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        OrderedDict(
            zeta=nn.Conv2d(1, 2, 3),
            alpha=nn.BatchNorm2d(2),
            flat=nn.Flatten(),
            head=nn.Linear(8, num_classes),
        )
    )


def same(first: dict, second: dict) -> bool:
    return list(first) == list(second) and all(
        torch.equal(first[name], second[name]) and first[name].dtype == second[name].dtype for name in first
    )


CONTAINERS = {
    "plain": lambda state: state,
    "net": lambda state: {"net": state, "acc": 84.5, "epoch": 48},
    "nested": lambda state: {"checkpoint": {"model": state}, "best": torch.tensor(0.5)},
    "data-parallel": lambda state: {"state_dict": OrderedDict((f"module.{k}", v) for k, v in state.items())},
    "compiled": lambda state: OrderedDict((f"module._orig_mod.{k}", v) for k, v in state.items()),
    "optimiser": lambda state: {"state_dict": state, "optimizer": {"state": {0: {"m": torch.ones(2)}}}},
    "numpy": lambda state: {"model": state, "acc": np.float64(0.25), "curve": np.arange(3.0)},
    "two": lambda state: {"model": state, "ema": state},
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_container_comes_back_as_it_was(tmp_path: Path, container: str, legacy: bool) -> None:
    source, path, out = net(), tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save(CONTAINERS[container](source.state_dict()), path, _use_new_zipfile_serialization=not legacy)
    model = net(seed=1)
    loaded = load_into(model, load_state(path))
    assert same(model.state_dict(), source.state_dict())

    changed = net(seed=2)
    save_like(loaded, changed, out)
    fresh = net(seed=3)
    load_into(fresh, load_state(out))
    assert same(fresh.state_dict(), changed.state_dict())

    assert (out.read_bytes()[:2] == b"PK") is not legacy
    again = load_state(out)
    assert (again.key, again.prefix, again.format) == (loaded.key, load_state(path).prefix, loaded.format)
    assert list(again.container) == list(load_state(path).container)
    if container == "net":
        raw = torch.load(out, weights_only=True)
        assert (raw["acc"], raw["epoch"]) == (84.5, 48)
        assert raw["net"]._metadata == source.state_dict()._metadata
        fresh.load_state_dict(raw["net"], strict=True)
    if container == "data-parallel":
        raw = torch.load(out, weights_only=True)["state_dict"]
        nn.DataParallel(net()).load_state_dict(raw, strict=True)
    assert sorted(os.listdir(tmp_path)) == ["in.pth", "out.pth"]


def test_notes_tell_what_was_found(tmp_path: Path) -> None:
    torch.save(
        {"net": {f"module.{k}": v for k, v in net().state_dict().items()}, "acc": 1.0}, tmp_path / "a.pth"
    )
    notes = " | ".join(load_state(tmp_path / "a.pth").notes)
    assert "'net'" in notes and "'module.'" in notes and "acc" in notes


def test_a_network_that_owns_the_prefix_keeps_it(tmp_path: Path) -> None:
    holder = nn.Module()
    holder.model = net()
    torch.save(OrderedDict((f"module.{k}", v) for k, v in holder.state_dict().items()), tmp_path / "a.pth")
    fresh = nn.Module()
    fresh.model = net(seed=5)
    loaded = load_into(fresh, load_state(tmp_path / "a.pth"))
    assert loaded.prefix == "module."
    assert same(fresh.state_dict(), holder.state_dict())


def test_types_are_those_of_the_file(tmp_path: Path) -> None:
    half = OrderedDict((k, v.half() if v.is_floating_point() else v) for k, v in net().state_dict().items())
    torch.save(half, tmp_path / "a.pth")
    model = net(seed=1)
    save_like(load_into(model, load_state(tmp_path / "a.pth")), model, tmp_path / "b.pth")
    assert same(torch.load(tmp_path / "b.pth", weights_only=True), half)


def test_files_without_batchnorm_counters(tmp_path: Path) -> None:
    old = OrderedDict((k, v) for k, v in net().state_dict().items() if "num_batches" not in k)
    torch.save(old, tmp_path / "a.pth")
    model = net(seed=1)
    save_like(load_into(model, load_state(tmp_path / "a.pth")), model, tmp_path / "b.pth")
    assert same(torch.load(tmp_path / "b.pth", weights_only=True), old)


def test_safetensors_both_ways(tmp_path: Path) -> None:
    source = net()
    torch.save({"net": source.state_dict()}, tmp_path / "a.pth")
    model = net(seed=1)
    loaded = load_into(model, load_state(tmp_path / "a.pth"))
    save_like(loaded, model, tmp_path / "b.safetensors")
    net(seed=2).load_state_dict(load_file(tmp_path / "b.safetensors"), strict=True)
    assert same(load_state(tmp_path / "b.safetensors").state, source.state_dict())

    save_file(
        {f"module.{k}": v for k, v in source.state_dict().items()}, tmp_path / "c.safetensors", {"by": "me"}
    )
    loaded = load_into(model, load_state(tmp_path / "c.safetensors"))
    save_like(loaded, model, tmp_path / "d.safetensors")
    again = load_state(tmp_path / "d.safetensors")
    assert (again.prefix, again.metadata["by"], list(again.state)) == ("module.", "me", list(loaded.state))


def touch(path: str) -> None:
    Path(path).touch()


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return (touch, (str(self.path),))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_pickle_that_carries_code_is_refused(tmp_path: Path, legacy: bool, suffix: str) -> None:
    path, mark = tmp_path / f"bomb{suffix}", tmp_path / "executed"
    torch.save({"net": net().state_dict(), "x": Bomb(mark)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(UnbackdoorError) as caught:
        load_state(path)
    assert not mark.exists()
    if suffix == ".pth":
        assert "carries code" in caught.value.cause and "touch" in str(caught.value.value)
    with path.open("rb") as file:
        torch.load(file, weights_only=False)
    assert mark.exists(), "the pickle of this test does carry code"


def test_a_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(net(), tmp_path / "a.pth")
    with pytest.raises(UnbackdoorError, match=r"whole objects.*\n.*Sequential"):
        load_state(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0, 0.001, 0.3, 0.9, 0.999])
def test_truncated_files(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / f"a.{'safetensors' if kind == 'safetensors' else 'pth'}"
    if kind == "safetensors":
        save_file(net().state_dict(), path)
    else:
        torch.save(net().state_dict(), path, _use_new_zipfile_serialization=kind == "zip")
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(UnbackdoorError, match="empty" if share == 0 else "truncated"):
        load_state(path)


@pytest.mark.parametrize(
    "content, told",
    [
        (torch.ones(3), "no state dict"),
        ({"epoch": 3}, "no state dict"),
        ({"first": net().state_dict(), "second": net().state_dict()}, "several state dicts"),
    ],
    ids=["tensor", "numbers", "two"],
)
def test_files_without_one_state_dict(tmp_path: Path, content: object, told: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UnbackdoorError, match=told):
        load_state(tmp_path / "a.pth")
    if told.startswith("several"):
        assert load_state(tmp_path / "a.pth", key="second").key == ("second",)
        with pytest.raises(UnbackdoorError, match="under 'third'(.|\n)*use one of: first, second"):
            load_state(tmp_path / "a.pth", key="third")


def test_missing_file_folder_and_text(tmp_path: Path) -> None:
    with pytest.raises(UnbackdoorError, match="no such checkpoint"):
        load_state(tmp_path / "none.pth")
    with pytest.raises(UnbackdoorError, match="is a folder"):
        load_state(tmp_path)
    (tmp_path / "a.pth").write_text("not a checkpoint at all")
    with pytest.raises(UnbackdoorError, match="another format"):
        load_state(tmp_path / "a.pth")


def test_keys_that_do_not_match_are_listed_and_nothing_is_loaded(tmp_path: Path) -> None:
    state = net().state_dict()
    state["extra.weight"] = state.pop("zeta.weight")
    torch.save(state, tmp_path / "a.pth")
    model = net(seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        UnbackdoorError, match=r"missing in the file \(1\): zeta.weight\n.*left over \(1\): extra.weight"
    ):
        load_into(model, load_state(tmp_path / "a.pth"))
    assert same(model.state_dict(), before)


def test_shapes_that_do_not_match_name_the_option(tmp_path: Path) -> None:
    torch.save(net(num_classes=5).state_dict(), tmp_path / "a.pth")
    with pytest.raises(UnbackdoorError, match=r"network \(3, 8\), file \(5, 8\)(.|\n)*--classes 5"):
        load_into(net(num_classes=3), load_state(tmp_path / "a.pth"))


def test_saving_another_network_is_refused(tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "a.pth")
    with pytest.raises(UnbackdoorError, match="other keys or shapes"):
        save_like(load_state(tmp_path / "a.pth"), net(num_classes=4), tmp_path / "b.pth")
    assert not (tmp_path / "b.pth").exists()


@pytest.mark.parametrize(
    "name, out",
    [("a.pth", "a.purified.pth"), ("a.pth.tar", "a.purified.pth.tar"), ("v1.2", "v1.2.purified")],
)
def test_default_output(name: str, out: str) -> None:
    assert default_output(Path("x") / name) == Path("x") / out


def test_writing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_json(target, {"x": [1.0, float("nan")]})
    assert '"x": [\n    1.0,\n    null\n  ]' in target.read_text()
    with pytest.raises(KeyboardInterrupt), writing(target) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == ["a.json"] and "null" in target.read_text()


def test_unwritable_outputs(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none" / "a.pth", Path("/proc/a.pth"), tmp_path / ("x" * 300)):
        with pytest.raises(UnbackdoorError, match="cannot write the output"):
            check_writable(path)
    assert os.listdir(tmp_path) == []


ARCH_FILE = """
from torch import nn
from neighbour import WIDTH

class Net(nn.Sequential):
    def __init__(self, num_classes=7, depth=1, pad="same", sizes=()):
        hidden = [nn.Linear(WIDTH, WIDTH) for _ in range(depth)]
        super().__init__(nn.Flatten(), *hidden, nn.Linear(WIDTH, num_classes))
        self.pad, self.sizes = pad, sizes

def broken():
    raise RuntimeError("no luck")

def number():
    return 3
"""


@pytest.fixture
def arch_file(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("WIDTH = 16\n")
    (tmp_path / "nets.py").write_text(ARCH_FILE)
    return tmp_path / "nets.py"


def build(spec: str) -> nn.Module:
    return resolve_arch(spec, num_classes=4, in_channels=1, input_size=4)


def test_architectures_from_the_users_own_file(arch_file: Path) -> None:
    before = list(sys.path)
    assert build(f"{arch_file}:Net")[-1].out_features == 4
    model = build(f"{arch_file}:Net?num_classes=9,depth=2,pad=valid,sizes=[1,2]")
    assert (len(model), model[-1].out_features, model.pad, model.sizes) == (4, 9, "valid", [1, 2])
    assert sys.path == before


def test_architectures_from_a_module() -> None:
    assert isinstance(build("torch.nn:Identity"), nn.Identity)


@pytest.mark.parametrize(
    "spec, told",
    [
        ("small_vvg", "unknown architecture(.|\n)*small_vgg(.|\n)*wrn_16_1"),
        ("wrn_16_1?colour=3", "factory failed"),
        ("FILE:Nett", "no factory 'Nett'(.|\n)*Net, broken, number"),
        ("FILE:broken", "RuntimeError: no luck"),
        ("FILE:number", "returned no torch.nn.Module"),
        ("FILE:Net?depth", "arguments cannot be read"),
        ("nowhere.py:Net", "no such architecture file"),
        ("no_such_package:Net", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_bad_architectures(arch_file: Path, spec: str, told: str) -> None:
    with pytest.raises(UnbackdoorError, match=told):
        build(spec.replace("FILE", str(arch_file)))
