"""The task-arithmetic family once more, in float64 NumPy and by sorting: what the methods are tested against."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Tensors = Mapping[str, Array]


def order(tau: Array) -> NDArray[np.int64]:
    """Indices by falling magnitude, the first of equals first."""
    return np.argsort(-np.abs(tau.ravel()), kind="stable")


def window(tau: Array, top: int, bottom: int) -> Mask:
    """The elements of ranks top … bottom − 1."""
    mask = np.zeros(tau.size, dtype=bool)
    mask[order(tau)[top:bottom]] = True
    return mask.reshape(tau.shape)


def philox(i: int, key: int) -> int:
    """Word i & 3 of Philox4x32-10 with the counter i >> 2 (Salmon et al. 2011)."""
    c = [(i >> 2) & 0xFFFFFFFF, i >> 34, 0, 0]
    k = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(b >> 32) ^ c[1] ^ k[0], b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c[i & 3]


def key(*texts: str) -> int:
    digest = hashlib.blake2b()
    for text in texts:
        digest.update(len(text.encode()).to_bytes(8, "little") + text.encode())
    return int.from_bytes(digest.digest()[:8], "little")


def kept_by_chance(tau: Array, key: int, probabilities: Sequence[Fraction]) -> Mask:
    """probabilities: of keeping, per element."""
    words = (philox(i, key) for i in range(tau.size))
    mask = [word >= int((1 - p) * 2**32) for word, p in zip(words, probabilities, strict=True)]
    return np.array(mask, dtype=bool).reshape(tau.shape)


def della(tau: Array, density: Fraction, epsilon: Fraction) -> list[Fraction]:
    """Per element the probability of keeping it: by its rank in the row, ascending."""
    rows = tau.reshape(tau.shape[0], -1) if tau.ndim > 1 and tau.size else tau.reshape(1, -1)
    probabilities = []
    for row in rows:
        ranks = np.empty(row.size, dtype=int)
        ranks[np.argsort(np.abs(row), kind="stable")] = np.arange(row.size)
        step = 2 * epsilon / (row.size - 1) if row.size > 1 else Fraction(0)
        first = density - epsilon if row.size > 1 else density
        probabilities += [first + step * int(rank) for rank in ranks]
    return probabilities


def vote(terms: list[Array], taus: list[Array], weights: Sequence[float], how: str, merge: str) -> Array:
    """TIES-Merging's sign election and disjoint merge of weighted, masked task vectors."""
    voices = {"weighted": terms, "unweighted": taus, "count": [np.sign(t) for t in terms]}[how]
    sign = np.where(sum(voices) < 0, -1, 1)
    agree = [np.sign(voice) == sign for voice in voices]
    total = sum(np.where(a, t, 0) for a, t in zip(agree, terms, strict=True))
    if merge == "sum":
        return np.asarray(total)
    shares = weights if merge == "weighted_mean" else [1.0] * len(weights)
    divisor = sum(np.where(a, w, 0) for a, w in zip(agree, shares, strict=True))
    return np.asarray(total / np.where(divisor == 0, 1, divisor))


def merge(method: str, base: Tensors, models: Mapping[str, Tensors], **params: Any) -> dict[str, Array]:
    """Every tensor merged; params as the methods have them, weights and densities as lists."""
    taus = {n: {t: m[t] - base[t] for t in base} for n, m in models.items()}
    masks = {t: _masks(method, t, {n: taus[n][t] for n in models}, taus, params) for t in base}
    merged = {}
    for tensor, origin in base.items():
        own = [taus[n][tensor] for n in models]
        weights = params.get("weights", [1.0] * len(own))
        kept = [np.where(mask, tau, 0) for mask, tau in zip(masks[tensor], own, strict=True)]
        factors = _factors(own, kept, params)
        terms = [w * f * tau for w, f, tau in zip(weights, factors, kept, strict=True)]
        if method in ("ties", "dare_ties", "della", "breadcrumbs_ties"):
            default = "weighted_mean" if method == "ties" else "sum"
            delta = vote(terms, kept, weights, params.get("vote", "weighted"), params.get("merge", default))
        else:
            delta = sum(terms) / (sum(weights) if params.get("normalize") else 1)  # type: ignore[assignment]
        merged[tensor] = origin + params.get("scale", 1.0) * delta
    return merged


def _densities(params: Mapping[str, Any], count: int) -> list[Fraction]:
    density = params["density"]
    return [Fraction(repr(d)) for d in (density if isinstance(density, list) else [density] * count)]


def _masks(
    method: str, tensor: str, own: dict[str, Array], every: dict[str, dict[str, Array]], params: Mapping[str, Any]
) -> list[Mask]:
    densities = dict(zip(own, _densities(params, len(own)), strict=True))
    if method == "ties" and params.get("scope") == "global":
        return [_whole_vector(every[n], densities[n])[tensor] for n in own]
    if method == "ties":
        return [window(tau, 0, int(densities[n] * tau.size)) for n, tau in own.items()]
    if method.startswith("breadcrumbs"):
        gamma = Fraction(repr(params.get("gamma", 0.01)))
        tops = {n: int(gamma * tau.size) for n, tau in own.items()}
        return [window(tau, tops[n], tops[n] + int(densities[n] * tau.size)) for n, tau in own.items()]
    epsilon = Fraction(repr(params.get("epsilon", 0.1)))
    masks = []
    for name, tau in own.items():
        even = [densities[name]] * tau.size
        probabilities = della(tau, densities[name], epsilon) if method.startswith("della") else even
        masks.append(kept_by_chance(tau, key(str(params.get("seed", 0)), method, tensor, name), probabilities))
    return masks


def _whole_vector(taus: Mapping[str, Array], density: Fraction) -> dict[str, Mask]:
    whole = np.concatenate([tau.ravel() for tau in taus.values()])
    mask = window(whole, 0, int(density * whole.size))
    ends = np.cumsum([tau.size for tau in taus.values()])
    parts = np.split(mask, ends[:-1])
    return {name: part.reshape(tau.shape) for (name, tau), part in zip(taus.items(), parts, strict=True)}


def _factors(own: list[Array], kept: list[Array], params: Mapping[str, Any]) -> list[float]:
    if params.get("rescale") == "l1":
        norms = [(np.abs(tau).sum(), np.abs(part).sum()) for tau, part in zip(own, kept, strict=True)]
        return [float(np.float32(before / after)) if after else 0.0 for before, after in norms]
    if params.get("rescale") == "density":
        return [float(1 / d) if d else 0.0 for d in _densities(params, len(own))]
    return [1.0] * len(own)
