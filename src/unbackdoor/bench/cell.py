"""``run_cell``: one cell of a grid, from plain values to a plain record.

The bench knows the trigger and the test split; the method gets the network, the drawn clean images and a
seed. Any engine that can call a function of plain values can run a grid.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from unbackdoor._evaluate import Metrics, defence_effectiveness
from unbackdoor._files import write_json
from unbackdoor._provenance import environment
from unbackdoor._purify import Purified, purify
from unbackdoor.bench.grid import method_of
from unbackdoor.bench.memory import PeakMemory
from unbackdoor.bench.reactivate import Reactivation, reactivate
from unbackdoor.bench.records import FORMAT, HASH_LENGTH, digest, read_json, slug
from unbackdoor.bench.victims import Data, Victim, load_victim
from unbackdoor.data import TrainSplit

Plain = dict[str, Any]


def run_cell(cell: Plain, *, root: str = ".", device: str = "cpu", cache: str | None = None) -> Plain:
    """Run one cell and return its record; a cell that fails gives a record with its error.

    Args:
        cell: as ``unbackdoor.bench.grid`` describes it.
        root: folder that the cell's relative paths start from.
        device: a torch device; it and the threads of this process are in the record, not in the cell.
        cache: folder where the metrics of victims before purification are kept between cells; ``None``
            measures anew.

    Returns:
        The record: ``status`` ("done" or "failed"), the cell, versions, commit, hashes, metrics before and
        after, seconds and peak memory of the purification alone, the method's own details.
    """
    start = time.perf_counter()
    place = torch.device(device)
    try:
        outcome = _outcome(cell, Path(root), place, Path(cache) if cache else None)
        status: Plain = {"status": "done"}
    except Exception as error:  # noqa: BLE001  whatever a cell raises is its result
        outcome, status = failure(error), {"status": "failed"}
    wall = round(time.perf_counter() - start, 3)
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"format": FORMAT, **status, "cell": cell, **environment(place), **outcome}
    return _finite({**record, "wall_seconds": wall, "finished": finished})


def failure(error: BaseException) -> Plain:
    """Return what a record says about an error."""
    trace = "".join(traceback.format_exception(error))
    return {"error": f"{type(error).__name__}: {error}", "traceback": trace}


def measure_before(entry: Plain, *, root: str = ".", device: str = "cpu", cache: str) -> Plain:
    """Measure a victim before purification and keep the metrics in ``cache``; plain values in and out."""
    victim = load_victim(entry, root)
    victim.model.to(device)
    return _before(entry, victim, Path(cache))


def _outcome(cell: Plain, root: Path, device: torch.device, cache: Path | None) -> Plain:
    victim = load_victim(cell["victim"], root)
    victim.model.to(device)
    before = _before(cell["victim"], victim, cache)
    clean = draw_clean(victim.data, cell["per_class"], cell["draw"])
    purified, memory = _purify(cell, victim, clean)
    after = victim.figures(purified.model)
    return {
        "data": _data(cell, victim, clean),
        "victim": victim.facts(),
        "seed": cell["draw"],
        "before": before,
        "after": {**after, "der": _der(before, after)},
        "seconds": purified.report.seconds,
        **memory,
        "changed": purified.report.changed,
        "details": purified.report.details,
        "reactivation": _reactivation(cell, victim, purified),
    }


def draw_clean(data: Data, per_class: int, seed: int) -> TrainSplit:
    """Return the clean images of one draw, none of them in the test split.

    GTSRB has a few images in both: a draw that holds one is made again from the training images that are
    not test images. Draws without one are those of the whole training split.
    """
    drawn = data.train.draw(per_class, seed)
    if set(data.test.image_hashes()).isdisjoint(drawn.image_hashes()):
        return drawn
    return data.train.without(data.test).draw(per_class, seed)


def _purify(cell: Plain, victim: Victim, clean: TrainSplit) -> tuple[Purified, Plain]:
    """Run the method on the drawn images alone, and tell the peak memory."""
    images, labels = clean.tensors()
    method = method_of(cell["method"])
    peak = PeakMemory(next(victim.model.parameters()).device)
    peak.start()
    at_start = peak.read()
    purified = purify(victim.model, images, labels, method=method, seed=cell["draw"])
    return purified, {
        "peak_memory": peak.read(),
        "memory_at_start": at_start,
        "memory_source": peak.source,
    }


def _before(entry: Plain, victim: Victim, cache: Path | None) -> Plain:
    if cache is None:
        return victim.figures(victim.model)
    attack = {"trigger": entry.get("trigger"), "labels": entry.get("labels")}
    key = digest([victim.facts(), victim.data.test_sha256, attack])[:HASH_LENGTH]
    path = cache / f"{slug(entry['name'])}-{key}.json"
    if path.exists():
        return read_json(path)["metrics"]
    metrics = victim.figures(victim.model)
    cache.mkdir(parents=True, exist_ok=True)
    write_json(path, {"format": FORMAT, "victim": entry, "sha256": victim.sha256, "metrics": metrics})
    return metrics


def _data(cell: Plain, victim: Victim, clean: TrainSplit) -> Plain:
    return {
        "name": cell["victim"]["data"]["name"],
        "train_sha256": victim.data.train_sha256,
        "test_sha256": victim.data.test_sha256,
        "clean_sha256": clean.content_hash(),
        "num_clean": len(clean),
    }


def _der(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    if before["asr"] is None:
        return None
    return defence_effectiveness(Metrics(**before), Metrics(**after))


def _reactivation(cell: Plain, victim: Victim, purified: Purified) -> list[Plain] | None:
    if cell["reactivation"] is None or victim.trigger is None or victim.label_map is None:
        return None
    options = Reactivation(**{**cell["reactivation"], "steps": tuple(cell["reactivation"]["steps"])})
    return reactivate(
        purified.model,
        victim.data.train,
        victim.trigger,
        victim.label_map,
        lambda model: victim.measure(model),
        options,
        seed=cell["draw"],
    )


def _finite(value: Any) -> Any:
    """Return plain values with NaN and infinities as text, which JSON has no numbers for."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
