"""FR- and FREE-Merging once more, in float64 NumPy with whole spectra: what the methods are tested against."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Tensors = Mapping[str, Array]


def paper_mask(h: int, w: int, distance: float) -> NDArray[np.bool_]:
    """Signed integer frequencies at least so far from zero."""
    eta, gamma = np.fft.fftfreq(h, 1 / h)[:, None], np.fft.fftfreq(w, 1 / w)
    return np.asarray(np.sqrt(eta**2 + gamma**2) >= distance)


def released_mask(h: int, w: int, distance: float) -> NDArray[np.bool_]:
    """Indices of the unshifted spectrum at most so far from the middle one."""
    y, x = np.arange(h)[:, None], np.arange(w)
    return np.asarray(np.sqrt((y - h // 2) ** 2 + (x - w // 2) ** 2) <= distance)


def mask(h: int, w: int, params: Mapping[str, Any]) -> NDArray[np.bool_]:
    if params.get("convention") == "released":
        return released_mask(h, w, params.get("ratio", 0.7) * min(h, w))
    if "bins" in params:
        distances = [*sorted({math.sqrt(a * a + b * b) for a in range(h) for b in range(w)}), math.inf]
        return next(m for d in distances if (~(m := paper_mask(h, w, d))).sum() >= params["bins"] * h * w)
    return paper_mask(h, w, params.get("cutoff", 0.3) * min(h, w) / 2)


def highpass(x: Array, params: Mapping[str, Any]) -> Array:
    """Each matrix of x [..., H, W] filtered."""
    kept = mask(x.shape[-2], x.shape[-1], params)
    return np.asarray(np.fft.ifft2(kept * np.fft.fft2(x)).real)


def merge(
    base: Tensors,
    models: Sequence[Tensors],
    matrices: Callable[[str], tuple[int, ...] | None],
    params: Mapping[str, Any],
) -> tuple[dict[str, Array], dict[str, list[float]]]:
    """(merged tensors, each tensor's coefficients). matrices: how a tensor is filtered, None where it is not."""
    taus = {name: [model[name] - base[name] for model in models] for name in base}
    chosen = [name for name in base if matrices(name) is not None]
    kind = params.get("coefficients", "global")
    merged, used = {}, {}
    for name, own in taus.items():
        if kind == "global":
            sizes = [sum(np.abs(taus[n][k]).sum() for n in chosen) for k in range(len(models))]
        elif kind == "mean_of_means":
            sizes = [sum(np.abs(taus[n][k]).mean() for n in chosen) for k in range(len(models))]
        elif kind == "tensor":
            sizes = [np.abs(tau).sum() for tau in own]
        used[name] = kind if isinstance(kind, list) else [1.0] * len(models)
        if kind in ("global", "mean_of_means", "tensor"):
            used[name] = [float(s / sum(sizes)) for s in sizes]
        merged[name] = base[name] + params.get("scale", 1.0) * _delta(own, used[name], matrices(name), params)
    return merged, used


def _delta(
    taus: list[Array], weights: Sequence[float], shape: tuple[int, ...] | None, params: Mapping[str, Any]
) -> Array:
    if shape is None:
        deltas = [tau * (params.get("others") != "base") for tau in taus]
    else:
        deltas = [highpass(tau.reshape(shape), params).reshape(tau.shape) for tau in taus]
        if params.get("align") == "layer":
            means = [np.abs(delta).mean() for delta in deltas]
            deltas = [delta * (max(means) / own) for delta, own in zip(deltas, means, strict=True)]
    return np.asarray(sum(w * d for w, d in zip(weights, deltas, strict=True)))


def largest(tau: Array, k: int) -> NDArray[np.bool_]:
    """The k elements of largest magnitude, the first of equals first."""
    chosen = np.zeros(tau.size, dtype=bool)
    chosen[np.argsort(-np.abs(tau.ravel()), kind="stable")[:k]] = True
    return chosen.reshape(tau.shape)


def expert(taus: Tensors, density: Fraction, scope: str) -> dict[str, NDArray[np.bool_]]:
    """Which elements of a task vector its expert keeps."""
    if scope == "tensor":
        return {name: largest(tau, math.ceil(density * tau.size)) for name, tau in taus.items()}
    if scope == "row":
        rows = {name: tau.reshape(len(tau), -1) if tau.ndim > 1 else tau.reshape(1, -1) for name, tau in taus.items()}
        return {
            name: np.stack([largest(row, int(density * own.shape[1])) for row in own]).reshape(taus[name].shape)
            for name, own in rows.items()
        }
    flat = np.concatenate([tau.ravel() for tau in taus.values()])
    whole = largest(flat, math.ceil(density * flat.size))
    ends = np.cumsum([tau.size for tau in taus.values()])[:-1]
    parts = np.split(whole, ends)
    return {name: part.reshape(tau.shape) for (name, tau), part in zip(taus.items(), parts, strict=True)}
