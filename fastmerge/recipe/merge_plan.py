"""A merge that is ready to be carried out, and what can be told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..formats.checkpoint import Checkpoint
from ..formats.expanded import stored_bytes
from ..formats.hub import Missing
from ..formats.layout import FilePlan
from ..formats.safetensors import Header, TensorInfo
from ..methods._declaration import Method, Pass, Statistics
from .outputs import Output, delta_dtype, passes_on, plan_experts
from .preflight import Alignment, Rename, TensorPlan
from .vocabulary import Vocab


@dataclass(frozen=True, slots=True, repr=False)
class MergePlan:
    """A merge that has passed preflight.

    `checkpoints` are all inputs, base first: base and the models, or what these are woven of. `beside`: files of the
    result that lie beside its weights in the place of the lead's, by name; None: there is none. `mergekit`: the
    configuration of mergekit's that the plan was made of.
    """

    outputs: tuple[Output, ...]
    base: Checkpoint | None
    models: tuple[Checkpoint, ...]
    sources: dict[str, str]
    alignment: Alignment
    out: Path | None
    overwrite: bool
    resume: bool
    hashes: bool
    task_specific: tuple[str, ...]
    rename: dict[str, Rename]
    dtype: str | None
    chunk: int
    lanes: int
    memory: int
    device: str
    notes: tuple[str, ...]
    checkpoints: tuple[Checkpoint, ...]
    beside: Mapping[str, bytes | None] = field(default_factory=dict)
    mergekit: Mapping[str, Any] | None = None
    vocab: Vocab = "error"

    def __repr__(self) -> str:
        return f"MergePlan({self.summary()})"

    @property
    def method(self) -> Method:
        return self.outputs[0].method

    @property
    def names(self) -> list[str]:
        return [model.label for model in self.models]

    @property
    def lead(self) -> Checkpoint:
        """The checkpoint whose names, order, configuration and tokenizer the output takes."""
        return self.base or self.models[0]

    @property
    def inputs(self) -> dict[str, Checkpoint]:
        """All inputs by their names, base first."""
        return {checkpoint.label: checkpoint for checkpoint in self.checkpoints}

    @property
    def missing(self) -> list[Missing]:
        """What is yet to be fetched from the Hub."""
        return list(dict.fromkeys(missing for checkpoint in self.checkpoints for missing in checkpoint.missing))

    def fetched(self) -> MergePlan:
        """The plan with all of its inputs on this disk."""
        base = None if self.base is None else self.base.fetched()
        models, checkpoints = (tuple(one.fetched() for one in own) for own in (self.models, self.checkpoints))
        return replace(self, base=base, models=models, checkpoints=checkpoints)

    @property
    def headers(self) -> list[Header]:
        """Those of all files that are read."""
        return [header for checkpoint in self.checkpoints for header in checkpoint.headers]

    @property
    def pass_count(self) -> int:
        return len(self.method.passes(self.names, self.alignment.wide))

    def passes(self, output: Output, tensor: TensorPlan) -> tuple[Pass, ...]:
        """The passes of an output over a tensor, with the parameters that hold there."""
        return passes_on(output.parameters, tensor, self.names, self.alignment)

    def knowing(self, statistics: Sequence[Sequence[Statistics]]) -> MergePlan:
        """The plan as each output's statistics of all passes but the last decide it: the sizes of experts."""
        outputs = tuple(
            replace(output, experts=plan_experts(output, self.alignment, self.names, self.dtype, found))
            for output, found in zip(self.outputs, statistics, strict=True)
        )
        return replace(self, outputs=outputs)

    def stored_dtype(self, tensor: TensorPlan) -> str:
        """What task vectors and experts are stored in: --dtype, bfloat16 for 16-bit tensors, else the tensor's own."""
        return self.dtype or delta_dtype(tensor.dtype)

    @property
    def parameters(self) -> int:
        return sum(tensor.numel for tensor in self.alignment.tensors)

    @property
    def bytes_read(self) -> int:
        """Bytes that all passes read."""
        merged = sum(
            stored_bytes(inputs(tensor, self.method)) * self._readings(tensor) for tensor in self.alignment.tensors
        )
        own = sum(stored_bytes([info]) for infos in self.alignment.task_specific.values() for info in infos)
        bases = sum(stored_bytes([info]) for info in self.alignment.base_specific)
        return (
            merged
            + own * sum(1 for output in self.outputs if output.heads)
            + bases * sum(1 for output in self.outputs if "merged" in output.layouts)
        )

    def _readings(self, tensor: TensorPlan) -> int:
        """How many passes have to do with a tensor."""
        if tensor.copy:
            return 1
        passes = zip(*(self.passes(output, tensor) for output in self.outputs), strict=True)
        return sum(1 for own in passes if not all(one.idle for one in own))

    @property
    def files(self) -> list[FilePlan]:
        """The files of weights that are written."""
        return [file for output in self.outputs for layout in output.all_layouts for file in layout.files]

    @property
    def bytes_written(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def shared_parameters(self) -> dict[str, Any]:
        """The parameters that all outputs have alike."""
        first, *others = (output.parameters.record()["params"] for output in self.outputs)
        return {name: value for name, value in first.items() if all(other[name] == value for other in others)}

    @property
    def differences(self) -> dict[str, dict[str, Any]]:
        """By output the parameters that not all have alike; empty for a single output."""
        shared = self.shared_parameters
        records = {output.name: output.parameters.record()["params"] for output in self.outputs if output.name}
        return {label: {n: v for n, v in own.items() if n not in shared} for label, own in records.items()}

    def summary(self) -> dict[str, Any]:
        """The plan as JSON."""
        return {
            "method": self.method.name,
            **self.outputs[0].parameters.record(),
            "params": self.shared_parameters,
            "outputs": self.differences,
            "base": self.sources.get("base"),
            "models": {name: self.sources[name] for name in self.inputs if name != "base"},
            "out": None if self.out is None else str(self.out),
            "tensors": len(self.alignment.tensors),
            "parameters": self.parameters,
            "passes": self.pass_count,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "fetches": {missing.repo: missing.nbytes for missing in self.missing},
            "memory": self.memory,
            "files": [file.name for file in self.files],
            "task_specific": {k: [t.name for t in v] for k, v in self.alignment.task_specific.items() if v},
            "notes": list(self.notes),
        }


def inputs(tensor: TensorPlan, method: Method) -> list[TensorInfo]:
    """The stored tensors that are read to merge this one: base first, if the method or a comparison needs it."""
    return ([tensor.base] if tensor.base and (method.uses_base or tensor.copy) else []) + list(tensor.models)
