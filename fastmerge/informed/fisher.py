"""Fisher merging: the mean of models, each parameter weighted by how much its model cares about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .. import __version__
from ..engine.stream import Work
from ..errors import InputError, MergeError, attempt
from ..forms import well_formed
from ..fw.candidates import Candidates, Pool, rewrite
from ..fw.matching import WHOLE, Slot, slots
from ..fw.objective import Batches, LossFn
from ..fw.objectives import cross_entropy
from .fisher_information import Labels, fisher_information
from .record import FisherRecord
from .result import Result
from .statistics import Given, gathered, matched, restored, shares, tensors_of

KIND = "Fisher information"


@well_formed
def fisher(
    model: nn.Module,
    pool: Pool,
    fishers: Given | None = None,
    *,
    batches: Mapping[str, Batches] | None = None,
    weights: Mapping[str, float] | None = None,
    floor: float = 1e-6,
    normalize: bool = False,
    labels: Labels = "expectation",
    loss_fn: LossFn = cross_entropy,
    task_specific: Sequence[str] = (),
) -> Result:
    """Fisher-weighted averaging: θ = Σ_k w_k F_k θ_k / Σ_k w_k F_k by element (Matena & Raffel 2022, arXiv 2111.09832).

    The model becomes the merged one; its own weights have no part in it. F_k is the diagonal of the Fisher information
    matrix of θ_k, no element of it less than `floor` (the released code's: where no model cares, the result is their
    mean). `normalize`, an option of the released code: F_k is divided by its Euclidean norm. Buffers have no Fisher
    information and get the weighted mean.

    pool, task_specific: as `fm.frank_wolfe` takes them. fishers: for each member what `fm.fisher_information` returns,
    as a state dict, a folder or a .safetensors file, by name or in the pool's order; or `batches` by member, of which
    it is found here (`labels`, `loss_fn`: see there), the model being each member in turn. weights: w_k by member,
    equal by default, divided by their sum. Sums are float64, rounded once; models and Fishers are streamed, so that
    memory holds the model and one block of them. Raises InputError with every problem before any work, MergeError
    where a Fisher is negative or not finite, or a result is not, as where no F_k is above 0; the model has its own
    weights then.
    """
    problems: list[str] = []
    candidates = attempt(problems, lambda: Candidates.of(model, pool, None, task_specific, False))
    if not 0 <= floor < math.inf:
        problems.append(f"floor: is {floor!r}; expected a finite number, 0 at least")
    if candidates is None:
        raise InputError(problems)
    names = candidates.names
    given = attempt(problems, lambda: matched("fishers", names, fishers, batches))
    own = attempt(problems, lambda: shares(names, weights))
    if problems or own is None:
        raise InputError(problems)
    tensors = tensors_of(model, candidates)

    def find(one: Batches) -> dict[str, Tensor]:
        return fisher_information(model, one, labels=labels, loss_fn=loss_fn, task_specific=task_specific)

    def wanted(_: object) -> dict[str, Slot]:
        every = slots(model, task_specific)
        return {name: slot for name, slot in every.items() if isinstance(tensors[name], nn.Parameter)}

    with restored(candidates, model), gathered(KIND, candidates, model, given, batches, find, wanted) as held:
        scales = [share / norm for share, norm in zip(own, _norms(held, normalize), strict=True)]

        def make(name: str, out: Tensor, bad: list[str]) -> Work:
            if name not in held.slots:
                return candidates.combining(name, own, out, bad)
            return _averaging(candidates, held, name, scales, floor, out, bad)

        rewrite(candidates, tensors, make)
    record = FisherRecord(
        fastmerge=__version__,
        settings={"floor": floor, "normalize": normalize, "task_specific": list(task_specific)}
        | ({"labels": labels} if given is None else {}),
        candidates=names,
        identities=candidates.identities,
        rows=[WHOLE],
        tasks={},
        coefficients=[own],
    )
    return Result(record, model, candidates)


def _norms(held: Candidates, normalize: bool) -> list[float]:
    """What each F_k is divided by. MergeError where one is negative or not finite, or has no norm."""
    squares = torch.zeros(len(held.names), dtype=torch.float64)
    bad: list[str] = []

    def looking(name: str) -> Work:
        def look(_: int, chunks: list[Tensor], __: list[Tensor]) -> None:
            for k, chunk in enumerate(chunks):
                wide = chunk.double()
                if not ((wide >= 0) & wide.isfinite()).all():
                    bad.append(f"{held.names[k]}: tensor {name!r}")
                squares[k] += wide.square().sum().cpu()

        return held.work(name, range(len(held.names)), look)

    held.sweep([looking(name) for name in held.slots])
    if bad:
        raise MergeError(f"the {KIND} of {bad[0]} is negative or not finite; find it again")
    if not normalize:
        return [1.0] * len(held.names)
    zero = [name for name, square in zip(held.names, squares.tolist(), strict=True) if not square]
    if zero:
        raise MergeError(f"the {KIND} of {zero[0]} is 0 everywhere, and cannot be normalized")
    found: list[float] = squares.sqrt().tolist()
    return found


def _averaging(
    candidates: Candidates,
    held: Candidates,
    name: str,
    scales: Sequence[float],
    floor: float,
    out: Tensor,
    bad: list[str],
) -> Work:
    """Make one tensor. Its name joins `bad` where that is not finite. MergeError where no F_k is above 0."""

    def average(start: int, chunks: list[Tensor], _: list[Tensor]) -> None:
        part = out[start : start + chunks[0].numel()]
        above, below = (torch.zeros(part.shape, dtype=torch.float64, device=part.device) for _ in range(2))
        for k, chunk in enumerate(chunks):
            own = held.whole(name, k).reshape(-1)[start : start + chunk.numel()].to(part.device, torch.float64)
            own = own.clamp(min=floor) * scales[k]
            above += own * chunk.to(part.device, torch.float64)
            below += own
        if not below.all():
            raise MergeError(f"tensor {name!r}: the {KIND} of every model is 0 in some element; pass a floor above 0")
        merged = above / below
        if not merged.isfinite().all() and name not in bad:
            bad.append(name)
        part.copy_(merged)

    return candidates.work(name, range(len(candidates.names)), average)
