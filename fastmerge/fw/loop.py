"""FW-Merging: Frank-Wolfe optimisation over a pool of checkpoints (Chen et al. 2025, arXiv 2503.12649)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from ..errors import InputError, attempt
from ..forms import well_formed
from .candidates import Candidates, Pool, kept_whole
from .choice import Alignment, Level
from .iterate import Iterate, MergeFn
from .objective import Batches, LossFn, Objective, check_finite
from .record import Record, Step, differences, file_to_write
from .result import Result
from .settings import Rule, Settings, Variant
from .simplex import Simplex

Callback = Callable[[Step], bool | None]


@well_formed
def frank_wolfe(
    model: nn.Module,
    pool: Pool,
    loss_fn: LossFn | Mapping[str, LossFn],
    batches: Batches | Mapping[str, Batches],
    *,
    variant: Variant = "hard",
    lmo: Level = "task",
    coefficients: Level = "task",
    alignment: Alignment = "inner",
    step: Rule | float = "line_search",
    steps: int = 10,
    top_k: int = 3,
    per_task_top_k: int | None = None,
    simplex: Simplex = "anchored",
    inner_steps: int = 20,
    tolerance: float = 0.0,
    initial_vertex: bool = True,
    init: str | Path | Mapping[str, Tensor] = "base",
    layers: str | Sequence[str] = "tensor",
    task_specific: Sequence[str] = (),
    task_weights: Mapping[str, float] | None = None,
    merge_fn: MergeFn | None = None,
    callback: Callback | None = None,
    skip_misfits: bool = False,
    checkpoint: str | Path | None = None,
    resume: bool = False,
) -> Result:
    """Minimise a loss over the convex hull of an initial solution and a pool of checkpoints, in place.

    A step takes the gradient g of the loss at θ_t, and every candidate's ⟨g, θ_k⟩ in one sweep through the pool, which
    may be larger than memory: beside the model there are g (float32) and one block of the pool. θ_t is always made of
    the candidates by its convex coefficients, in float32 (float64) and rounded once, so that the record of a run makes
    the same bits again without data (`fastmerge.fw.rebuild`).

    model: a torch module, on any device, in the mode (train, eval) that it is optimised in; dropout makes values noisy.
    Its float parameters and buffers are merged but for `task_specific` patterns, under their names in `state_dict()`.
    pool: folders, .safetensors files or state dicts, by name or in order; `skip_misfits` leaves out what does not fit.
    loss_fn(model, batch): the mean loss of a batch; it may use autocast, and the model gradient checkpointing. batches:
    gone through for every gradient and every trial value; a mapping is by task, to which loss_fn may be a mapping too,
    and `task_weights` (equal by default). init: θ_0, "base" being the model as it is (copied to a temporary file), else
    a state dict, or a checkpoint on disk.

    variant "hard": towards the best vertex (Eq. 7), by an exact line search on [0, 1], by 2/(t+2), or by a number.
    "soft": the `top_k` best (for each task's own gradient `per_task_top_k`, none twice), and their coefficients by
    projected gradient descent (Eq. 9). Its `simplex` is "anchored" (λ ≥ 0, Σ λ ≤ 1) or "paper" (Σ λ = 1). Anchored, θ_t
    stays within reach: the loss never grows, and of a convex loss ℓ(θ_t) − min ℓ falls as 1/t, as in classic
    Frank-Wolfe, where inner_steps suffice. The paper's throws θ_t away, and Theorem 1 only says that the least gap of T
    steps is at most (ℓ(θ_0) − min ℓ) / T + L · diam² / 2: the second term does not fall with T, and steps may go to and
    fro between vertices for ever.

    lmo "layer" chooses for each layer (Eq. 10), coefficients "layer" has a step size, or λ, for each. `layers` are
    single tensors, "block" (by the numbers in names), or patterns. alignment "inner" is the paper's, "cosine" the
    released code's: of each tensor, summed. initial_vertex: whether θ_0 is among the vertices, as the paper's hull has
    it. The run ends when the gap (Eq. 4, of inner products whatever the alignment) is at most `tolerance` (−inf:
    never), after `steps`, where no step makes the loss less, or when `callback`, called with each step, returns True.

    merge_fn(θ_t, vertices, weights) of a whole tensor, its vertices and γ_t for each: in place of the convex
    combination, with variant "hard" and fixed steps. The result may leave the hull; it has no gap and no coefficients.

    checkpoint: a JSON file, written after every step; with `resume` a run goes on from it, to the bits that it would
    have had, where model, data and what is in memory are those of then. Raises InputError with every problem before any
    work, MergeError where a loss, a gradient or a candidate is not finite. Whatever the error, the model is then at the
    last whole step, or it says that it is not, as where files of the pool have changed. Gradients that parameters hold
    are cleared.
    """
    problems: list[str] = []
    settings = attempt(
        problems,
        lambda: Settings(
            variant,
            lmo,
            coefficients,
            alignment,
            step,
            steps,
            top_k,
            per_task_top_k,
            simplex,
            inner_steps,
            tolerance,
            initial_vertex,
            layers,
            task_specific,
        ),
    )
    objective = attempt(problems, lambda: Objective(loss_fn, batches, task_weights))
    candidates = attempt(problems, lambda: Candidates.of(model, pool, init, task_specific, skip_misfits))
    if merge_fn is not None and (variant != "hard" or step == "line_search" or checkpoint is not None):
        problems.append("merge_fn: goes with variant='hard', a fixed step and no checkpoint")
    file = None if checkpoint is None else attempt(problems, lambda: file_to_write(checkpoint, "checkpoint: "))
    if resume and checkpoint is None:
        problems.append("resume: say from which checkpoint")
    if problems or settings is None or objective is None or candidates is None:
        raise InputError(problems)
    candidates.files.resumable = checkpoint is not None
    iterate = Iterate(model, candidates, objective, settings, merge_fn)
    record = iterate.record()
    if file is not None and resume and file.is_file():
        record = _resumed(file, record)
    return _run(iterate, record, file, callback)


def _run(iterate: Iterate, record: Record, checkpoint: Path | None, callback: Callback | None) -> Result:
    limit = iterate.settings.steps
    if record.ended in ("steps", "callback"):
        record.ended = None
    with kept_whole(iterate.go_back), iterate.gradient.watching():
        iterate.begin(record)
        value = record.loss
        while record.ended is None:
            if len(record.steps) >= limit:
                record.ended = "steps"
                break
            found, value, record.ended = iterate.step(len(record.steps))
            record.steps.append(found)
            record.coefficients, record.loss = iterate.listed(), value
            if checkpoint is not None:
                record.save(checkpoint)
            if callback is not None and callback(found) and record.ended is None:
                record.ended = "callback"
        if value is None:
            losses = iterate.objective.losses(iterate.model)
            check_finite(losses, "at the end")
            value = iterate.objective.value(losses)
        record.loss = value
    if checkpoint is not None:
        record.save(checkpoint)
    return Result(record, iterate.model, iterate.candidates)


def _resumed(file: Path, now: Record) -> Record:
    """The record to go on with, of the very same run but for its number of steps."""
    before = Record.read(file)
    problems = differences(before, now)
    if problems:
        raise InputError(f"{file}: is of another run: {'; '.join(problems)}; run as then, or leave resume out")
    before.settings = now.settings
    return before
