"""The work of one pass of a plan, tensor by tensor: what is read, what is called, where results go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..formats.experts import PARTS
from ..formats.layout import FilePlan, Place
from ..formats.mapping import Inputs
from ..formats.safetensors import DTYPES, TensorInfo
from ..methods._declaration import Pass, Statistics, Written
from ..recipe.memory import least_chunk
from ..recipe.merge_plan import MergePlan, inputs
from ..recipe.outputs import Output, own_dtype
from ..recipe.preflight import TensorPlan
from .culprit import check_finite, differing
from .passes import TensorPass
from .statistics import Kept
from .stream import Source, Target, Work, copy


@dataclass(frozen=True, slots=True)
class Reading:
    """One pass of a plan: each output's statistics of the passes before and of this one."""

    plan: MergePlan
    number: int
    earlier: Sequence[Sequence[Statistics]]
    gathered: Sequence[Statistics]
    files: Inputs
    kept: Kept

    @property
    def last(self) -> bool:
        return self.number == self.plan.pass_count - 1

    def passes(self, tensor: TensorPlan) -> list[Pass]:
        """This pass of every output, with the parameters that hold for the tensor."""
        return [self.plan.passes(output, tensor)[self.number] for output in self.plan.outputs]

    def writes(self, output: Output) -> tuple[Written, ...]:
        """What this pass writes for an output."""
        return output.method.passes(self.plan.names, self.plan.alignment.wide)[self.number].writes

    def outputs(self) -> list[FilePlan]:
        """The files that this pass writes."""
        layouts = [output.layouts[kind] for output in self.plan.outputs for kind in self.writes(output)]
        if self.last:
            layouts += [
                own for output in self.plan.outputs for own in (*output.experts.values(), *output.heads.values())
            ]
        return [file for layout in layouts for file in layout.files]

    def works(self) -> list[Work]:
        """The work on every tensor, in the order of the lead checkpoint's files."""
        plan = self.plan
        position = {name: i for i, name in enumerate(plan.lead.tensors)}
        works: list[tuple[int, Work]] = []
        for tensor in plan.alignment.tensors:
            if not tensor.copy:
                passes = self.passes(tensor)
                if not all(one.idle for one in passes):
                    works.append((position[tensor.name], _Merging.of(self, tensor, passes).work()))
            elif self.last:
                works.append((position[tensor.name], self._copying(tensor)))
        for output in plan.outputs:
            if "merged" in self.writes(output):
                places = output.layouts["merged"].places
                works += [(position[t.name], self._own(t, places[t.name])) for t in plan.alignment.base_specific]
            if self.last:
                for label, layout in output.heads.items():
                    own = plan.alignment.task_specific[label]
                    works += [(len(position), _copy_of(info, layout.places[info.name])) for info in own]
        return [work for _, work in sorted(works, key=lambda entry: entry[0])]

    def _own(self, info: TensorInfo, place: Place) -> Work:
        """A tensor of base's own, in the dtype of the result."""
        plan, dtype = self.plan, own_dtype(info.dtype, self.plan.dtype)
        if dtype == info.dtype:
            return _copy_of(info, place)

        def run(_: int, sources: list[Tensor], targets: list[Tensor]) -> None:
            if ops.combine(None, sources, out=targets[0]).nonfinite and plan.method.nonfinite == "error":
                tensor = TensorPlan(info.name, info.shape, info.dtype, info, ())
                check_finite(tensor, (), self.files, plan.chunk, plan.method)

        return Work(info.numel, (Source(info),), (Target((place,), dtype),), run)

    def _copying(self, tensor: TensorPlan) -> Work:
        """An integer tensor: compared, and copied where a merged model is written."""
        plan = self.plan
        places = tuple(
            output.layouts["merged"].places[name]
            for output in plan.outputs
            if "merged" in self.writes(output)
            for name in (tensor.name, *tensor.aliases)
        )

        def run(_: int, sources: list[Tensor], targets: list[Tensor]) -> None:
            if not all(torch.equal(sources[0], other) for other in sources[1:]):
                raise differing(plan.alignment.tensors, plan.names, self.files)
            for target in targets:
                copy(sources[0], target)

        stored = tuple(Source(info) for info in inputs(tensor, plan.method))
        return Work(tensor.numel, stored, (Target(places, tensor.dtype),) if places else (), run)


@dataclass(frozen=True, slots=True)
class _Merging:
    """The merging of one tensor in a pass. `targets`: the outputs that the pass writes to, by number, and what;
    `experts`: where the parts of every output's experts go, in the order of models."""

    reading: Reading
    tensor: TensorPlan
    passes: Sequence[Pass]
    state: TensorPass
    targets: Sequence[tuple[int, Written]]
    experts: tuple[Target, ...]

    @classmethod
    def of(cls, reading: Reading, tensor: TensorPlan, passes: Sequence[Pass]) -> _Merging:
        plan = reading.plan
        state = TensorPass.of(tensor.subject, len(plan.models), passes, reading.earlier, reading.kept)
        targets = [(o, kind) for o, output in enumerate(plan.outputs) for kind in reading.writes(output)]
        return cls(reading, tensor, passes, state, targets, _expert_targets(plan, tensor) if reading.last else ())

    def work(self) -> Work:
        plan, tensor = self.reading.plan, self.tensor
        return Work(
            tensor.numel,
            tuple(Source(info) for info in inputs(tensor, plan.method)),
            tuple(_target(plan, plan.outputs[o], kind, tensor) for o, kind in self.targets),
            self.run,
            self.done,
            self.state.release,
            self.state.begin,
            self.restore,
            None if self.targets else self.known(),
            prepare=self.prepare if self.state.needs_whole else None,
            whole_targets=self.experts,
            least_chunk=least_chunk(tensor.subject, self.passes),
            by_torch=any(one.by_torch for one in self.passes),
        )

    def prepare(self, sources: list[Tensor], memory: list[Tensor]) -> None:
        """Look at the whole tensor, and write the experts that were cut from it."""
        self.state.prepare(*self._split(sources))
        found = [part.reshape(-1) for share in self.state.shares for expert in share.experts for part in expert]
        if [part.numel() for part in found] != [target.numel for target in self.experts]:  # NaN are in no expert
            self._blame()
        for part, stored in zip(found, memory, strict=True):
            if part.is_floating_point():
                ops.combine(None, [part], out=stored)
            else:
                copy(part.view(torch.uint8), stored)

    def run(self, start: int, sources: list[Tensor], memory: list[Tensor]) -> None:
        """Merge the elements from `start` on."""
        written: list[dict[Written, Tensor]] = [{} for _ in self.reading.plan.outputs]
        for (o, kind), target in zip(self.targets, memory, strict=True):
            written[o][kind] = target
        self.state.run(start, *self._split(sources), written)

    def done(self) -> list[Tensor]:
        """The tensor's sums, once all of it is merged."""
        if not self.state.acceptable([output.method.nonfinite == "allow" for output in self.reading.plan.outputs]):
            self._blame()
        return self.state.gather(self.reading.gathered)

    def restore(self, sums: list[Tensor]) -> None:
        """Take sums that were found before."""
        self.state.restore(sums, self.reading.gathered)

    def known(self) -> list[Tensor] | None:
        """Sums that another merge has found, but none that would hide a NaN whose model and tensor are yet to be
        named."""
        known = self.state.known()
        strict = self.reading.plan.method.nonfinite == "error"
        return None if known and strict and not all(sums.isfinite().all() for sums in known) else known

    def _split(self, sources: list[Tensor]) -> tuple[Tensor | None, list[Tensor]]:
        """Base, where the method uses it, and the models."""
        uses_base = self.reading.plan.method.uses_base
        return sources[0] if uses_base else None, sources[uses_base:]

    def _blame(self) -> None:
        plan = self.reading.plan
        check_finite(self.tensor, plan.names, self.reading.files, plan.chunk, plan.method)


def _target(plan: MergePlan, output: Output, kind: Written, tensor: TensorPlan) -> Target:
    places = output.layouts[kind].places
    if kind == "masks":
        return Target((places[tensor.name],), "U8", len(plan.models))
    names = (tensor.name, *tensor.aliases) if kind == "merged" else (tensor.name,)
    stored = plan.stored_dtype(tensor) if kind == "unified" else plan.dtype or tensor.dtype
    return Target(tuple(places[name] for name in names), stored)


def _expert_targets(plan: MergePlan, tensor: TensorPlan) -> tuple[Target, ...]:
    """Where the parts of every output's experts of a tensor go, in the order of models."""
    places = [
        (place, part)
        for output in plan.outputs
        for layout in output.experts.values()
        for part in PARTS
        if (place := layout.places.get(f"{tensor.name}/{part}"))
    ]
    dtypes = dict.fromkeys(PARTS, plan.stored_dtype(tensor)) | {"counts": "I32", "offsets": "U16"}
    return tuple(
        Target((place,), dtypes[part], numel=(place.stop - place.start) // DTYPES[dtypes[part]])
        for place, part in places
    )


def _copy_of(info: TensorInfo, place: Place) -> Work:
    def run(_: int, sources: list[Tensor], targets: list[Tensor]) -> None:
        copy(sources[0], targets[0])

    return Work(info.numel, (Source(info),), (Target((place,), info.dtype),), run)
