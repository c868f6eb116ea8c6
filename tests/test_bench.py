"""The bench: grids, resume, failures, records, tables, plots, and the same figures again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from unbackdoor import UnbackdoorError
from unbackdoor._clean import CleanImages
from unbackdoor.bench import cell as cell_module
from unbackdoor.bench import formats, plots
from unbackdoor.bench.cell import draw_clean
from unbackdoor.bench.grid import load_grid
from unbackdoor.bench.page import write_page
from unbackdoor.bench.places import locate
from unbackdoor.bench.records import cell_hash, read_records, record_name, write_record
from unbackdoor.bench.rerun import rerun
from unbackdoor.bench.run import make_plan, run_grid
from unbackdoor.bench.table import summarise
from unbackdoor.bench.victims import Data, load_victim, missing_file
from unbackdoor.bench.workers import WorkerDied, run_tasks
from unbackdoor.cli import bench as cli
from unbackdoor.data import TestSplit, TrainSplit
from unbackdoor.recover import Finding, Warp
from unbackdoor.victims._record import FORMAT as VICTIM_FORMAT

NETWORK = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
"""

VICTIM = """
[data.tiny]
args = {{name_or_path = "{folder}/tiny.npz"}}
needs = "{folder}/tiny.npz"

[[victim]]
name = "badnets"
checkpoint = "net.pth"
arch = "nets.py:make"
data = "tiny"
trigger = {{name = "badnets", size = 2, pattern = "white"}}
labels = {{target = 0}}
"""

GRID = """
victims = ["victims.toml"]
results = "results"
per_class = [1, 2]
draws = [0, 1]

[[method]]
name = "awm"
label = "AWM"
fields = {epochs = 1, steps = 1, augmented_copies = 0}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a tiny victim that obeys no trigger yet, random images, and a grid of four cells."""
    random = np.random.default_rng(0)
    labels = np.arange(48) % 4
    images = random.integers(0, 256, (96, 8, 8, 3), dtype=np.uint8)
    splits = {"x_train": images[:48], "y_train": labels, "x_test": images[48:], "y_test": labels}
    np.savez(tmp_path / "tiny.npz", **splits)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    torch.save(network.state_dict(), tmp_path / "net.pth")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "nets.py").write_text(NETWORK)
    (tmp_path / "victims.toml").write_text(VICTIM.format(folder=tmp_path))
    return tmp_path


def grid_of(project: Path, text: str = GRID):
    (project / "grid.toml").write_text(text)
    return load_grid(project / "grid.toml")


def run(project: Path, text: str = GRID):
    return run_grid(grid_of(project, text), jobs=0)


def record(victim="v", method="m", per_class=1, draw=0, status="done", acc=0.8, asr=0.1, **more):
    """A record as the tables and plots read it."""
    cell = {
        "victim": {"name": victim, "arch": "cnn", "data": {"name": "tiny"}},
        "method": {"name": method, "label": method, "fields": {}},
        "per_class": per_class,
        "draw": draw,
        "reactivation": None,
    }
    before = {"acc": 0.9, "asr": None if asr is None else 1.0, "ra": None if asr is None else 0.0}
    after = {"acc": acc, "asr": asr, "ra": 0.7, "der": 0.9}
    facts = {"victim": {"sha256": "0", "arch": "cnn", "attack": "badnets"}, "before": before, "after": after}
    environment = {
        "versions": {"torch": "2"},
        "commit": "c" * 40,
        "dirty": False,
        "device": "cpu",
        "threads": 1,
    }
    environment |= {"machine": {"processor": "p"}, "finished": "2026-01-01T00:00:00+00:00"}
    figures = {"seconds": 2.0, "peak_memory": 3 * 2**20, "memory_at_start": 2**20, "wall_seconds": 3.0}
    failed = {"error": "ValueError: broken"}
    base = {"format": 1, "status": status, "cell": cell}
    return base | (facts | environment | figures if status == "done" else failed) | more


# Grids and records.


def test_a_grid_is_the_product_of_its_lists_in_plain_values(project):
    cells = grid_of(project).cells
    assert [(c["per_class"], c["draw"]) for c in cells] == [(1, 0), (2, 0), (1, 1), (2, 1)]
    assert json.loads(json.dumps(cells)) == list(cells)
    assert cells[0]["method"]["fields"]["trigger_budget"] == 100.0  # also what the grid does not say


def test_sweeps_and_data_sets_change_fields_and_labels(project):
    more = "sweep = {clean_weight = [0.5, 0.9]}\nfor_data.tiny = {batch_size = 7}\n"
    cells = grid_of(project, GRID + more).cells
    methods = {c["method"]["label"]: c["method"]["fields"] for c in cells}
    assert {label: fields["clean_weight"] for label, fields in methods.items()} == {
        "AWM clean_weight=0.5": 0.5,
        "AWM clean_weight=0.9": 0.9,
    }
    assert all(fields["batch_size"] == 7 for fields in methods.values())


def test_a_cell_that_two_sweeps_share_runs_once_and_has_both_labels(project):
    more = """sweep = {clean_weight = [0.5, 0.9]}
[[method]]
name = "awm"
label = "other"
fields = {epochs = 1, steps = 1, augmented_copies = 0}
sweep = {trigger_budget = [100.0, 50.0]}
"""
    labels = [c["method"]["label"] for c in grid_of(project, GRID + more).cells]
    both = "AWM clean_weight=0.9 = other trigger_budget=100.0"
    assert dict.fromkeys(labels) == dict.fromkeys(["AWM clean_weight=0.5", both, "other trigger_budget=50.0"])


def test_the_name_of_a_record_follows_from_the_figures_and_not_from_labels(project):
    cell = grid_of(project).cells[0]
    renamed = {**cell, "method": {**cell["method"], "label": "another name"}}
    assert cell_hash(renamed) == cell_hash(cell) == cell_hash(dict(reversed(cell.items())))
    assert cell_hash({**cell, "draw": 7}) != cell_hash(cell)
    assert record_name(cell).startswith("badnets-awm-n1-d0-")


def test_the_name_counts_a_default_and_the_same_value_given_as_one(project):
    cell = grid_of(project).cells[0]
    given = grid_of(project, GRID.replace("epochs = 1", "epochs = 1, trigger_budget = 100.0")).cells[0]
    older = {key: value for key, value in cell["method"]["fields"].items() if key != "trigger_budget"}
    before_the_field = {**cell, "method": {**cell["method"], "fields": older}}
    assert cell_hash(cell) == cell_hash(given) == cell_hash(before_the_field)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "awm"', 'name = "awn"', "use one of"),
        ("epochs = 1", "epoch = 1", "fields of awm"),
        ("epochs = 1", "epochs = -1", "epochs"),
        ("per_class", "images", "unknown key"),
        ('"victims.toml"', '"nothing.toml"', "cannot read"),
        ("draws = [0, 1]", "draws = [0, 1", "not TOML"),
        ("draws = [0, 1]", 'only = ["wanet"]', "victims there: badnets"),
    ],
)
def test_bad_grids_are_refused_with_a_reason(project, old, new, said):
    with pytest.raises(UnbackdoorError, match=said):
        grid_of(project, GRID.replace(old, new))


@pytest.mark.parametrize("kept", ["key", "labels", "trigger"])
def test_what_the_record_beside_the_checkpoint_tells_is_refused_without_a_network(project, kept):
    lines = (VICTIM.format(folder=project) + 'key = "net"\n').splitlines()
    dropped = ("arch", "key", "labels", "trigger")
    text = [line for line in lines if not line.startswith(dropped) or line.startswith(kept)]
    (project / "victims.toml").write_text("\n".join(text))
    said = f"badnets of victims victims.toml, which has '{kept}',\n  got: arch"
    with pytest.raises(UnbackdoorError, match=said):
        grid_of(project)


ATTACK_OF = """
[[victim]]
name = "other"
checkpoint = "net.pth"
arch = "nets.py:make"
data = "tiny"
attack_of = "saved.safetensors"
"""


def test_a_network_is_measured_with_the_attack_of_another_victim(project):
    blend = {"name": "blend", "fields": {"opacity": 0.5}, "trigger_file": None}
    attack = {**blend, "label_map": {"name": "all-to-one", "fields": {"target": 3}}}
    text = {"format": VICTIM_FORMAT, "kind": "victim", "attack": attack}
    (project / "saved.json").write_text(json.dumps(text))
    (project / "victims.toml").write_text(VICTIM.format(folder=project) + ATTACK_OF)
    entries = {cell["victim"]["name"]: cell["victim"] for cell in grid_of(project).cells}
    own, other = (load_victim(entries[name], project) for name in ("badnets", "other"))
    assert own.sha256 == other.sha256 and own.trigger.name == "badnets"
    assert (other.trigger.name, other.trigger.opacity, other.label_map.target) == ("blend", 0.5, 3)


def test_an_attack_of_another_victim_stands_alone_and_is_skipped_where_that_is_not_there(project):
    (project / "victims.toml").write_text(VICTIM.format(folder=project) + ATTACK_OF)
    assert missing_file(grid_of(project).cells[-1]["victim"], project).startswith(str(project / "saved.saf"))
    (project / "victims.toml").write_text(
        VICTIM.format(folder=project) + ATTACK_OF + "labels = {target = 1}\n"
    )
    with pytest.raises(UnbackdoorError, match="victim other of victims victims.toml has two attacks"):
        grid_of(project)


def test_places_come_from_the_environment_or_lie_beside_the_project(monkeypatch):
    monkeypatch.delenv("UNBACKDOOR_SHARED", raising=False)
    assert locate("{shared}/a.pth", "/x/project") == Path("/x/shared/a.pth")
    monkeypatch.setenv("UNBACKDOOR_SHARED", "/y")
    assert locate("{shared}/a.pth", "/x/project") == Path("/y/a.pth")


def test_every_grid_of_the_repository_is_valid():
    grids = sorted((Path(__file__).parents[1] / "benchmarks" / "grids").glob("*.toml"))
    assert grids
    for path in grids:
        assert load_grid(path).cells, path


# Running.


def test_a_run_writes_one_complete_record_a_cell(project):
    outcome = run(project)
    records = read_records([project / "results"])
    assert len(records) == len(outcome.records) == 4
    one = records[0]
    assert one["status"] == "done" and one["cell"]["victim"]["name"] == "badnets"
    assert {"torch", "python", "unbackdoor"} <= set(one["versions"])
    hashes = (one["data"]["train_sha256"], one["victim"]["sha256"], one["victim"]["trigger_sha256"])
    assert all(len(sha256) == 64 for sha256 in hashes)
    assert one["data"]["num_clean"] == 4 * one["cell"]["per_class"]
    assert {"acc", "asr", "ra", "asr_with_target", "der"} <= set(one["after"])
    assert one["before"]["num_images"] == 48 and one["before"]["num_triggered"] == 36
    assert one["seconds"] > 0 and one["peak_memory"] >= one["memory_at_start"] > 0
    assert one["threads"] == torch.get_num_threads()
    assert not list((project / "results").glob(".*"))


def test_a_method_gets_the_drawn_training_images_and_nothing_else(project, monkeypatch):
    seen = []
    original = cell_module.purify

    def spy(*arguments, **keywords):
        seen.append((arguments, keywords))
        return original(*arguments, **keywords)

    monkeypatch.setattr(cell_module, "purify", spy)
    run(project, GRID.replace("per_class = [1, 2]", "per_class = [2]").replace("[0, 1]", "[1]"))
    ((_, images, labels), keywords) = seen[0]
    train = np.load(project / "tiny.npz")["x_train"].astype(np.float32).transpose(0, 3, 1, 2) / 255
    known = {image.tobytes() for image in train}
    assert all(image.tobytes() in known for image in images.numpy())
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert set(keywords) == {"method", "seed"} and keywords["seed"] == 1


def test_a_killed_run_resumes_and_repeats_nothing(project):
    def stop_after_two(tick):
        if tick.finished == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_grid(grid_of(project), jobs=0, progress=stop_after_two)
    first = {path: path.stat().st_mtime_ns for path in (project / "results").glob("*.json")}
    assert len(first) == 2
    outcome = run(project)
    assert (len(outcome.plan.done), len(outcome.records)) == (2, 2)
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())
    assert not run(project).records


def test_the_victim_is_measured_once_for_all_its_cells(project, monkeypatch):
    counted = []
    original = cell_module.Victim.figures
    monkeypatch.setattr(
        cell_module.Victim, "figures", lambda self, model: counted.append(model) or original(self, model)
    )
    run(project)
    assert len(counted) == 1 + 4


def test_a_failing_cell_is_recorded_and_the_others_run(project):
    text = GRID.replace("per_class = [1, 2]", "per_class = [1, 13]")
    outcome = run(project, text)
    assert sorted(r["status"] for r in outcome.records) == ["done", "done", "failed", "failed"]
    failed = outcome.failed[0]
    assert "fewer images" in failed["error"] and "Traceback" in failed["traceback"]
    assert not run(project, text).records
    assert len(run_grid(grid_of(project, text), jobs=0, retry_failed=True).records) == 2


def test_another_checkpoint_makes_its_records_old(project):
    run(project)
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    torch.save(network.state_dict(), project / "net.pth")
    assert len(make_plan(grid_of(project)).todo) == 4


def test_another_default_makes_its_records_old(project):
    one = run(project).records[0]
    one["cell"]["method"]["fields"]["trigger_budget"] = 99.0
    (project / "results" / record_name(grid_of(project).cells[0])).write_text(json.dumps(one))
    assert len(make_plan(grid_of(project)).todo) == 1


def test_a_victim_without_its_files_is_skipped_with_the_reason(project):
    (project / "net.pth").unlink()
    outcome = run(project)
    assert not outcome.records and not outcome.failed
    assert "net.pth is not there" in outcome.plan.skipped["badnets"]


def test_a_wrong_checkpoint_is_not_measured(project):
    text = VICTIM.format(folder=project).replace("arch =", 'sha256 = "00"\narch =')
    (project / "victims.toml").write_text(text)
    assert "another file" in run(project).failed[0]["error"]


def test_a_dying_process_takes_only_its_own_cell(project):
    tasks = [(os._exit, (3,), {}), (sum, ((1, 2),), {}), (int, ("x",), {})]
    results = dict(run_tasks(tasks, jobs=1, threads=1))
    assert isinstance(results[0], WorkerDied) and "3" in str(results[0])
    assert results[1] == 3 and isinstance(results[2], ValueError)


def test_a_killed_run_leaves_no_worker_behind(tmp_path):
    """The worker of a killed parent writes its number, sleeps, and must be gone long before it wakes."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\n"
        "from pathlib import Path\n"
        "from unbackdoor.bench.workers import run_tasks\n"
        "def cell(path):\n"
        "    Path(path).write_text(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    list(run_tasks([(cell, (sys.argv[1],), {})], jobs=1, threads=1))\n"
    )
    told = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, str(script), str(told)])
    wait_until(lambda: told.exists() and told.read_text())
    parent.kill()
    parent.wait()
    wait_until(lambda: not alive(int(told.read_text())))


def wait_until(holds, seconds=60):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def alive(pid):
    """Tell whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat")
        return not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_record_run_again_gives_the_same_figures_and_a_changed_one_does_not(project):
    one = run(project).records[0]
    assert not rerun(one, project).figures
    one["after"]["acc"] += 0.1
    (difference,) = rerun(one, project).figures
    assert difference.place == "after.acc"
    one["after"]["acc"] -= 0.1
    del one["after"]["acc_target"]  # as in records of an earlier version, which did not measure it
    assert not rerun(one, project).figures
    one["data"].popitem()
    assert rerun(one, project).figures


def test_retuning_on_poisoned_samples_brings_the_backdoor_and_leaves_the_model(project):
    text = GRID.replace("per_class = [1, 2]", "per_class = [1]").replace("[0, 1]", "[0]")
    text += "\n[reactivation]\nnum_poisoned = 12\nnum_clean = 12\nsteps = [0, 60]\nlearning_rate = 0.05\n"
    (one,) = run(project, text).records
    start, end = one["reactivation"]
    assert start["asr"] == one["after"]["asr"] and start["step"] == 0
    assert end["asr"] > start["asr"] + 0.3
    assert not rerun(one, project).figures


# Tables, plots, page.


def test_a_table_gives_mean_spread_over_draws_and_the_worst():
    records = [
        record(draw=0, acc=0.8, asr=0.1),
        record(draw=1, acc=0.6, asr=0.5),
        record(draw=2, status="failed"),
    ]
    before, row = summarise(records).rows
    assert before.keys == ("v", "1", "(before)") and before.figures[0].mean == pytest.approx(90)
    assert (row.count, row.failed) == (2, 1)
    acc, asr = row.figures[:2]
    assert (acc.mean, acc.worst, asr.worst) == pytest.approx((70, 60, 50))
    assert acc.spread == pytest.approx(20 / 2**0.5)
    memory = row.figures[-1]
    assert memory.mean == pytest.approx(2)


def test_the_spread_of_pooled_victims_is_that_of_the_draws():
    rates = {("a", 0): 0.9, ("a", 1): 0.9, ("b", 0): 0.5, ("b", 1): 0.5}
    records = [record(victim=v, draw=d, acc=rate) for (v, d), rate in rates.items()]
    row = summarise(records, ("images", "method")).rows[-1]
    assert row.figures[0].mean == pytest.approx(70) and row.figures[0].spread == pytest.approx(0)
    assert row.figures[0].worst == pytest.approx(50)


def test_tables_are_written_in_four_formats():
    table = summarise([record(method="α_1 | x", draw=draw, asr=0.1 * draw) for draw in (0, 1)])
    assert "80.0 ± 0.0 (80.0)" in formats.terminal(table)
    assert "| v | 1 | α_1 \\| x | 2 | 80.0 ± 0.0 (80.0) |" in formats.markdown(table)
    head, _, line = formats.comma_separated(table).splitlines()
    assert dict(zip(head.split(","), line.split(","), strict=True))["asr_worst"] == "10"
    assert r"$\alpha$\_1 | x & 2 & 80.0 $\pm$ 0.0 (80.0)" in formats.latex(table)


def test_unknown_keys_of_a_table_list_the_known_ones():
    with pytest.raises(UnbackdoorError, match="victim"):
        summarise([record()], ("colour",))


def test_plots_and_page_are_made_of_the_records(tmp_path):
    pytest.importorskip("matplotlib")
    curve = [{"step": 0, "acc": 0.8, "asr": 0.0, "ra": 0.7}, {"step": 10, "acc": 0.8, "asr": 0.9, "ra": 0.1}]
    records = [record(per_class=n, draw=d, reactivation=curve) for n in (1, 10) for d in (0, 1)]
    records += [record(victim="clean", asr=None), record(method="bad", status="failed")]
    page = write_page(records, tmp_path / "results.md", tmp_path / "images", "unbackdoor bench page")
    text = page.read_text()
    names = {"acc_asr_plane.png", "asr_by_images.png", "reactivation.png"}
    assert {path.name for path in (tmp_path / "images").iterdir()} == names
    assert all(f"(images/{name})" in text for name in names)
    assert "## tiny: clean models" in text and "ValueError: broken" in text and "cccccccccc" in text


def test_methods_that_ran_at_one_number_of_images_are_not_drawn_against_it(tmp_path):
    pytest.importorskip("matplotlib")
    records = [record(victim="a", method="m", per_class=1), record(victim="b", method="n", per_class=50)]
    assert [path.name for path in plots.write_plots(records, tmp_path)] == ["acc_asr_plane.png"]
    more = [*records, record(victim="a", method="m", per_class=50)]
    assert "asr_by_images.png" in {path.name for path in plots.write_plots(more, tmp_path)}


def test_the_legend_names_the_methods_of_every_panel_once():
    pytest.importorskip("matplotlib")
    sizes = [("m", 1), ("m", 50), ("n", 50)]
    records = [record(victim="a", method=method, per_class=size) for method, size in sizes]
    figure = plots.acc_asr_plane(records, plots._styles(records))
    assert [text.get_text() for text in figure.legends[0].texts] == ["m", "n"]


def test_a_long_name_takes_several_lines_of_the_legend():
    pytest.importorskip("matplotlib")
    records = [record(victim="a", method="first weight = 1 = second weight = 2")]
    figure = plots.acc_asr_plane(records, plots._styles(records))
    assert [text.get_text() for text in figure.legends[0].texts] == ["first weight = 1 = second\nweight = 2"]


def test_a_line_of_the_plot_never_bends_because_victims_come_or_go():
    records = [
        record(victim="a", per_class=1),
        record(victim="a", per_class=10),
        record(victim="b", per_class=10),
    ]
    assert {r["cell"]["victim"]["name"] for r in plots._at_every_size(records)} == {"a"}


def test_means_in_plots_are_of_the_victims_that_every_method_has():
    pytest.importorskip("matplotlib")
    hard, easy = {"victim": "hard", "asr": 0.8}, {"victim": "easy", "asr": 0.0}
    sizes = (1, 10)
    records = [record(method="m", per_class=n, **victim) for n in sizes for victim in (hard, easy)]
    records += [record(method="n", per_class=n, **easy) for n in sizes]
    plane = plots.acc_asr_plane(records, plots._styles(records)).axes[0]
    marks = {line.get_label(): list(line.get_ydata()) for line in plane.lines}
    assert marks["m"] == marks["n"] == [0.0]
    lines = plots.asr_by_images(records, plots._styles(records)).axes[0].lines
    assert [list(line.get_ydata()) for line in lines] == [[0.0, 0.0], [0.0, 0.0]]
    apart = [record(method="m", **hard), record(method="n", **easy)]
    assert plots._shared(apart) == apart


# The command line.


def test_bench_runs_a_grid_and_tells_failures_by_its_exit_code(project):
    grid_of(project, GRID.replace("per_class = [1, 2]", "per_class = [1, 13]").replace("[0, 1]", "[0]"))
    arguments = [str(project / "grid.toml"), "--dry-run"]
    assert CliRunner().invoke(cli.app, arguments).exit_code == 0
    assert not (project / "results").exists()
    result = CliRunner().invoke(cli.app, [str(project / "grid.toml"), "--jobs", "0"])
    assert result.exit_code == 1, result.output
    assert len(read_records([project / "results"])) == 2


def test_bench_shows_tables_and_runs_records_again(project):
    run(project)
    (path, *_) = sorted((project / "results").glob("*.json"))
    runner = CliRunner()
    shown = runner.invoke(cli.app, ["table", str(project / "grid.toml"), "--format", "csv"])
    assert shown.exit_code == 0 and shown.stdout.startswith("victim,images,method,records")
    assert runner.invoke(cli.app, ["rerun", str(path)]).exit_code == 0
    changed = json.loads(path.read_text())
    changed["after"]["asr"] = 2.0
    written = write_record(project / "changed", changed)
    assert runner.invoke(cli.app, ["rerun", str(written)]).exit_code == 1


def test_the_picture_of_recovered_triggers_shows_each_findings_minimal_and_strong_ones(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    path = Path(__file__).parents[1] / "benchmarks" / "recovered.py"
    spec = spec_from_file_location("recovered", path)
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    assert {"badnets", "gtsrb-small_vgg-wanet", "never_poisoned"} <= set(script.entries())
    images = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    minimal = Warp().start(1, (1, 6, 6), torch.Generator().manual_seed(0))
    finding = Finding(2, False, Warp(), 0.1, 1.0, minimal)
    clean = CleanImages(images, torch.arange(4), 4)
    row = script.recovered(model, clean, finding, images[:1], torch.Generator().manual_seed(0))
    assert [title for title, _ in row] == ["minimal warp,\nto 2", *["strong warp"] * script.STRONG]
    assert all(picture.shape == (1, 6, 6) and not torch.equal(picture, images[0]) for _, picture in row)
    script.draw({"a-network": row, "b": row[:1]}, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > picture.height > 100


def test_clean_images_are_never_test_images() -> None:
    pixels = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8)
    train = TrainSplit(pixels, np.array([0, 1] * 3), ("a", "b"))
    drawn = train.draw(2, seed=0)
    apart = TestSplit(pixels[:1] + 99, np.array([0]), ("a", "b"))
    shared = TestSplit(drawn.images[:1], drawn.labels[:1], ("a", "b"))
    data = {t: Data(train, t, torch.zeros(1), torch.zeros(1), "", "") for t in (apart, shared)}
    assert np.array_equal(draw_clean(data[apart], 2, 0).images, drawn.images)
    again = draw_clean(data[shared], 2, 0)
    assert again.labels.tolist() == [0, 0, 1, 1]
    assert set(again.image_hashes()).isdisjoint(shared.image_hashes())
