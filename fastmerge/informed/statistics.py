"""What a model was seen to do, one set of tensors a member of the pool: given, or found from batches here and now."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import InputError, attempt, nearest
from ..fw.candidates import INITIAL, Candidates, Member, rewrite
from ..fw.matching import Slot
from ..fw.objective import Batches, check_batches

Given = Mapping[str, Member] | Sequence[Member]
Find = Callable[[Batches], dict[str, Tensor]]  # of the model as it is


def matched(
    kind: str, names: Sequence[str], given: Given | None, batches: Mapping[str, Batches] | None
) -> dict[str, Member] | None:
    """What was given for each member, by name; None where it is to be found from batches. InputError where neither, or
    both, or not for all."""
    if (given is None) == (batches is None):
        raise InputError(f"{kind}: pass these of each member of the pool, or batches by member to find them, not both")
    if given is None:
        assert batches is not None
        problems = _strangers("batches", names, batches) + check_batches(batches)
        if problems:
            raise InputError(problems)
        return None
    if not isinstance(given, Mapping):
        if len(given) != len(names):
            raise InputError(f"{kind}: there are {len(given)}, for {len(names)} members of the pool")
        given = dict(zip(names, given, strict=True))
    problems = _strangers(kind, names, given)
    if problems:
        raise InputError(problems)
    return {name: given[name] for name in names}


@contextmanager
def gathered(
    kind: str,
    candidates: Candidates,
    model: nn.Module,
    given: Mapping[str, Member] | None,
    batches: Mapping[str, Batches] | None,
    find: Find,
    slots: Callable[[Mapping[str, Member]], Mapping[str, Slot]],
) -> Iterator[Candidates]:
    """The statistics of all members, on disk or in memory as given; those found lie in a temporary folder.

    `slots` says which tensors they must be. To find them the model takes each member's weights in turn.
    """
    with tempfile.TemporaryDirectory(prefix="fastmerge-") as folder:
        if given is None:
            assert batches is not None
            given = _found(candidates, model, batches, find, Path(folder))
        held = Candidates(slots(given))
        problems: list[str] = []
        for name, member in given.items():
            attempt(problems, lambda name=name, member=member: held.add(name, member, ()))  # type: ignore[misc]
        if problems:
            raise InputError(f"{kind} of {problem}" for problem in problems)
        yield held


@contextmanager
def restored(candidates: Candidates, model: nn.Module) -> Iterator[None]:
    """Where what is done within fails, the model has its own weights again; a temporary file holds them meanwhile."""
    before = Candidates(candidates.slots)
    before.keep(INITIAL, model.state_dict())
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for name, tensor in tensors_of(model, candidates).items():
                tensor.copy_(before.whole(name, 0))
        torch.clear_autocast_cache()
        raise


def shares(names: Sequence[str], weights: Mapping[str, float] | None) -> list[float]:
    """Each member's weight, the sum being 1; equal ones by default. InputError where they are no weights."""
    given = dict.fromkeys(names, 1.0) if weights is None else {n: float(w) for n, w in weights.items()}
    problems = _strangers("weights", names, given)
    if not all(math.isfinite(w) and w >= 0 for w in given.values()) or not sum(given.values()) > 0:
        problems.append(f"weights: must be finite, not negative and not all 0, they are {given}")
    if problems:
        raise InputError(problems)
    total = sum(given.values())
    return [given[name] / total for name in names]


def tensors_of(model: nn.Module, candidates: Candidates) -> dict[str, Tensor]:
    """The model's own tensors that are merged."""
    state = model.state_dict(keep_vars=True)
    return {name: state[name] for name in candidates.slots}


def _found(
    candidates: Candidates, model: nn.Module, batches: Mapping[str, Batches], find: Find, folder: Path
) -> dict[str, Member]:
    tensors, found = tensors_of(model, candidates), dict[str, Member]()
    for k, name in enumerate(candidates.names):
        _become(candidates, tensors, [float(k == j) for j in range(len(candidates.names))])
        file = folder / f"{k}.safetensors"
        save_file({n: t.cpu().contiguous() for n, t in find(batches[name]).items()}, file)
        found[name] = file
    return found


def _become(candidates: Candidates, tensors: Mapping[str, Tensor], weights: list[float]) -> None:
    rewrite(candidates, tensors, lambda name, out, bad: candidates.combining(name, weights, out, bad))


def _strangers(kind: str, names: Sequence[str], given: Mapping[str, object]) -> list[str]:
    problems = [f"{kind}: has none of {name}{nearest(name, given)}" for name in names if name not in given]
    unknown = [name for name in given if name not in names]
    return problems + [f"{kind}: {name!r} is no member of the pool; those are {', '.join(names)}" for name in unknown]
