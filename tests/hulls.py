"""Convex quadratics over hulls of random models, and their minima by a solver that has nothing of Frank-Wolfe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SHAPES = {"a": (3, 4), "b": (5,)}


class Weights(nn.Module):
    """Parameters and nothing else, which tests put a loss on."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in state.items():
            self.register_parameter(name, nn.Parameter(tensor.clone()))


class Problem:
    """½ Σ_l ‖A_l(θ_l − t_l)‖² over the hull of K models and an initial one; t is near the hull of some of them."""

    def __init__(
        self, seed: int, k: int = 5, dtype: torch.dtype = torch.float64, shapes: Mapping[str, tuple[int, ...]] = SHAPES
    ) -> None:
        self.random = torch.Generator().manual_seed(seed)
        self.shapes, self.dtype = shapes, dtype
        self.initial, *self.pool = (self._state() for _ in range(k + 1))
        shares = torch.rand(k, generator=self.random)
        shares[k // 2 :] = 0
        self.target = {n: self._near(n, shares / shares.sum()) for n in shapes}
        self.maps = {n: self._normal((self._size(n), self._size(n))) / self._size(n) ** 0.5 for n in shapes}

    def model(self) -> Weights:
        return Weights(self.initial)

    def loss(self, model: nn.Module, batch: Any = None) -> Tensor:
        parts = [self._part(n, p) for n, p in model.named_parameters()]
        return torch.stack(parts).sum()

    def _part(self, name: str, theta: Tensor) -> Tensor:
        return (
            0.5 * (self.maps[name] @ (theta.double().flatten() - self.target[name].double().flatten())).square().sum()
        )

    def curvature(self) -> float:
        """L · diam², for the hull of all."""
        largest = max(float(torch.linalg.matrix_norm(a, 2)) ** 2 for a in self.maps.values())
        vertices = torch.stack([torch.cat([s[n].flatten() for n in self.shapes]) for s in [self.initial, *self.pool]])
        return largest * float(torch.cdist(vertices.double(), vertices.double()).max()) ** 2

    def least(self, *, by_layer: bool = False, initial: bool = True) -> float:
        """The minimum over the hull, or over the product of the layers' hulls."""
        states = ([self.initial] if initial else []) + self.pool
        groups = [[n] for n in self.shapes] if by_layer else [list(self.shapes)]
        return sum(self._least(states, names) for names in groups)

    def _least(self, states: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> float:
        columns = [np.concatenate([(self.maps[n] @ s[n].double().flatten()).numpy() for n in names]) for s in states]
        aim = np.concatenate([(self.maps[n] @ self.target[n].double().flatten()).numpy() for n in names])
        return min(found for count in range(1, len(states) + 1) for found in _on_faces(columns, aim, count))

    def _state(self) -> dict[str, Tensor]:
        return {n: self._normal(shape).to(self.dtype) for n, shape in self.shapes.items()}

    def _normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self.random, dtype=torch.float64)

    def _near(self, name: str, shares: Tensor) -> Tensor:
        inside = sum(float(w) * s[name].double() for w, s in zip(shares, self.pool, strict=True))
        return inside + 0.2 * self._normal(self.shapes[name])

    def _size(self, name: str) -> int:
        return int(np.prod(self.shapes[name]))


def _on_faces(columns: Sequence[np.ndarray], aim: np.ndarray, count: int) -> list[float]:
    """½‖V λ − aim‖² at the minimum of the affine hull of each face, where that lies in the face."""
    found = []
    for face in combinations(range(len(columns)), count):
        v = np.stack([columns[i] for i in face], 1)
        system = np.block([[v.T @ v, np.ones((count, 1))], [np.ones((1, count)), np.zeros((1, 1))]])
        lam = np.linalg.lstsq(system, np.concatenate([v.T @ aim, [1.0]]), rcond=None)[0][:count]
        if lam.min() >= -1e-12:
            found.append(0.5 * float(((v @ lam - aim) ** 2).sum()))
    return found
