"""Which model's tensor holds the NaN or infinity that a merge has met?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

from .. import ops
from ..errors import MergeError
from ..formats.mapping import Inputs
from ..recipe.preflight import TensorPlan
from .stream import Source


def check_finite(tensor: TensorPlan, names: Sequence[str], files: Inputs, chunk: int) -> NoReturn:
    """Raise a MergeError that names every model at fault, reading the tensor once more."""
    infos = ([("base", tensor.base)] if tensor.base else []) + list(zip(names, tensor.models, strict=True))
    found = []
    for label, info in infos:
        source = Source(info)
        starts = range(0, info.numel, chunk)
        views = (source.read(files, a, min(a + chunk, info.numel)) for a in starts)
        bad = sum(ops.combine(None, [view]).nonfinite for view in views)
        if bad:
            found.append(f"{label} ({bad} of {info.numel} values, {info.file.name})")
    if not found:
        raise MergeError(
            f"tensor {tensor.name!r}: the result leaves the range of its dtype; choose a wider --dtype, other weights, "
            "or nonfinite=allow"
        )
    raise MergeError(
        f"tensor {tensor.name!r}: NaN or infinity in {', '.join(found)}; mend the checkpoint, or pass "
        "-p nonfinite=allow to merge all the same"
    )
