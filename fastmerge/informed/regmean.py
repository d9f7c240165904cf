"""RegMean: linear layers that come nearest, on average, to what each model's layer does with its own inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .. import __version__
from ..engine.stream import Work
from ..errors import InputError, attempt, nearest
from ..formats.checkpoint import open_checkpoint
from ..forms import well_formed
from ..fw.candidates import Candidates, Member, Pool, rewrite
from ..fw.matching import WHOLE, Slot
from ..fw.objective import Batches
from .gram_matrices import gram_matrices, linear_layers
from .record import RegMeanRecord
from .result import Result
from .statistics import Given, gathered, matched, restored, shares, tensors_of

KIND = "Gram matrices"
RIDGE = 1e-9  # of the mean of the diagonal: where no model has an input, the result is the mean of the weights


@well_formed
def regmean(
    model: nn.Module,
    pool: Pool,
    grams: Given | None = None,
    *,
    batches: Mapping[str, Batches] | None = None,
    weights: Mapping[str, float] | None = None,
    alpha: float = 0.9,
    task_specific: Sequence[str] = (),
) -> Result:
    """RegMean: W = (Σ_k w_k W_k G̃_k) (Σ_k w_k G̃_k)⁻¹ of each linear layer (Jin et al. 2023, arXiv 2212.09849).

    The model becomes the merged one; its own weights have no part in it. W, W_k: [out, in] as torch has them; G_k =
    XᵀX / N of what goes into the layer of model k, and G̃_k = α G_k + (1 − α) diag(G_k), its off-diagonal elements
    scaled by `alpha` (the paper: 0.9 for most models, 0.1 for T5). With alpha = 1 and equal weights, W is the least
    squares solution Σ_k ‖X_k Wᵀ − X_k W_kᵀ‖² / N_k. All other tensors (biases, norms, embeddings, convolutions, layers
    without a Gram matrix) get the weighted mean.

    pool, task_specific: as `fm.frank_wolfe` takes them. grams: for each member what `fm.gram_matrices` returns, as a
    state dict, a folder or a .safetensors file, by name or in the pool's order; or `batches` by member, of which they
    are found here, the model being each member in turn. weights: w_k by member, equal by default, divided by their sum.
    Layers are solved one after another, in float64. Raises InputError with every problem before any work, MergeError
    where a result is not finite; the model has its own weights then.
    """
    problems: list[str] = []
    candidates = attempt(problems, lambda: Candidates.of(model, pool, None, task_specific, False))
    if not 0 <= alpha <= 1:
        problems.append(f"alpha: is {alpha!r}; expected a number from 0 to 1")
    if candidates is None:
        raise InputError(problems)
    names = candidates.names
    given = attempt(problems, lambda: matched("grams", names, grams, batches))
    own = attempt(problems, lambda: shares(names, weights))
    if problems or own is None:
        raise InputError(problems)

    def find(one: Batches) -> dict[str, Tensor]:
        return gram_matrices(model, one, task_specific=task_specific)

    def wanted(found: Mapping[str, Member]) -> dict[str, Slot]:
        return _slots(linear_layers(model, task_specific), found)

    with restored(candidates, model), gathered(KIND, candidates, model, given, batches, find, wanted) as held:

        def make(name: str, out: Tensor, bad: list[str]) -> Work:
            if name not in held.slots:
                return candidates.combining(name, own, out, bad)
            return _solving(candidates, held, name, own, alpha, out, bad)

        rewrite(candidates, tensors_of(model, candidates), make)
    record = RegMeanRecord(
        fastmerge=__version__,
        settings={"alpha": alpha, "layers": list(held.slots), "task_specific": list(task_specific)},
        candidates=names,
        identities=candidates.identities,
        rows=[WHOLE],
        tasks={},
        coefficients=[own],
    )
    return Result(record, model, candidates)


def _slots(layers: Mapping[str, nn.Linear], found: Mapping[str, Member]) -> dict[str, Slot]:
    """The Gram matrices that the first member has, as all must have them."""
    name, member = next(iter(found.items()))
    tensors = member if isinstance(member, Mapping) else open_checkpoint(member, name).tensors
    strange = [n for n in tensors if n not in layers]
    if strange:
        raise InputError(
            f"{KIND} of {name}: {n!r} is no weight of a linear layer that is merged{nearest(n, layers)}"
            for n in strange
        )
    sizes = {n: layers[n].in_features for n in tensors}
    return {n: Slot((n,), (size, size), "F32") for n, size in sizes.items()}


def _solving(
    candidates: Candidates,
    held: Candidates,
    name: str,
    weights: Sequence[float],
    alpha: float,
    out: Tensor,
    bad: list[str],
) -> Work:
    """Solve for one layer. Its name joins `bad` where the result is not finite."""
    rows, columns = candidates.slots[name].shape

    def solve(*_: object) -> None:
        left = torch.zeros((columns, columns), dtype=torch.float64, device=out.device)
        right = torch.zeros((rows, columns), dtype=torch.float64, device=out.device)
        for k, weight in enumerate(weights):
            gram = weight * _scaled(held.whole(name, k).to(out.device, torch.float64), alpha)
            left += gram
            right += candidates.whole(name, k).to(out.device, torch.float64) @ gram
        ridge = RIDGE * left.diagonal().mean().clamp(min=torch.finfo(torch.float64).tiny / RIDGE)
        left.diagonal().add_(ridge)
        for k, weight in enumerate(weights):
            right.add_(candidates.whole(name, k).to(out.device, torch.float64), alpha=float(ridge) * weight)
        merged = torch.linalg.solve(left, right, left=False)
        if not merged.isfinite().all():
            bad.append(name)
        out.copy_(merged.view(-1))

    return Work(out.numel(), (), (), solve, least_chunk=out.numel())


def _scaled(gram: Tensor, alpha: float) -> Tensor:
    """G̃: a Gram matrix with its off-diagonal elements times α."""
    scaled = alpha * gram
    scaled.diagonal().copy_(gram.diagonal())
    return scaled
