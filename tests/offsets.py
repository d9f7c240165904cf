"""Elements far into a tensor, selected and weighted by where they are, against the same elements alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from tensors import BF16, assert_same_bits, make
from torch import Tensor

from fastmerge import ops
from fastmerge.ops import BLOCK

COLUMNS = 1000  # of a row, whose weight, or factor of a product, is its own


def check_offsets(n: int, tail: int, device: str) -> int:
    """n elements by the CUDA backend: the first block, and those from `tail` on, a multiple of BLOCK, are the
    reference's, to the bit. Memory for four tensors of bfloat16 and one of bool is needed at a time."""
    rows = -(-n // COLUMNS)
    table = torch.linspace(-1, 1, 2 * rows).view(2, rows)
    down = torch.linspace(0, 2, 2 * COLUMNS).view(2, COLUMNS)
    trim = [ops.Window(bottom=ops.Cut(0.5, (tail + n) // 2)), ops.Window()]  # a magnitude that many elements have
    kept = ops.Kept(trim, [ops.Drop(key, 1 << 30) for key in (1, 2**63)])

    def masks(model: Tensor, backend: str) -> Tensor:
        return ops.pack_bits(model > 0, backend=backend)

    calls: dict[str, Callable[[Tensor, Sequence[Tensor], int, str], Tensor]] = {
        "combine": lambda base, models, first, backend: (
            ops.combine(base, models, [0.3, 0.7], kept=kept, offset=first, backend=backend).merged
        ),
        "modulate": lambda base, models, _, backend: ops.modulate(
            base, models[0], masks(models[1], backend), 1.3, backend=backend
        ),
        "blend": lambda base, models, first, backend: (
            ops.blend(base, models, table.to(base.device), inner=COLUMNS, offset=first, backend=backend).merged
        ),
        "low_rank": lambda base, _, first, backend: ops.low_rank(
            base, table.T.contiguous().to(base.device), down.to(base.device), 0.37, first=first, backend=backend
        ),
    }
    parts = slice(0, BLOCK), slice(tail, n)
    base, *models = (torch.zeros(n, dtype=BF16, device=device) for _ in range(3))
    for i, tensor in enumerate((base, *models)):
        for part in parts:
            tensor[part] = make(part.stop - part.start, BF16, seed=i + part.start % 97, special=False).to(device)
    for op, call in calls.items():
        found = call(base, models, 0, "cuda")
        for part in parts:
            alone = call(base[part].cpu(), [model[part].cpu() for model in models], part.start, "reference")
            assert_same_bits(found[part].cpu(), alone, f"{op} from {part.start} on")
        del found
    return len(calls)
