"""What the passes of a plan find out of whole checkpoints, without a result being written."""

from __future__ import annotations

from ..formats.mapping import Inputs
from ..methods._declaration import Statistics
from ..recipe.merge_plan import MergePlan
from .culprit import check_finite
from .passes import TensorPass
from .state_dicts import run_tensor
from .statistics import Kept


def gather_statistics(plan: MergePlan, count: int) -> list[Statistics]:
    """The statistics of the first `count` passes of a plan of one output; memory holds one tensor of all models.

    Raises MergeError where there are NaN or infinities, unless the method allows them.
    """
    files = Inputs(plan.headers)
    (output,) = plan.outputs
    found: list[Statistics] = []
    for number in range(count):
        gathered = Statistics(len(plan.models))
        for tensor in plan.alignment.tensors:
            if tensor.copy or plan.passes(output, tensor)[number].idle:
                continue
            one = plan.passes(output, tensor)[number]
            work = TensorPass.of(tensor.subject, len(plan.models), [one], [found], Kept())
            models = [files.whole(info) for info in tensor.models]
            base = files.whole(tensor.base) if tensor.base else None
            run_tensor(work, base if plan.method.uses_base else None, models, base if base is not None else models[0])
            if not work.acceptable([output.method.nonfinite == "allow"]):
                check_finite(tensor, plan.names, files, plan.chunk, plan.method)
            work.gather([gathered])
        files.check_unchanged()
        found.append(gathered)
    return found
