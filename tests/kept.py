"""Selections to test with: cuts at magnitudes that elements have, drops, masks, and every way to vote."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from fastmerge import ops

PARTS = ((), ("trim",), ("bottoms",), ("drops",), ("keep",), ("trim", "drop", "keep"))
VOTES = [
    {"consensus": consensus, "merge": merge}
    for consensus, merge in product(("weighted", "unweighted", "count"), ("sum", "mean", "weighted_mean"))
]
WAYS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    *product(PARTS, VOTES),
    *product(PARTS[1:], ({"consensus": "sum", "normalize": True}, {"consensus": "max"})),
]


def kept(base: Tensor | None, models: Sequence[Tensor], offset: int, parts: Sequence[str]) -> ops.Kept:
    """Of elements offset … offset + n of a tensor. Each model's window and drop is of another kind; "bottoms" trims as
    TIES does, the fourth model wholly, "drops" loses no model as "drop" does."""
    n, k = models[0].numel(), len(models)
    wide = ops.working_dtype(models if base is None else [base, *models])
    windows, bottoms = [], []
    for i, model in enumerate(models):
        sizes = (model.to(wide) - (0 if base is None else base.to(wide))).abs()
        ranked = [*sizes[sizes.isfinite()].sort().values.tolist()] or [0.5]
        low = ops.Cut(ranked[len(ranked) // 4], offset + n // 2)
        high = ops.Cut(ranked[len(ranked) * 7 // 8], offset + n // 4)
        windows.append((ops.Window(bottom=low), ops.Window(high, low), ops.Window(), ops.Window(top=high))[i % 4])
        bottoms.append(ops.Window(bottom=ops.Cut(float("inf"), 0) if i % 4 == 3 else low))
    most = 2**32 if "drop" in parts else 2**32 - 1
    drops = [ops.Drop(2**63 + 12345 * i, (2**31, 0, most, 2**30 + 7)[i % 4]) for i in range(k)]
    bits = torch.randint(0, 256, (k, ops.packed_bytes(n)), generator=torch.Generator().manual_seed(n)).to(torch.uint8)
    bits = bits.to(models[0].device)
    return ops.Kept(
        trim=windows if "trim" in parts else bottoms if "bottoms" in parts else None,
        drop=drops if "drop" in parts or "drops" in parts else None,
        keep=bits if "keep" in parts else None,
    )
