"""Compares one Triton op with the reference, on the CPU where TRITON_INTERPRET=1, else on a GPU; prints a summary.

interpreted.py OP SMALL|MIXED|BLOCK
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from fastmerge.kernels import cuda, reference
from tensors import BF16, DTYPES, F16, F32, F64, assert_same_bits, assert_sums, make, poisoned

from fastmerge import ops

SIZES = {"small": (0, 1, 7, 8, 63, 64, 65, 511, 1023, 1024, 1025, 2053), "mixed": (65, 1031), "block": (66_000,)}
GROUPS = {
    "small": [(d,) for d in DTYPES],
    "mixed": [(BF16, F32), (F32, BF16), (F16, BF16, F32), (BF16, BF16, F64), (F64, F16)],
    "block": [(BF16,)],
}
MODELS = {"small": (1, 2, 3, 5, 8, 13), "mixed": (1, 3, 5), "block": (3, 6)}


def check(op: str, dtypes: tuple[torch.dtype, ...], k: int, n: int, device: str) -> None:
    """One case; `unified` and outputs take the last dtype, so that mixtures round to another one."""
    what = f"{op} {dtypes} K={k} n={n}"
    inputs = [make(n, dtypes[i % len(dtypes)], seed=31 * i + n, special=n > 8) for i in range(k + 1)]
    if n % 2:  # an address that no vector load may assume to be aligned
        inputs = [torch.cat([x[:1], x])[1:] for x in inputs]
    base, *models = (x.to(device) for x in inputs)
    out = poisoned((n,), dtypes[-1]).to(device)
    words = ops.packed_bytes(n)
    if op == "modulate":
        mask = torch.empty(words, dtype=torch.uint8)
        reference.pack_bits(inputs[-1] > 0, mask)
        expected = poisoned((n,), dtypes[-1])
        reference.modulate(inputs[0], inputs[1], mask, 1.37, expected)
        cuda.modulate(base, models[0], mask.to(device), 1.37, out)
        assert_same_bits(out.cpu(), expected, what)
        return
    masks = poisoned((k, words), torch.uint8).to(device)
    sums = torch.full((2, k), 0.25, dtype=torch.float64, device=device)
    expected, expected_masks = poisoned((n,), dtypes[-1]), poisoned((k, words), torch.uint8)
    expected_sums = torch.full((2, k), 0.25, dtype=torch.float64)
    reference.elect(inputs[0], inputs[1:], expected, expected_masks, expected_sums)
    cuda.elect(base, models, out, masks, sums)
    assert_same_bits(out.cpu(), expected, what + " unified")
    assert_same_bits(masks.cpu(), expected_masks, what + " masks")
    assert_sums(sums.cpu(), expected_sums, ops.OPS["elect"].sums_rtol, what + " sums")
    if n > 65_536:
        check_chunks(base, models, sums)


def check_chunks(base: torch.Tensor, models: list[torch.Tensor], sums: torch.Tensor) -> None:
    """Two chunks, cut at a block, add up to the whole tensor's sums to the bit."""
    again = torch.full_like(sums, 0.25)
    for part in (slice(0, 65_536), slice(65_536, None)):
        own, others = base[part], [m[part] for m in models]
        masks = torch.empty(len(models), ops.packed_bytes(own.numel()), dtype=torch.uint8, device=base.device)
        cuda.elect(own, others, torch.empty_like(own), masks, again)
    assert_same_bits(again, sums, "sums of chunks")


def main(op: str, group: str, device: str) -> int:
    cases = 0
    for dtypes in GROUPS[group]:
        for k in MODELS[group] if op == "elect" else (1,):
            for n in SIZES[group]:
                check(op, dtypes, k, n, device)
                cases += 1
    return cases


if __name__ == "__main__":
    print(f"{main(sys.argv[1], sys.argv[2], 'cpu')} cases equal")
