"""How strong task vectors are at which frequencies, and how much they differ there: what a cutoff is chosen by.

Zheng & Wang 2025 (FREE-Merging, arXiv 2411.16815) measure interference as "the mean variance of frequency-domain
amplitude" between models (Table 1, Figure 2), and say no more. What is taken here where the paper is silent:

- amplitude is |F(τ_k)| of the unitary 2-D Fourier transform of each matrix of a task vector, over the root mean square
  of the amplitudes of all models in that matrix, unfiltered: neither its size nor the scale of its weights counts, how
  much stronger one model is than another does;
- variance is that of K numbers about their mean (over K), bin by bin; the mean is over all bins of a matrix, then over
  matrices, each counting the same;
- after filtering, the bins that are removed have the amplitude 0 in every model, and so the variance 0.

The table's own values depend on these choices, and are not reproduced by them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import targets
from ..cutoff import Cutoff
from ..errors import InputError, MergeError, attempt
from ..formats.checkpoint import Checkpoint
from ..formats.expanded import stored, stored_bytes
from ..formats.mapping import Inputs
from ..formats.models import open_models
from ..formats.safetensors import TensorInfo
from ..forms import well_formed
from ..recipe.memory import LANES
from ..recipe.options import name_problems
from ..recipe.parameters import pairs_of
from ..recipe.preflight import Alignment, Rename, TensorPlan, align
from .reading import whole
from .rings import PER_HALF, RINGS, Rings, measure
from .run_pass import Progress, expect
from .stream import threads_each

SEED = 0  # of the choice of tensors


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Means over `tensors` of the `candidates`, as the module says.

    A radius is in halves of the shorter side of a matrix, as FR-Merging's cutoff is: `radii` are the inner edges of
    rings. By ring, `amplitude` is each model's and `variance` that between models; None where no matrix has a bin. By
    the cutoff at a ring's inner edge, `interference_left` is what filtering leaves of the mean variance, `power_left`
    which part of a model's squared task vector. `before`, `after` and `power_kept` are the same without a filter, and
    at `cutoff`. Variances are None for a single model.
    """

    base: str
    models: list[str]
    cutoff: float
    before: float | None
    after: float | None
    power_kept: dict[str, float]
    radii: list[float]
    amplitude: dict[str, list[float | None]]
    variance: list[float | None] | None
    interference_left: list[float] | None
    power_left: dict[str, list[float]]
    tensors: list[str]
    candidates: int
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON."""
        return asdict(self)

    def draw(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Draw it as PNG. InputError where matplotlib is missing, or the file exists and is not to be overwritten."""
        from .spectrum_plot import draw

        draw(self, Path(path), overwrite=overwrite)


@well_formed
def spectrum(
    base: str | Path,
    models: Mapping[str, str | Path] | Iterable[tuple[str, str | Path]],
    *,
    cutoff: float = 0.3,
    tensors: Sequence[str] = (),
    max_tensors: int = 32,
    task_specific: Sequence[str] = (),
    rename: Mapping[str, Rename] | None = None,
    progress: Progress | None = None,
) -> Spectrum:
    """Transform the task vectors of models on disk, matrix by matrix, and measure their interference.

    cutoff: of the filter that is tried. tensors: patterns of matrices to look at; by default those that FR-Merging
    filters (fastmerge.targets). max_tensors: look at so many of them, chosen by chance, the same ones every time; 0 for
    all. task_specific and rename as for `merge`. Two matrices are worked on at a time; memory is up to ten times
    the largest in float32, whatever the number of models. Raises InputError with every problem found, MergeError where
    there is NaN or infinity.
    """
    pairs = pairs_of(models, "models", "{name: folder, …}")
    names = [name for name, _ in pairs]
    limits, complete, alignment, found = checked(base, pairs, cutoff, tensors, max_tensors, task_specific, rename)
    chosen = sorted(random.Random(SEED).sample(range(len(found)), min(max_tensors or len(found), len(found))))
    inputs = Inputs([header for checkpoint in complete for header in checkpoint.fetched().headers])
    measured: dict[str, list[Rings]] = {}
    wanted = [found[i] for i in chosen]
    expect(progress, sum(stored_bytes(_stored(tensor)) for tensor in wanted))
    # Most of torch's operations here use one thread however many it has.
    with threads_each(LANES) as begin, ThreadPoolExecutor(LANES, "fastmerge-lane", begin) as pool:
        in_order = pool.map(lambda tensor: _measure(tensor, names, inputs, limits), wanted)
        for tensor, own in zip(wanted, in_order, strict=True):
            measured[tensor.name] = own
            if progress:
                progress(stored_bytes(_stored(tensor)))
    inputs.check_unchanged()
    seen = [name for name, rings in measured.items() if rings]
    if not seen:
        raise InputError("no model differs from base in these tensors: there is no spectrum to show")
    alike = len(measured) - len(seen)
    notes = [
        *alignment.notes,
        *([f"{alike} tensors in which no model differs from base are left out"] if alike else []),
    ]
    numbers = _numbers([own for rings in measured.values() for own in rings], names)
    return Spectrum(str(base), names, cutoff, **numbers, tensors=seen, candidates=len(found), notes=notes)


def checked(
    base: str | Path,
    pairs: Sequence[tuple[str, str | Path]],
    cutoff: float,
    tensors: Sequence[str],
    max_tensors: int,
    task_specific: Sequence[str],
    rename: Mapping[str, Rename] | None,
) -> tuple[Cutoff, list[Checkpoint], Alignment, list[TensorPlan]]:
    """The filter, the checkpoints, how they fit together, and the matrices to look at; InputError with all problems."""
    problems = name_problems([name for name, _ in pairs], rename or {})
    limits = attempt(problems, lambda: Cutoff(cutoff))
    if max_tensors < 0:
        problems.append(f"max_tensors is {max_tensors}; expected a number from 0, for all, up")
    lead, opened = open_models(base, pairs, problems, fetch=False)
    complete = [checkpoint for checkpoint in (lead, *opened) if checkpoint is not None]
    alignment = found = None
    if pairs and len(complete) == 1 + len(pairs):
        alignment = attempt(problems, lambda: align(lead, complete[1:], task_specific=task_specific, rename=rename))
    if alignment is not None:
        found = attempt(problems, lambda: _candidates(alignment.tensors, tensors))
    if problems or limits is None or alignment is None or found is None:
        raise InputError(problems)
    return limits, complete, alignment, found


def _candidates(tensors: Sequence[TensorPlan], patterns: Sequence[str]) -> list[TensorPlan]:
    """The matrices to look at."""
    names = [tensor.name for tensor in tensors]
    problems = [f"--tensors {pattern!r} matches no tensor" for pattern in targets.unmatched(patterns, names)]

    def wanted(tensor: TensorPlan) -> bool:
        named = targets.matches(tensor.name, patterns) if patterns else not targets.excluded(tensor.name)
        return named and not tensor.copy

    found = [t for t in tensors if wanted(t) and t.numel and targets.matrices(t.name, t.shape) is not None]
    if not found and not problems:
        problems.append(
            "there is no matrix to look at: embeddings and output heads are left out; name some by --tensors"
        )
    if problems:
        raise InputError(problems)
    return found


def _stored(tensor: TensorPlan) -> list[TensorInfo]:
    return [*([tensor.base] if tensor.base else []), *tensor.models]


def _measure(tensor: TensorPlan, names: Sequence[str], inputs: Inputs, limits: Cutoff) -> list[Rings]:
    """The rings of a tensor's matrices, but of those in which no model differs from base."""
    shape = targets.matrices(tensor.name, tensor.shape)
    assert shape is not None
    found = []
    for base, *models in zip(*(whole(inputs, info).view(shape) for info in _stored(tensor)), strict=True):
        rings = measure(base, models, limits.limit(*shape[1:]))
        faulty = [name for name, powers in zip(names, rings.powers, strict=True) if not powers.isfinite().all()]
        if faulty:
            raise MergeError(f"tensor {tensor.name!r}: NaN or infinity in {' or '.join(faulty)}, or in base")
        found += [rings] if rings.powers.any() else []
    inputs.release([(part.file, part.start, part.stop) for info in _stored(tensor) for part in stored(info)])
    return found


def _numbers(matrices: Sequence[Rings], names: Sequence[str]) -> dict[str, Any]:
    """What is told of M matrices: means over them, each of numbers that its scale and size have no part in."""
    counts, amplitudes, powers, variances = map(torch.stack, zip(*matrices, strict=True))  # [M, E] or [M, K, E]
    size = counts[:, :1]
    scale = powers[:, :, 0].sum(1, keepdim=True) / (len(names) * size)  # the mean power of all models' bins, [M, 1]
    between = (variances / (scale * size)).mean(0)
    power = (powers / scale[:, None]).sum(0)
    share = power / torch.where(power[:, :1] > 0, power[:, :1], 1)
    bins = _rings(counts)

    def curve(sums: Tensor) -> list[float | None]:
        """Means over the matrices that have bins in a ring, of means over those bins. sums: [M, E]"""
        each = torch.where(bins > 0, _rings(sums) / bins, 0).sum(0) / (bins > 0).sum(0)
        return [value if value == value else None for value in each.tolist()]

    several = len(names) > 1
    return {
        "before": float(between[0]) if several else None,
        "after": float(between[-1]) if several else None,
        "power_kept": {name: float(own[-1]) for name, own in zip(names, share, strict=True)},
        "radii": [ring / PER_HALF for ring in range(RINGS)],
        "amplitude": {name: curve(amplitudes[:, k] / scale.sqrt()) for k, name in enumerate(names)},
        "variance": curve(variances / scale) if several else None,
        "interference_left": between[:RINGS].tolist() if several else None,
        "power_left": {name: own[:RINGS].tolist() for name, own in zip(names, share, strict=True)},
    }


def _rings(outward: Tensor) -> Tensor:
    """Sums in rings, of sums from their inner edges outward. [M, RINGS + 2] gives [M, RINGS]."""
    return outward[:, :RINGS] - outward[:, 1 : RINGS + 1]
