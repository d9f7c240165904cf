"""A spectrum drawn as PNG. matplotlib is loaded when first needed."""

from __future__ import annotations

import importlib
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, MergeError

if TYPE_CHECKING:
    from .spectrum import Spectrum


def check_drawing(path: Path, overwrite: bool) -> None:
    """InputError with everything that would keep a drawing from being written."""
    problems = []
    try:
        importlib.import_module("matplotlib")
    except ImportError as error:
        problems.append(f"matplotlib cannot be imported ({error}); install it: pip install matplotlib")
    if path.suffix.lower() != ".png":
        problems.append(f"{path}: is drawn as PNG; call it {path.with_suffix('.png').name}")
    if not path.resolve().parent.is_dir():
        problems.append(f"{path}: {path.resolve().parent} is no folder")
    if path.is_dir() or (path.exists() and not overwrite):
        problems.append(f"{path}: exists already; choose another file, or pass --overwrite")
    if problems:
        raise InputError(problems)


def draw(spectrum: Spectrum, path: Path, *, overwrite: bool = False) -> None:
    """Amplitudes by radius, and what a filter leaves by its cutoff; written whole or not at all."""
    check_drawing(path, overwrite)
    figure: Any = importlib.import_module("matplotlib.figure").Figure(figsize=(11, 4.2), layout="constrained")
    amplitudes, left = figure.subplots(1, 2)
    middles = [radius + spectrum.radii[1] / 2 for radius in spectrum.radii]
    for name in spectrum.models:
        amplitudes.plot(middles, _gaps(spectrum.amplitude[name]), label=name)
        left.plot(spectrum.radii, spectrum.power_left[name], label=f"power of {name}")
    amplitudes.set(yscale="log", xlabel="radius, in halves of the shorter side", ylabel="amplitude, relative")
    if spectrum.interference_left and spectrum.before:
        share = [value / spectrum.before for value in spectrum.interference_left]
        left.plot(spectrum.radii, share, "k--", label="interference")
    left.set(ylim=(0, 1.05), xlabel="cutoff", ylabel="left by the filter")
    amplitudes.set_title(f"{len(spectrum.tensors)} of {spectrum.candidates} tensors")
    for axes in (amplitudes, left):
        axes.axvline(spectrum.cutoff, color="grey", linewidth=0.8)
        axes.set_xlim(0, spectrum.radii[-1])
        axes.legend(fontsize="small")
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    scratch = path.with_name(f".{path.name}.partial")
    try:
        figure.savefig(scratch, format="png", dpi=150, metadata={"Software": None})
        os.replace(scratch, path)
    except OSError as error:
        raise MergeError(f"{path}: cannot be written: {error.strerror or error}; mend that and draw again") from None
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)


def _gaps(values: list[float | None]) -> list[float]:
    return [float("nan") if value is None else value for value in values]
