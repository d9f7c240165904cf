"""Merging that data inform: what goes with `fm.ada_merging`, `fm.fisher` and `fm.regmean`."""

from .record import AdaMergingRecord, FisherRecord, RegMeanRecord, Step
from .result import Result

__all__ = ["AdaMergingRecord", "FisherRecord", "RegMeanRecord", "Result", "Step"]
