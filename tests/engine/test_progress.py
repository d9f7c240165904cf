"""What shows progress is told of every byte that it was told to expect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from folders import family

import fastmerge as fm
from fastmerge.engine.run_pass import Progress


class Told:
    def __init__(self) -> None:
        self.read = self.expected = 0

    def __call__(self, nbytes: int) -> None:
        assert self.expected, "told before anything is read"
        self.read += nbytes

    def expect(self, nbytes: int) -> None:
        self.expected += nbytes


def merge(method: str) -> Callable[[Path, Path, dict[str, Path], Progress], object]:
    def run(out: Path, base: Path, models: dict[str, Path], progress: Progress) -> object:
        return fm.merge(method, base=base, models=models, out=out, progress=progress)

    return run


def verify(out: Path, base: Path, models: dict[str, Path], progress: Progress) -> object:
    """All blocks, in two readings, each tensor as a whole before its blocks."""
    fm.merge("ties", base=base, models=models, out=out)
    return fm.verify(out, samples=None, progress=progress)


def task(out: Path, base: Path, models: dict[str, Path], progress: Progress) -> object:
    fm.merge("emr", base=base, models=models, out=out / "emr")
    return fm.task(out / "emr", "m0", out / "m0", progress=progress)


JOBS: dict[str, Callable[[Path, Path, dict[str, Path], Progress], object]] = {
    "merge": merge("emr"),
    "merge, whole tensors": merge("ties"),
    "merge, two readings": merge("fr"),
    "verify": verify,
    "task": task,
    "diff": lambda _, base, models, progress: fm.diff(base, models["m0"], progress=progress),
    "spectrum": lambda _, base, models, progress: fm.spectrum(base, models, progress=progress),
    "extract-lora": lambda out, base, models, progress: fm.extract_lora(
        base, models["m0"], out, rank=2, progress=progress
    ),
}


@pytest.mark.parametrize("job", JOBS)
def test_all_that_is_expected_is_told(job: str, tmp_path: Path) -> None:
    base, models = family(tmp_path)
    told = Told()
    JOBS[job](tmp_path / "out", base, models, told)
    assert told.read == told.expected > 0
