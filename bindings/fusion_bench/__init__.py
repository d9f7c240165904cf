"""fastmerge's methods as FusionBench's: algorithms that take its model pools, and give what its own give.

On the command line they are chosen by `'hydra.searchpath=[pkg://fastmerge.bindings.fusion_bench.config]'` and
`method=fastmerge/emr` (`config/method/fastmerge` has them all). Needs fusion-bench 0.2.33 or newer.
"""

from .algorithms import EMR, FR, FREE, TIES, Algorithm, Merge, TaskArithmetic
from .frank_wolfe import FrankWolfe
from .tasks import ExpertModulator, MaskModulator, Modulated

__all__ = [
    "EMR",
    "FR",
    "FREE",
    "TIES",
    "Algorithm",
    "ExpertModulator",
    "FrankWolfe",
    "MaskModulator",
    "Merge",
    "Modulated",
    "TaskArithmetic",
]
