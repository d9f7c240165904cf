"""FW-Merging: Frank-Wolfe optimisation over a pool of checkpoints, what goes with `fm.frank_wolfe`."""

from .folder import rebuild
from .objectives import causal_lm, cross_entropy, entropy
from .record import Record, Step
from .result import Result

__all__ = ["Record", "Result", "Step", "causal_lm", "cross_entropy", "entropy", "rebuild"]
