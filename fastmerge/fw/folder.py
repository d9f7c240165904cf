"""The merged model as a folder, made of the candidates by their coefficients; and the same again, from a record."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..engine.reading import whole
from ..engine.report import Report
from ..engine.stream import Target, Work
from ..errors import InputError
from ..formats.checkpoint import same_files
from ..formats.dtypes import TORCH_DTYPES
from ..forms import well_formed
from .candidates import INITIAL, Candidates, Member, Pool, check_combined, named
from .matching import Slot
from .output import publish
from .record import Record


def write_folder(
    record: Record, candidates: Candidates, own: Mapping[str, Tensor], out: Path, *, overwrite: bool = False
) -> Report:
    """Write merged tensors and, as they are, `own` ones to the folder `out`, whole or not at all."""
    if record.coefficients is None:
        raise InputError("a model made by merge_fn has no coefficients to write it by; save the model itself")
    weights = _weights(record, candidates)

    def make(slot: str, target: Target, bad: list[str]) -> Work:
        return candidates.combining(slot, weights[slot], None, bad, (target,))

    return publish(record, candidates, make, own, out, overwrite=overwrite)


@well_formed
def rebuild(
    record: Record | str | Path,
    pool: Pool | None = None,
    init: Member | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Tensor]:
    """The tensors that a run merged, to the bit, from its record, without data; with `out` written as a folder too.

    record: what `Result.save` wrote, or a folder of `Result.write`. pool, init: as they were given to `frank_wolfe`, by
    default from where they were read, which what was in memory is not: that must be given, and is taken for the same.
    Candidates whose coefficients are all 0 are not needed. Raises InputError where one is missing, or is another than
    was read.
    """
    record = record if isinstance(record, Record) else Record.read(record)
    if record.coefficients is None:
        raise InputError("this model was made by merge_fn, and cannot be made again by coefficients")
    slots = {n: Slot(tuple(t.names), tuple(t.shape), t.dtype) for n, t in record.tensors.items()}
    candidates = Candidates(slots)
    given = ({} if init is None else {INITIAL: init}) | ({} if pool is None else named(pool))
    used = [k for k in range(len(record.candidates)) if any(row[k] for row in record.coefficients)]
    problems = []
    for k in used:
        try:
            _take(candidates, record, record.candidates[k], given)
        except InputError as error:  # noqa: PERF203 - the problems of all are wanted
            problems += error.problems
    if problems:
        raise InputError(problems)
    weights, bad = _weights(record, candidates), list[str]()
    merged = {name: torch.empty(slot.shape, dtype=TORCH_DTYPES[slot.dtype]) for name, slot in slots.items()}
    candidates.sweep([candidates.combining(name, weights[name], t.view(-1), bad) for name, t in merged.items()])
    check_combined(bad)
    if out is not None:
        write_folder(record, candidates, _not_merged(candidates, slots), Path(out), overwrite=overwrite)
    return {name: merged[first] for first, slot in slots.items() for name in slot.names}


def _take(candidates: Candidates, record: Record, name: str, given: Mapping[str, Member]) -> None:
    """Add a candidate, which must be the one that was merged."""
    identity = record.identities.get(name)
    member = given.get(name, None if identity is None else identity.source)
    if member is None:
        what = "init" if name == INITIAL else "pool"
        raise InputError(f"{name}: was in memory, and is needed again; pass it ({what}=)")
    candidates.add(name, member, record.settings.get("task_specific", ()))
    opened = candidates.checkpoints.get(name)
    if identity is not None and opened is not None and not same_files(identity.files, opened):
        raise InputError(f"{name}: {opened.path} is not the checkpoint that was merged; give that one")


def _weights(record: Record, candidates: Candidates) -> dict[str, list[float]]:
    """By tensor, the coefficients of these candidates."""
    places = [record.candidates.index(name) for name in candidates.names]
    rows = [[row[k] for k in places] for row in record.coefficients or []]
    return {name: rows[tensor.row] for name, tensor in record.tensors.items()}


def _not_merged(candidates: Candidates, slots: Mapping[str, Slot]) -> dict[str, Tensor]:
    """What else the first candidate on disk has."""
    merged = {name for slot in slots.values() for name in slot.names}
    lead, files = candidates.lead, candidates.files
    tensors = {} if lead is None else lead.tensors
    return {name: whole(files, info) for name, info in tensors.items() if name not in merged}
