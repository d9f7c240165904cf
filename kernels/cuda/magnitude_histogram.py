"""How many magnitudes fall into each bin."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .magnitude import histogram, is_wide


def magnitude_histogram(
    base: Tensor,
    models: Sequence[Tensor],
    shift: int,
    bits: int,
    prefixes: Sequence[int] | None,
    wide: bool,
    counts: Tensor,
) -> None:
    """As the reference; a reading of base a model."""
    double = any(is_wide(base, model) for model in models)  # the working type is that of the call
    for k, model in enumerate(models):
        own = model.double() if double and not is_wide(base, model) else model
        histogram(base, own, shift, bits, None if prefixes is None else prefixes[k], wide, counts[k])
