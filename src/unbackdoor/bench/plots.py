"""Plots from records: ASR against clean images, the ACC–ASR plane, ASR against steps of retuning."""

from __future__ import annotations

import statistics
import textwrap
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from unbackdoor._errors import UnbackdoorError
from unbackdoor._files import writing

Record = Mapping[str, Any]
MARKERS = "osD^v<>PhX*dp8H"
MOST_COLUMNS = 3
LEGEND_WIDTH = 30
"""Letters a line of the legend: a long name would leave the axes no room."""


def write_plots(records: Sequence[Record], folder: Path) -> list[Path]:
    """Write those plots as PNG that the records have figures for, and return their paths.

    Args:
        records: of one or several grids; only finished ones with a trigger are drawn.
        folder: is made if it is not there.

    Raises:
        UnbackdoorError: matplotlib is not installed, or no record has an ASR.
    """
    drawn = [r for r in records if r["status"] == "done" and r["after"]["asr"] is not None]
    if not drawn:
        raise UnbackdoorError(
            "no finished record with an ASR to draw", value=f"{len(records)} records", fix="run a grid"
        )
    folder.mkdir(parents=True, exist_ok=True)
    styles = _styles(drawn)
    paths = [_save(acc_asr_plane(drawn, styles), folder / "acc_asr_plane.png")]
    several = [r for own in _grouped(drawn, _label).values() if len(_sizes(own)) > 1 for r in own]
    if several:
        paths.append(_save(asr_by_images(several, styles), folder / "asr_by_images.png"))
    retuned = [r for r in drawn if r.get("reactivation")]
    if retuned:
        paths.append(_save(reactivation(retuned, styles), folder / "reactivation.png"))
    return paths


def asr_by_images(records: Sequence[Record], styles: Mapping[str, Mapping[str, Any]]) -> Any:
    """Draw mean ASR and mean ACC against clean images a class, one line a method; the band is the spread.

    The records are of methods that ran at several numbers; a lone point would have other victims than a line.

    Only victims that have records at every number of images that their method ran at count, so that a line
    never bends because victims come or go, and of these the ones that every method has, if there are any.
    """
    records = _shared([r for own in _grouped(records, _label).values() for r in _at_every_size(own)])
    figure, axes = pyplot().subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, metric in zip(axes, ("asr", "acc"), strict=True):
        for label, group in _grouped(records, _label).items():
            points = _grouped(group, lambda r: r["cell"]["per_class"])
            spots = sorted((size, *_mean_and_spread(rows, metric)) for size, rows in points.items())
            sizes, means, spreads = zip(*spots, strict=True)
            (line,) = axis.plot(sizes, means, **styles[label], label=label)
            low = [m - s for m, s in zip(means, spreads, strict=True)]
            high = [m + s for m, s in zip(means, spreads, strict=True)]
            axis.fill_between(sizes, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        axis.set(xscale="log", xlabel="clean images a class", ylabel=f"{metric.upper()} in %")
        ticks = sorted(_sizes(records))
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
    axes[0].set_ylim(-2, 102)
    _legend(figure)
    return figure


def acc_asr_plane(records: Sequence[Record], styles: Mapping[str, Mapping[str, Any]]) -> Any:
    """Draw ASR against the accuracy that was lost, one panel a number of images; best is lower left.

    Small marks are a method's victims (mean over draws), the large one is the mean over those that every
    method has.
    """
    panels = sorted(_grouped(records, lambda r: r["cell"]["per_class"]).items())
    columns = min(MOST_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    size = (2.0 + 4.0 * columns, 0.4 + 3.8 * rows)
    figure, axes = pyplot().subplots(
        rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axis, (count, group) in zip(axes.flat, panels, strict=False):
        _draw_plane(axis, group, styles)
        axis.tick_params(labelbottom=True)
        axis.set(title=f"{count} clean image{'s' if count > 1 else ''} a class")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    figure.supxlabel("ACC lost, in points")
    figure.supylabel("ASR in %")
    _legend(figure)
    return figure


def _draw_plane(axis: Any, records: Sequence[Record], styles: Mapping[str, Mapping[str, Any]]) -> None:
    shared = _grouped(_shared(records), _label)
    for label, group in _grouped(records, _label).items():
        spots = [_spot(own) for own in _grouped(group, _victim).values()]
        look = {**styles[label], "linestyle": "none"}
        axis.plot(*zip(*spots, strict=True), **{**look, "markersize": 3.5, "alpha": 0.45})
        axis.plot(*_spot(shared[label]), **{**look, "markersize": 9, "markeredgecolor": "black"}, label=label)
    axis.set_ylim(-3, 103)
    axis.axvline(0, color="0.8", linewidth=0.8, zorder=0)


def reactivation(records: Sequence[Record], styles: Mapping[str, Mapping[str, Any]]) -> Any:
    """Draw mean ASR against steps of retuning on poisoned samples, one line a method."""
    figure, axis = pyplot().subplots(figsize=(7.5, 4.2), layout="constrained")
    for label, group in _grouped(records, _label).items():
        by_step: dict[int, list[float]] = defaultdict(list)
        for record in group:
            for point in record["reactivation"]:
                by_step[point["step"]].append(100 * point["asr"])
        steps = sorted(by_step)
        axis.plot(steps, [statistics.fmean(by_step[step]) for step in steps], **styles[label], label=label)
    axis.set(xlabel="steps of retuning", ylabel="ASR in %", ylim=(-2, 102))
    _legend(figure)
    return figure


def _label(record: Record) -> str:
    return record["cell"]["method"]["label"]


def _grouped(records: Iterable[Record], key: Callable[[Record], Hashable]) -> dict[Any, list[Record]]:
    groups: dict[Any, list[Record]] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return dict(groups)


def _victim(record: Record) -> str:
    return record["cell"]["victim"]["name"]


def _at_every_size(records: Sequence[Record]) -> list[Record]:
    return [r for own in _grouped(records, _victim).values() if _sizes(own) == _sizes(records) for r in own]


def _shared(records: Sequence[Record]) -> list[Record]:
    """Return the records of victims that every method has, all records where no victim is."""
    everyones = [set(map(_victim, own)) for own in _grouped(records, _label).values()]
    common = set.intersection(*everyones) if everyones else set()
    return [r for r in records if _victim(r) in common or not common]


def _sizes(records: Iterable[Record]) -> set[int]:
    return {r["cell"]["per_class"] for r in records}


def _mean_and_spread(records: Sequence[Record], metric: str) -> tuple[float, float]:
    draws = _grouped(records, lambda r: r["cell"]["draw"]).values()
    means = [statistics.fmean(100 * r["after"][metric] for r in own) for own in draws]
    return statistics.fmean(means), statistics.stdev(means) if len(means) > 1 else 0.0


def _spot(records: Sequence[Record]) -> tuple[float, float]:
    lost = statistics.fmean(100 * (r["before"]["acc"] - r["after"]["acc"]) for r in records)
    return lost, statistics.fmean(100 * r["after"]["asr"] for r in records)


def _styles(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """Return one look a method, the same in all plots."""
    colours = pyplot().get_cmap("tab20").colors
    order = [*range(0, 20, 2), *range(1, 20, 2)]
    labels = sorted({_label(record) for record in records})
    return {
        label: {"color": colours[order[i % 20]], "marker": MARKERS[i % len(MARKERS)], "markersize": 5}
        for i, label in enumerate(labels)
    }


def _legend(figure: Any) -> None:
    """Name every method of any panel, once."""
    entries = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in figure.axes]
    handles = {label: handle for panel in entries for handle, label in panel}
    names = [textwrap.fill(name, LEGEND_WIDTH) for name in handles]
    figure.legend(handles.values(), names, loc="outside right upper", fontsize=8, frameon=False)


def _save(figure: Any, path: Path) -> Path:
    with writing(path) as part:
        figure.savefig(part, format="png", dpi=120)
    pyplot().close(figure)
    return path


def pyplot() -> Any:
    """Return ``matplotlib.pyplot``, drawing to files.

    Raises:
        UnbackdoorError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise UnbackdoorError(
            "plots need matplotlib", value="it is not installed", fix='pip install "unbackdoor[plots]"'
        ) from error
    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    return plt
