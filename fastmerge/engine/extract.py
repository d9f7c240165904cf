"""A fine-tuned model back into a LoRA adapter: the task vector of each matrix as a product of low rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .. import __version__, ops, targets
from ..errors import InputError, MergeError, attempt, nearest
from ..formats.adapter import adapter_config, is_conv1d
from ..formats.checkpoint import ADAPTER_CONFIG, Checkpoint
from ..formats.dtypes import TORCH_DTYPES
from ..formats.expanded import stored, stored_bytes
from ..formats.folder import encoded, model_card, write_json
from ..formats.mapping import Inputs
from ..formats.models import open_models
from ..formats.safetensors import DTYPES
from ..forms import well_formed
from ..recipe.destination import output_folder, output_problems
from ..recipe.options import DTYPE_NAMES, dtype_problems
from ..recipe.preflight import TensorPlan, align
from .factor import factor
from .publish import Publication
from .reading import whole
from .run_pass import Progress, expect

RECORD = "extraction.json"
SOURCE = "LoRA (Hu et al. 2021, arXiv 2106.09685) by randomised SVD (Halko et al. 2011, arXiv 0909.4061)"


@dataclass(slots=True)
class Extraction:
    """`kept` is by tensor the part of its task vector's energy, Σ τ², that the product keeps, `total` that of all
    tensors of the model, with those that are `left_out`: what differs from base and is no matrix of those chosen."""

    out: str
    rank: int
    kept: dict[str, float]
    total: float
    left_out: list[str]
    parameters: int
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The extraction as JSON."""
        return asdict(self)


@well_formed
def extract_lora(
    base: str | Path,
    model: str | Path,
    out: str | Path,
    *,
    rank: int = 16,
    tensors: Sequence[str] = (),
    task_specific: Sequence[str] = (),
    dtype: str = "float32",
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Extraction:
    """Write the adapter of this rank whose product comes nearest to the model's task vector, matrix by matrix.

    tensors: patterns of the matrices to take, by default all but embeddings and output heads. task_specific: patterns
    of tensors that are not compared, such as heads that base has not. dtype: of the factors. Memory is that of the
    adapter and a few times the largest matrix in float32. Raises InputError with every problem found, MergeError where
    there is NaN or infinity.
    """
    problems: list[str] = []
    destination = attempt(problems, lambda: output_folder(out))
    if rank < 1:
        problems.append(f"rank is {rank}; expected a number from 1 up")
    problems += dtype_problems(dtype)
    origin, opened = open_models(base, [("model", model)], problems, fetch=False)
    checkpoints = [checkpoint for checkpoint in (origin, *opened) if checkpoint is not None]
    if origin is not None and origin.adapter is not None:
        problems.append(f"base: {origin.path} is an adapter; give the model that it is for")
    alignment = None
    if origin is not None and origin.adapter is None and len(checkpoints) == 2:
        alignment = attempt(problems, lambda: align(origin, checkpoints[1:], task_specific=task_specific))
    chosen = [] if alignment is None else _chosen(alignment.tensors, tensors, problems)
    if destination is not None:
        total = sum(min(rank, *t.shape) * sum(t.shape) for t in chosen) * DTYPES[DTYPE_NAMES.get(dtype, "F32")]
        places = [path for c in checkpoints for path in c.places]
        problems += output_problems(destination, total, places, overwrite=overwrite)
    if problems or alignment is None or origin is None or destination is None:
        raise InputError(problems)

    inputs = Inputs([header for checkpoint in checkpoints for header in checkpoint.fetched().headers])
    extracted = _Extracted(origin, rank, dtype, seed)
    wanted = {tensor.name for tensor in chosen}
    fingerprint = {"fastmerge": __version__, "extraction": str(model)}
    with Publication(destination, fingerprint, overwrite=overwrite, resumable=False) as publication:
        for tensor, delta in _task_vectors(alignment.tensors, inputs, progress):
            extracted.take(tensor, delta, tensor.name in wanted)
        inputs.check_unchanged()
        if not extracted.ranks:
            raise MergeError("no matrix of those chosen differs from base: there is nothing to extract")
        found = extracted.report(destination, [*alignment.notes])
        _write(extracted, found, origin, publication.folder, destination.name)
    return found


def _chosen(tensors: Sequence[TensorPlan], patterns: Sequence[str], problems: list[str]) -> list[TensorPlan]:
    """The matrices to extract; that there are none, or that a pattern matches none, joins `problems`."""
    chosen = [tensor for tensor in tensors if _wanted(tensor, patterns)]
    names = [tensor.name for tensor in tensors]
    unused = targets.unmatched(patterns, names)
    problems += [f"--tensors {pattern!r} matches no tensor{nearest(pattern, names)}" for pattern in unused]
    if not chosen and not unused:
        problems.append(
            "there is no matrix to extract: embeddings and output heads are left out; name some by --tensors"
        )
    return chosen


def _wanted(tensor: TensorPlan, patterns: Sequence[str]) -> bool:
    matrix = len(tensor.shape) == 2 and tensor.numel > 0 and tensor.name.endswith(".weight") and not tensor.copy
    return matrix and (targets.matches(tensor.name, patterns) if patterns else not targets.excluded(tensor.name))


def _task_vectors(
    tensors: Sequence[TensorPlan], inputs: Inputs, progress: Progress | None
) -> Iterator[tuple[TensorPlan, Tensor]]:
    """Each tensor's task vector in its shape, one at a time."""
    read = [(t, [t.base, *t.models]) for t in tensors if t.base is not None and not t.copy]
    expect(progress, sum(stored_bytes(infos) for _, infos in read))
    for tensor, infos in read:
        base, model = (whole(inputs, info) for info in infos)
        delta = ops.delta_sum(base, [model])
        if not delta.isfinite().all():
            raise MergeError(f"tensor {tensor.name!r}: NaN or infinity in base or model; mend the checkpoint")
        inputs.release([(part.file, part.start, part.stop) for info in infos for part in stored(info)])
        yield tensor, delta
        if progress:
            progress(stored_bytes(infos))


class _Extracted:
    """The adapter as it grows."""

    def __init__(self, base: Checkpoint, rank: int, dtype: str, seed: int) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.ranks: dict[str, int] = {}  # by module
        self.transposed = False
        self.rank = rank
        self._base, self._dtype, self._seed = base, dtype, seed
        self._kept: dict[str, float] = {}
        self._left_out: list[str] = []
        self._energy = self._energy_kept = 0.0

    def take(self, tensor: TensorPlan, delta: Tensor, wanted: bool) -> None:
        """Add the product that comes nearest to a task vector, or note that it is left out."""
        energy = float(torch.linalg.vector_norm(delta, dtype=torch.float64)) ** 2
        self._energy += energy
        if not energy:
            return
        if not wanted:
            self._left_out.append(tensor.name)
            return
        module = tensor.name.removesuffix(".weight")
        turned = is_conv1d(self._base, module)
        found = factor(delta.t() if turned else delta, self.rank, self._seed, tensor.name)
        for part, value in (("A", found.down), ("B", found.up)):
            stored = value.to(TORCH_DTYPES[DTYPE_NAMES[self._dtype]]).contiguous()
            if not stored.isfinite().all():
                text = f"its factors leave the range of {self._dtype}; pass a wider --dtype"
                raise MergeError(f"tensor {tensor.name!r}: {text}")
            self.tensors[f"base_model.model.{module}.lora_{part}.weight"] = stored
        self.ranks[module] = found.down.shape[0]
        self.transposed |= turned
        self._kept[tensor.name] = found.kept
        self._energy_kept += found.kept * energy

    def report(self, out: Path, notes: list[str]) -> Extraction:
        """What was extracted."""
        parameters = sum(tensor.numel() for tensor in self.tensors.values())
        if self._left_out:
            notes.append(f"{len(self._left_out)} tensors that differ from base are left out ({self._left_out[0]}, …)")
        total = self._energy_kept / self._energy if self._energy else 1.0
        return Extraction(str(out), self.rank, self._kept, total, self._left_out, parameters, notes)


def _write(extracted: _Extracted, found: Extraction, base: Checkpoint, folder: Path, title: str) -> None:
    try:
        save_file(extracted.tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    except SafetensorError as error:  # as its library calls a full disk
        raise MergeError(f"{found.out}: cannot be written: {error}; mend that and start again") from None
    config = adapter_config(base, extracted.ranks, extracted.rank, extracted.transposed)
    write_json(folder / ADAPTER_CONFIG, config)
    content = found.to_dict()
    del content["out"]
    write_json(folder / RECORD, content)
    lines = [f"A LoRA adapter of rank {found.rank}, taken from a model against {base.place}: {SOURCE}."]
    lines += [f"\nIt keeps {found.total:.2%} of what the model differs by. By tensor: `{RECORD}`."]
    (folder / "README.md").write_bytes(encoded(model_card(title, lines, config)))
