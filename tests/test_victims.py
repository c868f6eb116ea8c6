"""Victims from specifications: built, recorded, read back, listed; by Python and by command."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from unbackdoor import UnbackdoorError
from unbackdoor._evaluate import evaluate
from unbackdoor.attacks import ATTACKS
from unbackdoor.attacks._recipe import Recipe
from unbackdoor.checkpoint import resolve_arch
from unbackdoor.cli import app
from unbackdoor.cli.zoo import _all_for
from unbackdoor.data import TestSplit, TrainSplit
from unbackdoor.victims import (
    HEADS,
    NAMED,
    NEEDS_GPU,
    VictimSpec,
    build_named,
    build_victim,
    load_victim,
    read_victim_record,
    victim_row,
    victims_markdown,
)
from unbackdoor.victims import _build as building

QUICK = Recipe(epochs=1, batch_size=32, learning_rate=0.05, shift=0.0, flip=False)
SIDE = 8


def pixels(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return colour images whose brightness is the class of three."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    images = 40 + 60 * labels[:, None, None, None] + rng.integers(-15, 16, (count, SIDE, SIDE, 3))
    return images.astype(np.uint8), labels


def splits() -> tuple[TrainSplit, TestSplit]:
    names = ("dark", "grey", "light")
    return TrainSplit(*pixels(96, 0), names), TestSplit(*pixels(60, 1), names)


def spec(**changes: object) -> VictimSpec:
    return dataclasses.replace(
        VictimSpec(data="tiny", arch="wrn_16_1", attack="badnets", recipe=QUICK), **changes
    )


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_victim_is_read_back_as_it_was_measured(suffix: str, tmp_path: Path) -> None:
    train, test = splits()
    record = build_victim(spec(poison_rate=0.25), tmp_path / f"v{suffix}", (train, test))
    saved = load_victim(tmp_path / f"v{suffix}")
    metrics = evaluate(saved.model, *test.tensors(), saved.trigger, saved.label_map)
    assert metrics.to_dict() == pytest.approx(record["metrics"])
    assert record == saved.record == json.loads((tmp_path / "v.json").read_text())
    assert record["attack"]["num_poisoned"] == 24 and record["data"]["train_sha256"] == train.content_hash()
    assert record["recipe"]["epochs"] == 1 and record["spec"]["poison_rate"] == 0.25
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.json", f"v{suffix}"]


def test_the_seed_gives_the_same_file_again(tmp_path: Path) -> None:
    hashes = [build_victim(spec(), tmp_path / f"{n}.safetensors", splits())["sha256"] for n in range(2)]
    other = build_victim(spec(seed=1), tmp_path / "other.safetensors", splits())["sha256"]
    assert hashes[0] == hashes[1] != other


def test_clean_models_are_surrogates_and_backdoored_ones_are_not(tmp_path: Path) -> None:
    clean = build_victim(spec(attack=None), tmp_path / "clean.safetensors", splits())
    assert clean["attack"] is None and set(clean["metrics"]) == {"acc", "num_images"}
    surrogate = load_victim(tmp_path / "clean.safetensors")
    assert surrogate.trigger is None and surrogate.label_map is None
    chosen = spec(attack="l2_inv", fields={"steps": 3}, surrogate="clean")
    record = build_victim(chosen, tmp_path / "l2.safetensors", splits(), surrogate=surrogate)
    assert record["attack"]["trigger_file"] == "l2.trigger.safetensors"
    assert record["surrogate"] == clean["sha256"]
    image = splits()[1].tensors()[0][:1]
    back = load_victim(tmp_path / "l2.safetensors")
    assert not torch.equal(back.trigger(image), ATTACKS["l2_inv"](steps=3)(image))
    with pytest.raises(UnbackdoorError, match="backdoored itself"):
        build_victim(chosen, tmp_path / "bad.safetensors", splits(), surrogate=back)


def test_label_consistent_poisoning_from_a_specification(tmp_path: Path) -> None:
    build_victim(spec(attack=None), tmp_path / "clean.safetensors", splits())
    surrogate = load_victim(tmp_path / "clean.safetensors")
    chosen = spec(
        clean_label=True, poison_rate=0.5, adversarial_eps=0.05, adversarial_steps=2, surrogate="clean"
    )
    record = build_victim(chosen, tmp_path / "clb.safetensors", splits(), surrogate=surrogate)
    assert record["attack"]["num_poisoned"] == 16
    assert record["attack"]["perturbation"] == {"eps": 0.05, "norm": "linf", "steps": 2}


FROZEN = dataclasses.replace(QUICK, learning_rate=1e-12)


def test_training_starts_from_the_clean_model(tmp_path: Path) -> None:
    clean = build_victim(spec(attack=None), tmp_path / "clean.safetensors", splits())
    start = load_victim(tmp_path / "clean.safetensors")
    chosen = spec(start="clean", recipe=FROZEN, seed=1)
    record = build_victim(chosen, tmp_path / "v.safetensors", splits(), start=start)
    assert record["start"] == clean["sha256"] and record["surrogate"] is None
    first, last = (
        dict(model.named_parameters())
        for model in (start.model, load_victim(tmp_path / "v.safetensors").model)
    )
    assert all(torch.allclose(first[name], last[name], atol=1e-6) for name in first)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "small_vgg"}, "another network"),
        ({"seed": 1}, "other images"),
        ({"attack": "badnets"}, "the start is backdoored itself"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(changes: dict, message: str, tmp_path: Path) -> None:
    seed = changes.pop("seed", 0)
    train = TrainSplit(*pixels(96, seed), ("dark", "grey", "light"))
    build_victim(spec(**{"attack": None, **changes}), tmp_path / "clean.safetensors", (train, splits()[1]))
    start = load_victim(tmp_path / "clean.safetensors")
    with pytest.raises(UnbackdoorError, match=message):
        build_victim(spec(start="clean"), tmp_path / "v.safetensors", splits(), start=start)


@pytest.mark.parametrize("role", ["start", "surrogate"])
def test_a_named_clean_model_must_be_given(role: str, tmp_path: Path) -> None:
    with pytest.raises(UnbackdoorError, match=f"names a {role}"):
        build_victim(spec(attack="l0_inv", **{role: "clean"}), tmp_path / "v.safetensors", splits())


def test_a_trained_trigger_comes_back_with_its_networks(tmp_path: Path) -> None:
    chosen = spec(attack="input_aware", fields={"mask_epochs": 1, "width": 4}, poison_rate=0.25)
    record = build_victim(chosen, tmp_path / "v.safetensors", splits())
    saved, test = load_victim(tmp_path / "v.safetensors"), splits()[1]
    metrics = evaluate(saved.model, *test.tensors(), saved.trigger, saved.label_map)
    assert metrics.to_dict() == pytest.approx(record["metrics"])


def test_a_changed_checkpoint_is_refused(tmp_path: Path) -> None:
    build_victim(spec(attack=None), tmp_path / "v.safetensors", splits())
    (tmp_path / "v.safetensors").write_bytes(b"other")
    with pytest.raises(UnbackdoorError, match="not the one of its record"):
        load_victim(tmp_path / "v.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack": "badnet"}, "unknown attack"),
        ({"fields": {"sice": 3}}, "unknown field"),
        ({"all_to_all": True, "clean_label": True}, "all-to-all"),
        ({"adversarial_eps": 0.1}, "needs a clean model"),
        ({"surrogate": "clean"}, "would not be used"),
        ({"adversarial_eps": 0.1, "surrogate": "clean"}, "belongs to clean-label"),
        ({"target": 3}, "target must lie"),
        ({"source": 7}, "source must lie"),
    ],
)
def test_bad_specifications_are_errors(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(UnbackdoorError, match=message):
        build_victim(spec(**changes), tmp_path / "v.safetensors", splits())


def test_the_named_set_is_varied_and_every_entry_can_be_made() -> None:
    backdoored = [entry for entry in NAMED.values() if entry.attack]
    assert len(backdoored) >= 12 and len(NAMED) - len(backdoored) >= 2
    assert len({entry.attack for entry in backdoored}) >= 8
    assert len({entry.arch for entry in NAMED.values()}) >= 4
    sizes = {"cifar10": (10, 3, 32), "gtsrb": (43, 3, 32), "fashion_mnist": (10, 1, 28)}
    assert {entry.data for entry in NAMED.values()} == set(sizes)
    for name, entry in NAMED.items():
        classes, channels, side = sizes[entry.data]
        resolve_arch(entry.arch, num_classes=classes, in_channels=channels, input_size=side)
        entry.label_map(classes)
        assert entry.recipe.flip is (entry.data != "gtsrb"), name
        for clean in filter(None, (entry.surrogate, entry.start)):
            assert list(NAMED).index(clean) < list(NAMED).index(name)
        if entry.start:
            assert (NAMED[entry.start].arch, NAMED[entry.start].data) == (entry.arch, entry.data)
    fresh = [entry for entry in backdoored if not entry.start]
    assert len(fresh) >= 12 and 4 * len(fresh) >= len(backdoored)


def test_on_a_cpu_all_means_what_it_trains_in_minutes() -> None:
    assert set(NAMED) - set(_all_for("cpu")) == NEEDS_GPU and NEEDS_GPU
    assert _all_for("cuda") == list(NAMED)
    assert {NAMED[name].arch for name in NEEDS_GPU} == {"resnet_18"}


def test_the_docs_tell_the_recorded_figures() -> None:
    root = Path(__file__).parents[1]
    found = {name: root / f"benchmarks/results/victims/{name}.json" for name in NAMED}
    records = {name: read_victim_record(path) for name, path in found.items() if path.exists()}
    assert len(records) >= 14
    for name, record in records.items():
        assert json.loads(json.dumps(dataclasses.asdict(NAMED[name]))) == record["spec"]
    assert victims_markdown(records) in (root / "docs/victims.md").read_text(encoding="utf-8")


def test_a_table_of_victims_tells_what_each_started_from(tmp_path: Path) -> None:
    build_victim(spec(attack=None), tmp_path / "clean.safetensors", splits())
    start = load_victim(tmp_path / "clean.safetensors")
    record = build_victim(spec(start="clean"), tmp_path / "v.safetensors", splits(), start=start)
    row = victim_row("v", record)
    figures = tuple(f"{100 * record['metrics'][key]:.1f} %" for key in ("acc", "asr", "ra"))
    assert row[:5] == ("v", "badnets", "all-to-one", "10.4 %", "+ 1") and row[6:] == figures
    clean = victim_row("clean", start.record)
    assert clean[:5] == ("clean", "none", "", "", "1") and clean[7:] == ("", "")
    assert len(row) == len(clean) == len(HEADS)


def test_the_benchmarks_name_the_same_victims() -> None:
    file = Path(__file__).parents[1] / "benchmarks/victims/zoo.toml"
    listed = tomllib.loads(file.read_text(encoding="utf-8"))["victim"]
    expected = [
        {"name": name, "checkpoint": f"{{zoo}}/{name}.safetensors", "data": entry.data}
        for name, entry in NAMED.items()
    ]
    assert listed == expected


@pytest.fixture
def tiny_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Replace the named set by three tiny victims on an ``.npz``, and return the folder that they go to."""
    path = tmp_path / "tiny.npz"
    (x, y), (a, b) = pixels(96, 0), pixels(30, 1)
    np.savez(path, x_train=x, y_train=y, x_test=a, y_test=b)
    for entry in list(NAMED):
        monkeypatch.delitem(NAMED, entry)
    monkeypatch.setitem(NAMED, "clean", spec(data=str(path), attack=None))
    monkeypatch.setitem(
        NAMED, "l0", spec(data=str(path), attack="l0_inv", fields={"steps": 2}, surrogate="clean")
    )
    monkeypatch.setitem(NAMED, "started", spec(data=str(path), start="clean"))
    return tmp_path / "zoo"


def test_the_set_is_built_once_surrogates_first(tiny_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, built = build_named("l0", tiny_set)
    assert built and record["surrogate"] == read_victim_record(tiny_set / "clean.safetensors")["sha256"]
    started, _ = build_named("started", tiny_set)
    assert started["start"] == record["surrogate"] and started["surrogate"] is None
    monkeypatch.setattr(building, "build_victim", None)
    assert build_named("l0", tiny_set) == (record, False)
    with pytest.raises(UnbackdoorError, match="clean, l0, started"):
        build_named("l1", tiny_set)


def test_zoo_commands(tiny_set: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    records = tmp_path / "records"
    made = runner.invoke(
        app, ["zoo", "build", "clean", "--out", str(tiny_set), "--records", str(records), "--device", "cpu"]
    )
    assert made.exit_code == 0, made.output
    assert read_victim_record(records / "clean.json")["name"] == "clean"
    listed = runner.invoke(app, ["zoo", "list", "--out", str(tiny_set)], terminal_width=200)
    assert listed.exit_code == 0 and "clean" in listed.output and "not built" in listed.output
    table = runner.invoke(app, ["zoo", "list", "--out", str(tiny_set), "--markdown"])
    assert table.exit_code == 0 and "| clean | none |" in table.output and "not built" not in table.output


def test_attack_command(tiny_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "made.safetensors"
    options = ["--set", "opacity=0.5", "--recipe", "shift=0.0", "--epochs", "1", "--poison-rate", "0.25"]
    done = CliRunner().invoke(
        app,
        ["attack", "--data", str(tmp_path / "tiny.npz"), "--arch", "wrn_16_1", "--attack", "blend", *options]
        + ["--out", str(out), "--device", "cpu"],
    )
    assert done.exit_code == 0, done.output
    record = read_victim_record(out)
    assert record["attack"]["fields"]["opacity"] == 0.5 and record["attack"]["num_poisoned"] == 24
    assert record["recipe"]["epochs"] == 1 and "ASR" in done.output


def test_attack_command_starts_from_a_clean_model(tiny_set: Path, tmp_path: Path) -> None:
    clean, out = tmp_path / "clean.safetensors", tmp_path / "made.safetensors"
    common = ["attack", "--data", str(tmp_path / "tiny.npz"), "--arch", "wrn_16_1", "--device", "cpu"]
    short = ["--epochs", "1", "--recipe", "dropout=0.0"]
    runs = [
        ["--attack", "none", "--out", str(clean)],
        ["--attack", "blend", "--start", str(clean), "--out", str(out)],
    ]
    for options in runs:
        done = CliRunner().invoke(app, [*common, *short, *options])
        assert done.exit_code == 0, done.output
    record = read_victim_record(out)
    assert record["start"] == read_victim_record(clean)["sha256"] and record["recipe"]["dropout"] == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--attack", "none", "--poison-rate", "0.2"], "is not poisoned"),
        (["--attack", "none", "--set", "size=2"], "is not poisoned"),
        (["--attack", "badnets", "--target", "1", "--all-to-all"], "no single target"),
        (["--attack", "badnets", "--recipe", "epoch=3"], "unknown field of the recipe"),
        (["--attack", "badnets", "--format", "onnx"], "unknown format"),
    ],
)
def test_options_without_use_are_errors(options: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(
        app, ["attack", "--data", "cifar10", *options, "--out", str(tmp_path / "v.safetensors")]
    )
    assert isinstance(result.exception, UnbackdoorError) and message in str(result.exception)
    assert not list(tmp_path.iterdir())
