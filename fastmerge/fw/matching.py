"""Which tensors of a model are merged, and where each candidate has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from ..engine.state_dicts import CODES
from ..errors import InputError, nearest
from ..formats.dtypes import TORCH_DTYPES, dense_problems
from ..formats.safetensors import TensorInfo, limited
from ..recipe.layers import LAYER
from ..runtime.matching import memory_key
from ..targets import matches

FLOATS = {dtype: code for code, dtype in TORCH_DTYPES.items()}
WHOLE = "model"  # the row of a model that has the same coefficients everywhere
Stored = TensorInfo | Tensor  # in a file, or in memory


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor to merge: its names (tied ones share it), and its kind."""

    names: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str


def slots(model: nn.Module, task_specific: Sequence[str]) -> dict[str, Slot]:
    """The model's float tensors but those that patterns leave out, by their first names.

    InputError with every tensor whose memory cannot be written in order.
    """
    groups: dict[object, list[str]] = {}
    state = model.state_dict(keep_vars=True)
    floats = {name: t for name, t in state.items() if isinstance(t, Tensor) and t.dtype in FLOATS}
    problems = dense_problems(floats, "model", task_specific)
    if problems:
        raise InputError(problems)
    for name, tensor in floats.items():
        if not matches(name, task_specific):
            groups.setdefault(memory_key(tensor), []).append(name)
    chosen = {names[0]: state[names[0]] for names in groups.values()}
    problems = limited(
        [name for name, t in chosen.items() if not t.is_contiguous()],
        lambda name: f"model: {name!r} is not contiguous in memory; make it .contiguous()",
    )
    if not chosen:
        problems.append("model: has no tensor to merge")
    if any(tensor.is_inference() for tensor in chosen.values()):
        problems.append("model: was made in inference mode, where alone it can be changed; load it outside of that")
    if problems:
        raise InputError(problems)
    return {
        names[0]: Slot(tuple(names), tuple(chosen[names[0]].shape), FLOATS[chosen[names[0]].dtype])
        for names in groups.values()
    }


def find(
    label: str, stored: Mapping[str, Stored], wanted: Mapping[str, Slot], others: Sequence[str]
) -> dict[str, Stored]:
    """A candidate's tensor for every slot. `others`: patterns of names that it may have besides.

    InputError with everything that is missing, has another shape, or is not in the model.
    """
    found: dict[str, Stored] = {}
    known = {name for slot in wanted.values() for name in slot.names}
    extra = [name for name, t in stored.items() if name not in known and is_float(t) and not matches(name, others)]
    problems: list[tuple[str, str]] = []
    for name, slot in wanted.items():
        own = next((stored[n] for n in slot.names if n in stored), None)
        if own is None:
            problems.append((name, f"is missing{nearest(name, extra)}"))
        elif tuple(own.shape) != slot.shape or not is_float(own):
            problems.append((name, f"is {kind(own)}, the model has {slot.dtype} {list(slot.shape)}"))
        else:
            found[name] = own
    listed = limited(problems, lambda p: f"{label}: tensor {p[0]!r} {p[1]}")
    listed += limited(extra, lambda name: f"{label}: tensor {name!r} is not in the model{nearest(name, list(wanted))}")
    if listed:
        raise InputError(listed)
    return found


def layers_of(names: Sequence[str], layers: str | Sequence[str]) -> dict[str, list[str]]:
    """Layers and their tensors: each tensor one ("tensor"), blocks by their numbers ("block"), or by patterns.

    What no block or pattern takes is a layer by itself.
    """
    found: dict[str, list[str]] = {}
    patterns = [] if isinstance(layers, str) else list(layers)
    for name in names:
        block = LAYER.match(name) if layers == "block" else None
        layer = block[0].rstrip(".") if block else next((p for p in patterns if fnmatchcase(name, p)), name)
        found.setdefault(layer, []).append(name)
    unused = [pattern for pattern in patterns if pattern not in found]
    if unused:
        raise InputError(f"layers: {pattern!r} matches no tensor of its own" for pattern in unused)
    return found


def rows_of(names: Sequence[str], layers: str | Sequence[str] | None) -> tuple[list[str], list[int]]:
    """What rows of coefficients are called, and each tensor's row: one of all (None), or a row for each layer."""
    found = {WHOLE: list(names)} if layers is None else layers_of(names, layers)
    numbers = {name: row for row, own in enumerate(found.values()) for name in own}
    return list(found), [numbers[name] for name in names]


def is_float(tensor: Stored) -> bool:
    """Whether a stored tensor can be merged."""
    return tensor.dtype in TORCH_DTYPES if isinstance(tensor, TensorInfo) else tensor.dtype in FLOATS


def kind(tensor: Stored) -> str:
    """Dtype and shape, to be read."""
    dtype = CODES.get(tensor.dtype, tensor.dtype) if isinstance(tensor, Tensor) else tensor.dtype
    return f"{dtype} {list(tensor.shape)}"
