"""The dtype of a result where a configuration names none: what torch promotes the inputs to."""

from __future__ import annotations

from collections.abc import Iterable

from ...errors import InputError
from ...formats.safetensors import FLOATS, TensorInfo
from ..options import dtype_name
from .weave import Weave

WIDTH = {"BF16": 0, "F16": 0, "F32": 1, "F64": 2}


def widest(infos: Iterable[TensorInfo]) -> str | None:
    """The dtype that holds all of these floats; None where none of them is one."""
    codes = {info.dtype for info in infos if info.dtype in FLOATS}
    if not codes:
        return None
    return "F32" if codes == {"BF16", "F16"} else max(codes, key=lambda code: WIDTH[code])


def promoted(woven: Weave) -> str | None:
    """The dtype of the result, if it is not that of the lead's tensors."""
    lead = woven.base or woven.models[0]
    everyone = [*([woven.base] if woven.base else []), *woven.models]
    found = {name: widest(c.tensors[name] for c in everyone if name in c.tensors) for name in lead.tensors}
    codes = {code for code in found.values() if code is not None}
    if all(code in (None, lead.tensors[name].dtype) for name, code in found.items()):
        return None
    if len(codes) > 1:
        raise InputError(f"tensors of the result would have different dtypes ({', '.join(sorted(codes))}); give dtype")
    return dtype_name(codes.pop())
