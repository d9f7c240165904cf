"""A run drawn as PNG. matplotlib is loaded when first needed."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ..engine.spectrum_plot import check_drawing, save_figure
from .record import Record

LABELLED = 40  # rows and steps that get their names


def draw(record: Record, path: Path, *, overwrite: bool = False) -> None:
    """Loss and gap by step, and by layer and step which candidate got most; written whole or not at all."""
    check_drawing(path, overwrite)
    figure: Any = importlib.import_module("matplotlib.figure").Figure(figsize=(12, 4.5), layout="constrained")
    curves, choices = figure.subplots(1, 2, width_ratios=(2, 3))
    numbers = [step.number for step in record.steps]
    losses = [*(step.loss for step in record.steps), *([record.loss] if record.loss is not None else [])]
    curves.plot(range(len(losses)), losses, "o-", markersize=3, label="loss")
    curves.set(xlabel="step", ylabel="loss")
    gaps = [(step.number, step.gap) for step in record.steps if step.gap is not None and step.gap > 0]
    if gaps:
        right = curves.twinx()
        right.plot(*zip(*gaps, strict=True), "s--", markersize=3, color="tab:red", label="gap")
        right.set(yscale="log", ylabel="gap")
        right.legend(loc="upper right", fontsize="small")
    curves.legend(loc="lower left", fontsize="small")
    _choices(choices, record, numbers)
    save_figure(figure, path)


def _choices(axes: Any, record: Record, numbers: list[int]) -> None:
    """A heat map: rows are layers, columns steps, colours candidates."""
    chosen = [_most(record, i) for i in range(len(numbers)) if record.steps[i].vertices]
    if not chosen:
        axes.set_axis_off()
        return
    rows = max(map(len, chosen))
    table = [[column[row if len(column) > 1 else 0] for column in chosen] for row in range(rows)]
    k = len(record.candidates)
    colours: Any = importlib.import_module("matplotlib").colormaps["turbo"].resampled(k)
    image = axes.imshow(table, aspect="auto", interpolation="nearest", cmap=colours, vmin=-0.5, vmax=k - 0.5)
    bar = axes.figure.colorbar(image, ax=axes, ticks=range(k) if k <= LABELLED else None)
    if k <= LABELLED:
        bar.ax.set_yticklabels(record.candidates, fontsize="x-small")
    names = record.rows if rows == len(record.rows) else ["model"]
    if rows <= LABELLED:
        axes.set_yticks(range(rows), names, fontsize="x-small")
    axes.set(xlabel="step", title="chosen (of several, what got most)")


def _most(record: Record, i: int) -> list[int]:
    """By row, the vertex of a step that got the largest weight."""
    step = record.steps[i]
    found = []
    for row, names in enumerate(step.vertices):
        weights = step.weights[row if len(step.weights) > 1 else 0]
        found.append(record.candidates.index(max(zip(weights, names, strict=True), key=lambda pair: pair[0])[1]))
    if len(step.vertices) == 1 < len(step.weights):
        names = step.vertices[0]
        found = [record.candidates.index(names[w.index(max(w))]) for w in step.weights]
    return found
