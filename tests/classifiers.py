"""Small classifiers in float64 and their fine-tunes, for methods that look at data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEATURES, CLASSES = 5, 3


class Classifier(nn.Module):
    """Features [n, 5] to logits [n, 3], and a buffer that nothing trains."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.up, self.down = nn.Linear(FEATURES, 7), nn.Linear(7, CLASSES)
        self.register_buffer("shift", 0.1 * seed * torch.linspace(0.5, 1.5, FEATURES))
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x + self.shift)))


def members(count: int, dtype: torch.dtype = torch.float64) -> dict[str, dict[str, Tensor]]:
    """State dicts near Classifier(0)."""
    base, found = Classifier(0, dtype).state_dict(), {}
    for k in range(count):
        other = Classifier(k + 1, dtype).state_dict()
        found[f"m{k}"] = {n: t + 0.3 * (other[n] - t) for n, t in base.items()}
    return found


def features(seed: int, count: int = 6, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
