"""Tensors by name: patterns, and the matrices of linear maps between features, which FR-Merging filters unless told."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase

# Embeddings, output heads, and what else is stored as a matrix and is none.
EXCLUDED = re.compile(
    r"embed|relative_attention_bias|lora_|bias$|(^|\.)(wte|wpe|shared|lm_head|classifier|score|head|predictions\.decoder)\."
    r"|^(output|fc)\.weight$"
)
STACKS = ("*.experts.*", "*.input_linear.weight", "*.output_linear.weight")  # 3-D tensors that are stacks of matrices


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether a tensor's name is one of these patterns' (`*.mlp.*`)."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def unmatched(patterns: Iterable[str], names: Collection[str]) -> list[str]:
    """The patterns that are of none of these names."""
    return [pattern for pattern in patterns if not any(fnmatchcase(name, pattern) for name in names)]


def excluded(name: str) -> bool:
    """Whether a tensor's name is that of an embedding, an output head or another weight that is not filtered."""
    return EXCLUDED.search(name) is not None


def matrices(name: str, shape: Sequence[int], stacks: Sequence[str] = STACKS) -> tuple[int, int, int] | None:
    """A 2-D tensor, or a 3-D one that a pattern of `stacks` matches, as [B, H, W], B matrices; None for others."""
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    stacked = len(shape) == 3 and matches(name, stacks)
    return (shape[0], shape[1], shape[2]) if stacked else None
